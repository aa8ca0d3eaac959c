"""The invertible layers of Glow.

Each maps x (b, C, H, W) to y of the same size and gives the log-determinants (b,) of its Jacobian,
in nats; `inverse` maps back.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adde.distributed import sum_over_ranks

LOG_SCALE_RATE = 3.0
"""Factor of the log-scales of zero-initialised convolutions, which speeds up their learning."""

START_STD = 0.05
"""Standard deviation of initial weights in couplings."""


def squeeze(x: Tensor) -> Tensor:
    """Turn blocks of 2x2 pixels into channels: (b, C, H, W) -> (b, 4 C, H / 2, W / 2)."""
    return F.pixel_unshuffle(x, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """Undo `squeeze`."""
    return F.pixel_shuffle(x, 2)


class ActNorm(nn.Module):
    """A scale and a shift of each channel, that start from the statistics of one batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.starting = False
        """Whether the next forward pass sets shift and scale."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to (x + shift) exp(log_scale)."""
        if self.starting:
            self._start(x)
        y = (x + self._per_channel(self.shift)) * self._per_channel(self.log_scale.exp())
        volume = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return y, volume.expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        return y * self._per_channel((-self.log_scale).exp()) - self._per_channel(self.shift)

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        """Give the items of all ranks zero mean and unit variance in each channel."""
        values = x.double()
        count = values.new_tensor([float(values.numel() // values.shape[1])])
        sums = [count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]
        total = sum_over_ranks(torch.cat(sums))
        mean, squares = (total[1:] / total[0]).chunk(2)
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        self.shift.copy_(-mean)
        # A channel that does not vary keeps its scale.
        self.log_scale.copy_(-torch.where(deviation > 1e-6, deviation, 1.0).log())

    @staticmethod
    def _per_channel(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)


class Convolution(nn.Module):
    """An invertible 1x1 convolution, that starts as a random rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_rotation(channels))

    def matrix(self) -> Tensor:
        """Return W (C, C)."""
        return self.weight

    def log_determinant(self) -> Tensor:
        """Return log |det W|, computed in float64."""
        return torch.linalg.slogdet(self.weight.double())[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the channels of each pixel by W."""
        y = F.conv2d(x, self.matrix()[:, :, None, None])
        volume = self.log_determinant().to(x.dtype) * (x.shape[2] * x.shape[3])
        return y, volume.expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """Multiply by the inverse of W, computed in float64."""
        inverse = torch.linalg.inv(self.matrix().double()).to(y.dtype)
        return F.conv2d(y, inverse[:, :, None, None])


class LUConvolution(Convolution):
    """The same with W = P L (U + diag(sign exp(log_diagonal))).

    P and the signs are fixed; L has a unit diagonal, and U a zero one.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        nn.Module.__init__(self)
        permutation, lower, upper = torch.linalg.lu(_rotation(channels))
        diagonal = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())

    def matrix(self) -> Tensor:
        """As `Convolution.matrix`."""
        ones = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        diagonal = (self.sign * self.log_diagonal.exp()).diag()
        return self.permutation @ (self.lower.tril(-1) + ones) @ (self.upper.triu(1) + diagonal)

    def log_determinant(self) -> Tensor:
        """As `Convolution.log_determinant`."""
        return self.log_diagonal.double().sum()


class FixedConvolution(nn.Module):
    """A convolution as it is, with its inverse worked out, for graphs, which cannot invert."""

    weight: Tensor
    inverse_weight: Tensor

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        weight = convolution.matrix().detach().double()
        for name, matrix in (("weight", weight), ("inverse_weight", torch.linalg.inv(weight))):
            self.register_buffer(name, matrix.float()[:, :, None, None].clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Convolution.forward`, without the volume."""
        return F.conv2d(x, self.weight), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """As `Convolution.inverse`."""
        return F.conv2d(y, self.inverse_weight)


class ZeroConvolution(nn.Module):
    """A 3x3 convolution that starts at zero, with a scale of each channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (b, inputs, H, W) to (b, outputs, H, W)."""
        y = F.conv2d(x, self.weight, self.bias, padding=1)
        return y * (LOG_SCALE_RATE * self.log_scale).exp()[:, None, None]


class Coupling(nn.Module):
    """Shift, and if affine scale, half of the channels by what a network makes of the others."""

    def __init__(self, channels: int, width: int, affine: bool) -> None:
        super().__init__()
        self.kept, self.moved = channels // 2, channels - channels // 2
        self.affine = affine
        self.first = nn.Conv2d(self.kept, width, 3, padding=1, bias=False)
        self.first_norm = ActNorm(width)
        self.second = nn.Conv2d(width, width, 1, bias=False)
        self.second_norm = ActNorm(width)
        self.last = ZeroConvolution(width, self.moved * (2 if affine else 1))
        for convolution in (self.first, self.second):
            nn.init.normal_(convolution.weight, 0.0, START_STD)

    def _network(self, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return shift and log-scale (b, moved, H, W); the latter is None if additive."""
        hidden = self.first_norm(self.first(kept))[0].relu()
        hidden = self.second_norm(self.second(hidden))[0].relu()
        found = self.last(hidden)
        if not self.affine:
            return found, None
        shift, scale = found.chunk(2, dim=1)
        # sigmoid(h + 2): a bounded scale that starts near 1.
        return shift, F.logsigmoid(scale + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (a, b) to (a, (b + shift(a)) scale(a))."""
        kept, moved = x.split([self.kept, self.moved], dim=1)
        shift, log_scale = self._network(kept)
        moved = moved + shift
        if log_scale is None:
            return torch.cat([kept, moved], dim=1), x.new_zeros(x.shape[0])
        return torch.cat([kept, moved * log_scale.exp()], dim=1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        kept, moved = y.split([self.kept, self.moved], dim=1)
        shift, log_scale = self._network(kept)
        if log_scale is not None:
            moved = moved * (-log_scale).exp()
        return torch.cat([kept, moved - shift], dim=1)


class Step(nn.Module):
    """A step of flow: activation norm, 1x1 convolution, coupling."""

    def __init__(
        self,
        channels: int,
        width: int,
        coupling: Literal["affine", "additive"],
        convolution: Literal["plain", "lu"],
    ) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.convolution = (Convolution if convolution == "plain" else LUConvolution)(channels)
        self.coupling = Coupling(channels, width, coupling == "affine")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the three."""
        x, first = self.norm(x)
        x, second = self.convolution(x)
        x, third = self.coupling(x)
        return x, first + second + third

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        return self.norm.inverse(self.convolution.inverse(self.coupling.inverse(y)))


class Prior(nn.Module):
    """Gaussians of a level's latents, given what the next level gets; for the last level, alone."""

    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.convolution = ZeroConvolution(given or channels, 2 * channels)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-deviation (b, channels, H, W); `given` is zeros where nothing is."""
        mean, log_deviation = self.convolution(given).chunk(2, dim=1)
        return mean, log_deviation


def log_density(latents: Tensor, log_deviation: Tensor) -> Tensor:
    """Return (b,) log-densities in nats of latents with normalised values (b, ...)."""
    each = -(latents.square() + math.log(2 * math.pi)) / 2 - log_deviation
    return each.flatten(1).sum(1)


def _rotation(channels: int) -> Tensor:
    """Draw a random orthogonal matrix (C, C)."""
    return torch.linalg.qr(torch.randn(channels, channels))[0].contiguous()
