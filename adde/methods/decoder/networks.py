"""The network that finds the style of a picture, and the one that draws."""

import torch
from torch import Tensor, nn

HIDDEN = 256
"""Units of the fully connected layers."""

REDUCED = 16
"""Side of a picture divided by that of the smallest feature map."""


def style_network(side: int, style: int) -> nn.Sequential:
    """Build a network (B, 3, S, S) -> (B, 2 * style): means, then log-variances."""
    last = side // REDUCED
    layers = nn.Sequential(
        nn.PixelUnshuffle(4),  # no layer works at full size
        *(nn.Conv2d(48, 32, 3, 1, 1), nn.SiLU()),
        *(nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU()),
        *(nn.Conv2d(64, 64, 4, 2, 1), nn.SiLU()),
        nn.Flatten(),
        *(nn.Linear(64 * last**2, HIDDEN), nn.SiLU()),
        nn.Linear(HIDDEN, 2 * style),
    )
    layers[:-1].apply(_start)
    return layers.to(memory_format=torch.channels_last)


class Painter(nn.Module):
    """Draws pictures (B, 3, S, S), as logits of pixels, from codes (B, L)."""

    def __init__(self, side: int, codes: int, width: int) -> None:
        super().__init__()
        last = side // REDUCED
        self.layers = nn.Sequential(
            *(nn.Linear(codes, HIDDEN), nn.SiLU()),
            *(nn.Linear(HIDDEN, 4 * width * last**2), nn.SiLU()),
            nn.Unflatten(1, (4 * width, last, last)),
            *(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.SiLU()),
            *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), nn.SiLU()),
            nn.Conv2d(width, 48, 3, 1, 1),
            nn.PixelShuffle(4),
        )
        self.layers[:-2].apply(_start)
        self.to(memory_format=torch.channels_last)

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        return self.layers(codes)


def _start(module: nn.Module) -> None:
    """Start with weights that keep the scale of activations; PyTorch's let it vanish."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module.bias, Tensor):
            nn.init.zeros_(module.bias)
