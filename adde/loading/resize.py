"""Pictures for training: decoded as everywhere, but resized by torch."""

import numpy as np
import torch
from torch import Tensor

from adde.preprocess import Box, Picture, Preprocess, draw_bars, placement
from adde.shards.jpeg import decode_pixels


def load_for_training(preprocess: Preprocess, source: bytes, name: str, into: Picture) -> None:
    """Write nearly the result of `preprocess.load` into (size, size, 3) uint8, in half the time.

    Pillow's bicubic resize takes several times as long as decoding a JPEG to the same size. torch
    implements the same method with vector instructions, but rounds its weights differently: at
    most 1 pixel value in 50 differs (1 in 4 for strong squashing), by 1 or 2 of 255 levels. This
    does not affect training; evaluation, export and serving use `preprocess.load`.

    Raises:
        UserError: See `adde.preprocess.decode`.
    """
    pixels = decode_pixels(source, name, preprocess.size)
    taken, place = placement((pixels.shape[1], pixels.shape[0]), preprocess.size, preprocess.fit)
    part, target = _inside(pixels, taken), _inside(into, place)
    if part.shape == target.shape:
        target[:] = part
    else:
        # The operator behind torch.nn.functional.interpolate can write into existing memory. A
        # batch is not in the processor's caches, so an extra copy to it would take as long as
        # reading the file. The operator needs contiguous memory: with bars at the sides, copy.
        whole = target if target.flags.c_contiguous else np.empty_like(target, order="C")
        torch.ops.aten._upsample_bicubic2d_aa.out(
            _channels_last(part), whole.shape[:2], False, None, None, out=_channels_last(whole)
        )
        if whole is not target:
            target[:] = whole
    if target.shape != into.shape:
        draw_bars(into, pixels, place)


def _inside(picture: Picture, box: Box) -> Picture:
    left, top, right, bottom = box
    return picture[top:bottom, left:right]


def _channels_last(picture: Picture) -> Tensor:
    """Return a view (1, 3, height, width).

    The batch axis is added first, so that torch recognises the channels-last layout and keeps it.
    """
    return torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
