"""Lays a drawn edit over the picture that it is an edit of.

A decoder loses detail. So it draws the picture as it is and with the edit, and only where these two
differ is the edit laid over the picture; elsewhere every pixel stays.
"""

import numpy as np
import numpy.typing as npt

from adde.preprocess import Picture

FIRST, WHOLE = 0.03, 0.12
"""Differences, as shares of the whole range, up to which a pixel stays and from which it is the
drawn one."""

REACH = 1
"""Pixels around a difference that count as different, too."""


def overlaid(pictures: Picture, own: Picture, edited: Picture) -> Picture:
    """Lay drawn edits over pictures, all (B, S, S, 3) uint8.

    Args:
        pictures: as they are.
        own: as the decoder draws them.
        edited: as the decoder draws their edits.
    """
    apart = np.abs(edited.astype(np.float32) - own).max(axis=3) / 255
    share = np.clip((_widest(apart) - FIRST) / (WHOLE - FIRST), 0, 1)[..., None]
    return np.rint(pictures + share * (edited.astype(np.float32) - pictures)).astype(np.uint8)


def _widest(apart: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest difference (B, S, S) within REACH pixels."""
    side = apart.shape[1]
    padded = np.pad(apart, ((0, 0), (REACH, REACH), (REACH, REACH)))
    moves = range(2 * REACH + 1)
    shifted = [padded[:, y : y + side, x : x + side] for y in moves for x in moves]
    return np.maximum.reduce(shifted)


def shrunk(pictures: Picture, side: int) -> Picture:
    """Average blocks of pictures (B, S, S, 3) uint8 to (B, side, side, 3); side divides S."""
    block = pictures.shape[1] // side
    if block == 1:
        return pictures
    blocks = pictures.reshape(-1, side, block, side, block, 3)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
