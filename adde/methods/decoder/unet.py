"""The velocity of a rectified flow: a U-Net with cross-attention to attribute and style tokens."""

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

LEVELS = (1, 2, 4, 4)
"""Channels of each level as multiples of the width; each level halves the side."""

ATTENDED = 2
"""First level whose pixels attend to the tokens."""

TOKEN = 64
"""Numbers in a token."""

GROUPS = 8
"""Groups of a group norm; the width is a multiple."""


class Tokens(nn.Module):
    """Embeddings (B, A, D) and styles (B, L) as tokens (B, A + 1, TOKEN)."""

    def __init__(self, attributes: int, width: int, style: int) -> None:
        super().__init__()
        self.subspaces, self.style = nn.Linear(width, TOKEN), nn.Linear(style, TOKEN)
        self.names = nn.Parameter(0.02 * torch.randn(attributes + 1, TOKEN))
        self.nothing = nn.Parameter(0.02 * torch.randn(attributes + 1, TOKEN))

    def forward(self, embeddings: Tensor, style: Tensor, dropped: Tensor | None) -> Tensor:
        """Make tokens; those of `dropped` (B,) bool items say nothing."""
        tokens = torch.cat([self.subspaces(embeddings), self.style(style)[:, None]], 1) + self.names
        if dropped is None:
            return tokens
        return torch.where(dropped[:, None, None], self.nothing, tokens)


class Block(nn.Module):
    """Two convolutions with a residual; the time scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.before = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.after = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.after.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (B, inputs, S, S) to (B, outputs, S, S)."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        hidden = self.second(self.before(F.silu(self.first(x)))) * (1 + scale) + shift
        return self.skip(x) + self.after(F.silu(hidden))


class Attention(nn.Module):
    """Pixels attend to tokens, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.query = nn.Linear(channels, channels)
        self.keys, self.out = nn.Linear(TOKEN, 2 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map (B, C, S, S) to the same shape, given tokens (B, T, TOKEN)."""
        queries = self.query(self.norm(x).flatten(2).mT)
        keys, values = self.keys(tokens).chunk(2, dim=-1)
        found = self.out(F.scaled_dot_product_attention(queries, keys, values))
        return x + found.mT.unflatten(2, x.shape[2:])


class Level(nn.Module):
    """A block, and attention at the lower levels."""

    def __init__(self, inputs: int, outputs: int, times: int, attends: bool) -> None:
        super().__init__()
        self.block = Block(inputs, outputs, times)
        self.attention = Attention(outputs) if attends else None

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """Map (B, inputs, S, S) to (B, outputs, S, S)."""
        x = self.block(x, time)
        return x if self.attention is None else self.attention(x, tokens)


class Velocity(nn.Module):
    """v(x_t, t, tokens) of pictures x_t (B, 3, S, S), S a multiple of 8, at times t (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels, times = [width * factor for factor in LEVELS], 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        down, before = list[nn.Module](), width
        for number, count in enumerate(channels):
            down.append(Level(before, count, times, number >= ATTENDED))
            before = count
        up = list[nn.Module]()
        for number, count in reversed(list(enumerate(channels))):
            up.append(Level(before + count, count, times, number >= ATTENDED))
            before = count
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = nn.Sequential(
            nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, 3, 3, padding=1)
        )
        nn.init.zeros_(cast(nn.Conv2d, self.last[-1]).weight)

    def forward(self, x: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """See the class."""
        time = F.silu(self.time(waves(times, self.width)))
        x, passed = self.first(x), list[Tensor]()
        for number, level in enumerate(self.down):
            x = level(x if not number else F.avg_pool2d(x, 2), time, tokens)
            passed.append(x)
        for number, level in enumerate(self.up):
            x = x if not number else F.interpolate(x, scale_factor=2.0)
            x = level(torch.cat([x, passed.pop()], 1), time, tokens)
        return self.last(x)


def waves(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines (B, width) of times (B,) in 0..1 at geometric frequencies."""
    steps = torch.arange(width // 2, device=times.device) / (width // 2)
    angles = 1000 * times[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angles.sin(), angles.cos()], 1)
