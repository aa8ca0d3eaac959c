"""Encoder, decoder and discriminator: strided convolutions, as published."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
"""Of leaky ReLUs."""


def build_encoder(side: int, width: int, outputs: int, spatial: bool) -> nn.Sequential:
    """Build (B, 3, S, S) -> (B, outputs), or with `spatial` (B, outputs, S / 8, S / 8)."""
    if spatial:
        return nn.Sequential(*_down([3, width, 2 * width]), nn.Conv2d(2 * width, outputs, 4, 2, 1))
    parts = _down([3, width, 2 * width, 4 * width])
    pixels = (side // 8) ** 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * width * pixels, outputs))


def build_decoder(side: int, width: int, inputs: int, spatial: bool) -> nn.Sequential:
    """Build the way back: (B, inputs), or maps, -> (B, 3, S, S) in -1..1."""
    parts: list[nn.Module] = []
    last = side // 8
    if not spatial:
        parts += [nn.Linear(inputs, 4 * width * last**2), nn.Unflatten(1, (4 * width, last, last))]
        inputs = 4 * width
    for size, following in pairwise([inputs, 4 * width, 2 * width]):
        parts.append(nn.ConvTranspose2d(size, following, 4, 2, 1, bias=False))
        parts += [nn.BatchNorm2d(following), nn.ReLU()]
    return nn.Sequential(*parts, nn.ConvTranspose2d(2 * width, 3, 4, 2, 1), nn.Tanh())


class Critic(nn.Module):
    """Judges pictures under their labels, which are maps beside the colours, as published.

    Args:
        side: S.
        width: channels of the first convolution.
        sizes: V_a of each attribute.
    """

    def __init__(self, side: int, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        # The published maps are 0 or 1, for attributes of two values. Here each value has a learned
        # number, so that attributes may have more values.
        self.maps = nn.Linear(sum(sizes), len(sizes), bias=False)
        channels = [3 + len(sizes), width, 2 * width, 4 * width, 4 * width]
        self.pictures = nn.Sequential(*_down(channels, norm=False), nn.Flatten())
        self.verdicts = nn.Linear(4 * width * (side // 16) ** 2, len(sizes))

    def forward(self, pictures: Tensor, hot: Tensor) -> tuple[Tensor, None]:
        """As `Discriminator.forward`, without classes: it is told the labels."""
        maps = self.maps(hot)[:, :, None, None].expand(-1, -1, *pictures.shape[2:])
        return self.verdicts(self.pictures(torch.cat([pictures, maps], dim=1))).float(), None

    @torch.no_grad()
    def clip(self, largest: float) -> None:
        """Clip all weights to -largest..largest."""
        for parameter in self.parameters():
            parameter.clamp_(-largest, largest)


class Discriminator(nn.Module):
    """Judges pictures under their labels, and classifies them; with spectral norm.

    It is told the labels after its convolutions, by a projection (Miyato and Koyama 2018): what
    classifies must not see them. Arguments as of `Critic`.
    """

    def __init__(self, side: int, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 4 * width]
        self.pictures = nn.Sequential(*_down(channels, norm=False), nn.Flatten())
        features = 4 * width * (side // 16) ** 2
        self.verdicts = nn.Linear(features, len(sizes))
        self.labels = nn.Linear(sum(sizes), features, bias=False)
        for part in list(self.modules()):
            if isinstance(part, nn.Conv2d | nn.Linear):
                spectral_norm(part)
        self.classes = nn.Linear(features, sum(sizes))

    def forward(self, pictures: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
        """Judge pictures (b, 3, S, S) in -1..1 under multi-hot labels (b, V).

        Returns:
            (b, A), how real the picture is as one of the pairs of each attribute; and the logits of
            all values (b, V). Both are float32.
        """
        features = self.pictures(pictures)
        agreement = (features * self.labels(hot)).sum(1, keepdim=True)
        return (self.verdicts(features) + agreement).float(), self.classes(features).float()


def _down(channels: Iterable[int], norm: bool = True) -> list[nn.Module]:
    """Convolutions that halve a side; with `norm`, all but the first have a batch norm, before
    which a bias would have no effect.
    """
    parts: list[nn.Module] = []
    for size, following in pairwise(channels):
        normed = norm and bool(parts)
        parts.append(nn.Conv2d(size, following, 4, 2, 1, bias=not normed))
        if normed:
            parts.append(nn.BatchNorm2d(following))
        parts.append(nn.LeakyReLU(SLOPE))
    return parts
