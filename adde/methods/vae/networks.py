"""Encoders, decoders and the discriminator."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Network = Literal["study", "small"]

HIDDEN = 256
"""Units of the fully connected layers beside the codes."""


def build_networks(
    network: Network, side: int, channels: int, latents: int
) -> tuple[nn.Module, nn.Module]:
    """An encoder (B, C, S, S) -> (B, 2 L), means then log-variances, and a decoder (B, L) ->
    (B, C, S, S) logits; Glorot-uniform weights and zero biases.

    Args:
        network: `study`: Locatello et al. 2019, table 1, S = 64. `small`: S a multiple of 16.
        side: S.
        channels: C.
        latents: L.
    """
    convolutions, rest, width = (_study if network == "study" else _small)(channels)
    last = side // 16
    encoder = nn.Sequential(
        *convolutions,
        nn.Flatten(),
        nn.Linear(width * last**2, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 2 * latents),
    )
    decoder = nn.Sequential(
        nn.Linear(latents, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, width * last**2),
        nn.ReLU(),
        nn.Unflatten(1, (width, last, last)),
        *rest,
    )
    return encoder.apply(_glorot), decoder.apply(_glorot)


def build_discriminator(latents: int, layers: int, width: int) -> nn.Sequential:
    """(B, L) -> (B, 2) logits of codes as they are and of permuted ones."""
    sizes = [latents, *[width] * layers]
    parts: list[nn.Module] = []
    for size, following in pairwise(sizes):
        parts += [nn.Linear(size, following), nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], 2)).apply(_glorot)


def _study(channels: int) -> tuple[list[nn.Module], list[nn.Module], int]:
    down = [(channels, 32, 4), (32, 32, 4), (32, 64, 2), (64, 64, 2)]
    up = [(64, 64), (64, 32), (32, 32), (32, channels)]
    convolutions: list[nn.Module] = []
    for inputs, outputs, kernel in down:
        convolutions += [nn.Conv2d(inputs, outputs, kernel, 2, kernel // 4), nn.ReLU()]
    rest: list[nn.Module] = []
    for inputs, outputs in up:
        rest += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return convolutions, rest[:-1], 64


def _small(channels: int) -> tuple[list[nn.Module], list[nn.Module], int]:
    """Blocks of 4 x 4 pixels as channels, so that no layer works at full size."""
    convolutions = [
        nn.PixelUnshuffle(4),
        *(nn.Conv2d(16 * channels, 32, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU()),
    ]
    rest = [
        *(nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
        nn.Conv2d(32, 16 * channels, 3, 1, 1),
        nn.PixelShuffle(4),
    ]
    return convolutions, rest, 64


def _glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if isinstance(module.bias, Tensor):
            nn.init.zeros_(module.bias)
