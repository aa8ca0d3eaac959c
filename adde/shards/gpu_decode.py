# pyright: standard
"""JPEGs decoded on the device that trains on them, where `data.decode` asks for it (layer 1)."""

import torch
from torch import Tensor
from torchcodec.decoders import decode_jpeg  # pyright: ignore[reportPrivateImportUsage]

from adde.errors import UserError


def decode_into(images: Tensor, encoded: dict[int, bytes], names: dict[int, str]) -> None:
    """Decodes pictures on the device of `images`, cuts their centre squares and resizes them.

    Decoders round differently: numbers lie a few of 255 from those of `adde.preprocess`, which is
    what pictures are measured and served by.

    Args:
        images: (b, S, S, 3) uint8.
        encoded: row of `images` to a file for which `adde.shards.jpeg.is_plain` holds.
        names: of the same rows, for errors.

    Raises:
        UserError: a picture does not decode; names it.
    """
    if not encoded:
        return
    try:
        pictures = decode_jpeg([*encoded.values()], mode="RGB", device=images.device)
    except Exception as error:
        raise UserError(
            f"a picture of {names[min(names)]} and {len(names) - 1} more does not decode on "
            f"{images.device}: {error}; data.decode = 'cpu' names it"
        ) from None
    side = images.shape[1]
    for row, picture in zip(encoded, pictures):
        height, width = picture.shape[1:]
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        square = picture[:, top : top + edge, left : left + edge]
        if edge != side:
            resized = torch.nn.functional.interpolate(
                square[None].float(), (side, side), mode="bicubic", antialias=True
            )
            square = resized[0].round().clamp(0, 255).byte()
        images[row] = square.permute(1, 2, 0)
