"""Decode JPEGs on the training device.

Import this only if `data.decode` asks for it: torchcodec needs libraries that some machines lack.
"""

import torch
from torch import Tensor
from torchcodec.decoders import decode_jpeg  # pyright: ignore[reportPrivateImportUsage]

from adde.errors import UserError
from adde.preprocess import Fit, placement


def decode_into(images: Tensor, encoded: dict[int, bytes], names: dict[int, str], fit: Fit) -> None:
    """Decode pictures on the device of `images`, and make them square.

    Decoders round differently: pixels differ by a few of 255 levels from those of
    `adde.preprocess`, which evaluation and serving use.

    Args:
        images: (b, S, S, 3) uint8.
        encoded: Maps rows of `images` to files that are plain (`adde.shards.jpeg.is_plain`).
        names: Names of the same rows, for errors.
        fit: How pictures are made square.

    Raises:
        UserError: A picture does not decode; names the batch's first.
    """
    try:
        pictures = decode_jpeg([*encoded.values()], mode="RGB", device=images.device)
    except Exception as error:
        raise UserError(
            f"a picture of {names[min(names)]} and {len(names) - 1} more does not decode on "
            f"{images.device}: {error}; data.decode = 'cpu' would name the picture"
        ) from None
    side = images.shape[1]
    for row, picture in zip(encoded, pictures):
        taken, place = placement((picture.shape[2], picture.shape[1]), side, fit)
        left, top, right, bottom = taken
        part = picture[:, top:bottom, left:right]
        left, top, right, bottom = place
        if part.shape[1:] != (bottom - top, right - left):
            resized = torch.nn.functional.interpolate(
                part[None].float(), (bottom - top, right - left), mode="bicubic", antialias=True
            )
            part = resized[0].round().clamp(0, 255).byte()
        square = images[row].permute(2, 0, 1)
        square[:, top:bottom, left:right] = part
        # As `adde.preprocess.draw_bars`; torch's median also takes the lower of two middle values.
        for bar, edge in (
            (square[:, :, :left], picture[:, :, 0]),
            (square[:, :, right:], picture[:, :, -1]),
            (square[:, :top], picture[:, 0]),
            (square[:, bottom:], picture[:, -1]),
        ):
            if bar.numel():
                bar.copy_(edge.median(1).values[:, None, None].expand_as(bar))
