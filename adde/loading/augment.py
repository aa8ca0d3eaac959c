"""Flip, shift and scale a batch of pictures at random, in one resampling on the device."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

DRAWS = 4
"""Uniform draws per picture: flip, horizontal shift, vertical shift, scale."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training pictures."""

    flip: bool = True
    """Mirror half of the pictures."""

    shift: float = 0.05
    """Largest shift in each direction, as a share of the side."""

    scale: float = 0.1
    """Largest change of size, as a share: 0.1 scales by 0.9 to 1.1."""


def augment(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Transform pictures; areas from outside a picture repeat its border.

    Args:
        images: (B, S, S, 3) uint8.
        draws: (B, DRAWS) float32, uniform in [0, 1).
        settings: Strength of the changes.

    Returns:
        (B, 3, S, S) float32 on the 0..255 scale.
    """
    pictures = images.permute(0, 3, 1, 2).float()
    signed = 2 * draws - 1
    scale = 1 + settings.scale * signed[:, 3]
    flip = torch.where(signed[:, 0] < 0, -1.0, 1.0) if settings.flip else torch.ones_like(scale)
    # The affine map goes from output to input coordinates in -1..1, so half a side is 1.
    affine = torch.zeros(len(images), 2, 3, device=images.device)
    affine[:, 0, 0], affine[:, 1, 1] = flip / scale, 1 / scale
    affine[:, :, 2] = 2 * settings.shift * signed[:, 1:3]
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
