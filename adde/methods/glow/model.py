"""The multi-scale flow, and its codes: normalised latents."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adde.methods.glow.config import GlowConfig
from adde.methods.glow.layers import ActNorm, Prior, Step, log_density, squeeze, unsqueeze
from adde.preprocess import Preprocess


class Forward(NamedTuple):
    """Outputs of a forward pass, a row per item."""

    volume: Tensor
    """Log-determinant of the flow, (b, 1) float32 in nats."""
    prior: Tensor
    """Log-density of each level's latents, (b, L) float32 in nats."""


class Level(nn.Module):
    """Squeeze, steps of flow, and the release of half of the channels but at the last level."""

    def __init__(self, channels: int, config: GlowConfig, last: bool) -> None:
        super().__init__()
        channels = 4 * channels
        self.last = last
        self.flow = nn.ModuleList(
            Step(channels, config.width, config.coupling, config.convolution)
            for _ in range(config.steps)
        )
        self.outputs = 0 if last else channels // 2
        """Channels that the next level gets."""
        self.prior = Prior(self.outputs, channels - self.outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map x (b, C, H, W).

        Returns:
            What the next level gets (b, outputs, H / 2, W / 2), the normalised latents
            (b, 4 C - outputs, H / 2, W / 2), the log-determinants (b,) and log-densities (b,).
        """
        x = squeeze(x)
        volume = x.new_zeros(x.shape[0])
        for step in self.flow:
            x, more = step(x)
            volume = volume + more
        kept, latents = x.split([self.outputs, self.prior.channels], dim=1)
        mean, log_deviation = self.prior(torch.zeros_like(latents) if self.last else kept)
        normal = (latents - mean) * (-log_deviation).exp()
        return kept, normal, volume, log_density(normal, log_deviation)

    def inverse(self, kept: Tensor, normal: Tensor) -> Tensor:
        """Map the first two results of `forward` back to x."""
        mean, log_deviation = self.prior(torch.zeros_like(normal) if self.last else kept)
        x = torch.cat([kept, normal * log_deviation.exp() + mean], dim=1)
        for step in reversed(self.flow):
            assert isinstance(step, Step)
            x = step.inverse(x)
        return unsqueeze(x)


class Flow(nn.Module):
    """An invertible map of (b, C, S, S) with a learned Gaussian prior at each level."""

    def __init__(self, channels: int, side: int, config: GlowConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        self.shapes: list[tuple[int, int, int]] = []
        """Channels, height and width of each level's latents."""
        for number in range(config.levels):
            level = Level(channels, config, last=number == config.levels - 1)
            side //= 2
            self.levels.append(level)
            self.shapes.append((level.prior.channels, side, side))
            channels = level.outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Forward]:
        """Map x to normalised latents (b, D), all levels one after another."""
        latents, volumes, priors = [], [], []
        for level in self.levels:
            x, normal, volume, prior = level(x)
            latents.append(normal.flatten(1))
            volumes.append(volume)
            priors.append(prior)
        volume = torch.stack(volumes).sum(0)[:, None]
        return torch.cat(latents, dim=1), Forward(volume, torch.stack(priors, dim=1))

    def inverse(self, latents: Tensor) -> Tensor:
        """Map normalised latents (b, D) back to x."""
        parts = self.split(latents)
        x = latents.new_zeros(latents.shape[0], 0, *self.shapes[-1][1:])
        for level, part, shape in zip(reversed(self.levels), reversed(parts), self.shapes[::-1]):
            assert isinstance(level, Level)
            x = level.inverse(x, part.view(-1, *shape))
        return x

    def split(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Split latents (b, D) into those of each level."""
        return latents.split([math.prod(shape) for shape in self.shapes], dim=1)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Start all activation norms from the items of all ranks; this rank's are x."""
        with _starting([part for part in self.modules() if isinstance(part, ActNorm)]):
            self(x)


class Glow(nn.Module):
    """A flow of pictures with `bits` bits a colour."""

    def __init__(self, config: GlowConfig) -> None:
        super().__init__()
        side = config.image_size
        self.bits, self.dimensions = config.bits, 3 * side**2
        self.start_items, self.ridge = config.start_items, config.ridge
        self.preprocess = Preprocess(side, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "pad")
        self.flow = Flow(3, side, config)

    def forward(self, images: Tensor, noise: Tensor) -> Forward:
        """Compute the parts of the log-likelihood of pictures (b, S, S, 3) uint8.

        Args:
            images: of this rank.
            noise: (b, 3, S, S) float32 in 0..1, the place within each colour's bin.
        """
        return self.flow(self.scaled(images, noise))[1]

    def scaled(self, images: Tensor, noise: Tensor | float = 0.5) -> Tensor:
        """Return pictures (b, S, S, 3) uint8 as (b, 3, S, S) float32 in -0.5..0.5."""
        levels = 2**self.bits
        colours = (images.permute(0, 3, 1, 2).float() * (levels / 256)).floor()
        return (colours + noise) / levels - 0.5

    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures (b, S, S, 3) uint8 as normalised latents (b, D), without noise."""
        return self.flow(self.scaled(images))[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (b, D): pictures (b, 3, S, S) in 0..1, whole colours."""
        levels = 2**self.bits
        colours = ((self.flow.inverse(latents) + 0.5) * levels).floor()
        # A latent far from those of pictures may decode to infinity.
        return colours.nan_to_num(0.0).clamp(0, levels - 1) / (levels - 1)


def bits_per_dimension(out: Forward, bits: int, dimensions: int) -> Tensor:
    """Return -log2 of the probability of each picture, per colour of a pixel: (b,).

    Args:
        out: of a forward pass.
        bits: of a colour.
        dimensions: D, colours of a picture.
    """
    nats = dimensions * bits * math.log(2) - (out.volume[:, 0] + out.prior.sum(1))
    return nats / (dimensions * math.log(2))


@contextlib.contextmanager
def _starting(norms: list[ActNorm]) -> Iterator[None]:
    for norm in norms:
        norm.starting = True
    try:
        yield
    finally:
        for norm in norms:
            norm.starting = False
