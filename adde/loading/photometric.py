"""Change colours, blur, and JPEG-compress batches of pictures (B, 3, S, S) float32 on 0..255.

Every function takes strengths of shape (B,), runs on the pictures' device, and never waits for it.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
"""Red, green and blue to luminance and chrominance (JFIF 1.02)."""

_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
"""Quantisation steps at quality 50, by frequency (ITU-T T.81, tables K.1 and K.2)."""


def recolour(
    pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Change colours by one linear map per picture.

    Args:
        pictures: see the module.
        brightness: factor of all values.
        contrast: factor of the distance from the picture's mean luminance.
        saturation: factor of the chrominance.
        hue: rotation of the chrominance, radians.
    """
    ycbcr, rgb = _matrices(pictures.device)
    turn = torch.zeros(len(pictures), 3, 3, device=pictures.device)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
    turn[:, 2, 1] = saturation * hue.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    colours = (brightness * contrast)[:, None, None] * (rgb @ turn @ ycbcr)
    middle = pictures.mean((2, 3)) @ ycbcr[0]
    offset = (brightness * (1 - contrast) * middle)[:, None, None]
    changed = torch.baddbmm(offset, colours, pictures.flatten(2))
    return changed.view_as(pictures).clamp_(0, 255)


def blur(pictures: Tensor, deviation: Tensor) -> Tensor:
    """Blur with a Gaussian of the given standard deviation in pixels, cut off at the borders."""
    places = torch.arange(pictures.shape[-1], device=pictures.device)
    squares = (places[:, None] - places).square()
    weights = (-0.5 * squares / deviation.clamp(min=1e-3).square()[:, None, None]).exp()
    rows = (weights / weights.sum(-1, keepdim=True))[:, None]
    return rows @ pictures @ rows.mT


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """Quantise blocks of 8 x 8 pixels as JPEG does at a quality of 1 to 100, without subsampling.

    The quality is rounded, and scales the standard tables as libjpeg does.
    """
    side, cut = pictures.shape[-1], -pictures.shape[-1] % 8
    ycbcr, rgb = _matrices(pictures.device)
    wave, steps = _dct(pictures.device)
    padded = F.pad(pictures, (0, cut, 0, cut), mode="replicate") - 128  # chrominance stays as it is
    planes = torch.einsum("kc,bchw->bkhw", ycbcr, padded)
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
    frequencies = torch.einsum("uy,bkhywx,vx->bkhuwv", wave, blocks, wave)
    quality = quality.round()
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    tables = ((steps * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255)
    tables = tables[:, :, None, :, None, :]
    kept = (frequencies / tables).round() * tables
    planes = torch.einsum("uy,bkhuwv,vx->bkhywx", wave, kept, wave).flatten(4, 5).flatten(2, 3)
    decoded = torch.einsum("ck,bkhw->bchw", rgb, planes) + 128
    return decoded[..., :side, :side].clamp(0, 255)


# Constants are cached on the device, because a copy would wait for it.


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return RGB to YCbCr, and back."""
    forth = torch.tensor(_YCBCR, dtype=torch.float64)
    return forth.float().to(device), torch.linalg.inv(forth).float().to(device)


@cache
def _dct(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the orthonormal cosine transform (8, 8), and quantisation steps (3, 8, 8)."""
    place = torch.arange(8, dtype=torch.float64)
    wave = ((place + 0.5) * place[:, None] * math.pi / 8).cos() / 2
    wave[0] /= math.sqrt(2)
    steps = torch.tensor([_LUMINANCE, _CHROMINANCE, _CHROMINANCE], dtype=torch.float32)
    return wave.float().to(device), steps.view(3, 8, 8).to(device)
