"""Structural similarity of pictures (Wang et al. 2004)."""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""Side of the Gaussian window in pixels and its standard deviation, as published."""

C1, C2 = 0.01**2, 0.03**2
"""The published constants, for pixels in 0..1."""


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean over pixels and channels, (b,), of pictures (b, C, S, S) in 0..1.

    Windows lie inside the picture, so S is at least WINDOW.
    """
    channels = one.shape[1]
    places = torch.arange(WINDOW, device=one.device) - WINDOW // 2
    line = torch.exp(-places.square() / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(channels, 1, WINDOW, WINDOW).to(one)

    def local(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(values, kernel, groups=channels)

    means = local(one), local(other)
    products = means[0] * means[1]
    squares = means[0].square() + means[1].square()
    spread = local(one.square() + other.square()) - squares
    shared = local(one * other) - products
    found = (2 * products + C1) * (2 * shared + C2) / ((squares + C1) * (spread + C2))
    return found.flatten(1).mean(1)
