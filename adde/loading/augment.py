"""Change a batch of training pictures at random, on the device."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adde.distributed import RankRows
from adde.errors import UserError
from adde.loading.photometric import blur, jpeg, recolour
from adde.mining.draws import uniform
from adde.schema import Schema

BASIC = ("flip", "shift_x", "shift_y", "resize")
"""Uniform draws per picture that every augmentation needs."""

NAMES = (
    *BASIC,
    *("crop_area", "crop_shape", "crop_x", "crop_y"),
    *("erased", "erased_area", "erased_shape", "erased_x", "erased_y"),
    *("colour_item", "colour_x", "colour_y"),
    *("brightness", "contrast", "saturation", "hue", "blur", "jpeg"),
)
"""All uniform draws per picture, in order."""

GREY = 127.5
"""The neutral colour, on the 0..255 scale."""

SMALLEST_ERASED = 0.02
"""Smallest share of a picture's area that is erased, unless `erase_area` is smaller."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training pictures. Except for `hue` and `saturation`, they keep what
    attributes usually say.
    """

    flip: bool = True
    """Mirror half of the pictures."""

    shift: float = 0.05
    """Largest shift in each direction, as a share of the side."""

    scale: float = 0.1
    """Largest change of size, as a share: 0.1 scales by 0.9 to 1.1."""

    crop: float = 1.0
    """Smallest share of the area that a random crop keeps, enlarged to the whole side; 1: no
    crop."""

    crop_aspect: float = 4 / 3
    """Largest ratio between the sides of a crop."""

    erase: float = 0.0
    """Share of pictures in which a random rectangle is erased."""

    erase_area: float = 0.2
    """Largest share of the area that is erased."""

    erase_with: Literal["batch", "neutral"] = "batch"
    """Colour of the rectangle. batch: that of a random pixel of another random picture of the
    batch; neutral: grey."""

    brightness: float = 0.0
    """Largest change of brightness, as a share."""

    contrast: float = 0.0
    """Largest change of contrast, as a share."""

    saturation: float = 0.0
    """Largest change of saturation, as a share; refused if the schema marks a colour."""

    hue: float = 0.0
    """Largest turn of the hue, as a share of the colour circle, up to 0.5; refused if the schema
    marks a colour."""

    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in pixels of the model's input."""

    jpeg: int = 100
    """Lowest quality of JPEG noise, from 1; 100: none."""

    def __post_init__(self) -> None:
        """Check ranges."""
        shares = ("erase", "erase_area", "brightness", "contrast", "saturation")
        ranges: dict[str, tuple[float, float]] = dict.fromkeys(shares, (0.0, 1.0))
        ranges |= {"hue": (0.0, 0.5), "jpeg": (1, 100), "blur": (0.0, math.inf)}
        ranges |= {"crop_aspect": (1.0, math.inf)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name}: expected {low:g} to {high:g}, found {getattr(self, name):g}"
                )
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop: expected above 0 and up to 1, found {self.crop:g}")

    @property
    def recolours(self) -> bool:
        """Whether any change of colours is on."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def draws(self) -> tuple[str, ...]:
        """Return the names of the draws that these settings need."""
        more = self.crop < 1 or self.erase or self.recolours or self.blur or self.jpeg < 100
        return NAMES if more else BASIC

    def require_colours_kept(self, schema: Schema) -> None:
        """Raise UserError if hue or saturation change although an attribute is a colour."""
        colours = [attribute.name for attribute in schema.attributes if attribute.colour]
        for name in ("hue", "saturation"):
            if getattr(self, name) and colours:
                raise UserError(
                    f"augmentation.{name}: expected 0, because the schema marks {colours[0]!r} as "
                    f"a colour, found {getattr(self, name):g}; use brightness and contrast, which "
                    "keep colours"
                )


def draw(images: Tensor, settings: Augmentation, key: int, ranks: RankRows) -> Tensor:
    """Draw everything random for this rank's pictures; it depends on the item, not on the rank.

    Args:
        images: (b, S, S, 3) uint8.
        settings: of the augmentation.
        key: see `adde.mining.draw_key`.
        ranks: rows of the global batch on each rank.

    Returns:
        (b, n) float32: the draws, uniform in [0, 1); then, to erase with colours of the batch, the
        red, green and blue of the rectangle.
    """
    draws = uniform(key, ranks.columns(images.device), len(settings.draws()))
    if not settings.erase or settings.erase_with == "neutral":
        return draws
    drawn = dict(zip(NAMES, draws.unbind(1)))
    row, column = ((drawn[n] * images.shape[1]).long() for n in ("colour_y", "colour_x"))
    own = images[torch.arange(len(images), device=images.device), row, column]
    colours = ranks.gather(own.float())
    return torch.cat([draws, colours[(drawn["colour_item"] * len(colours)).long()]], 1)


def augment(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Transform pictures; areas from outside a picture repeat its border.

    Args:
        images: (B, S, S, 3) uint8.
        draws: (B, n) float32, from `draw`.
        settings: Strength of the changes.

    Returns:
        (B, 3, S, S) float32 on the 0..255 scale.
    """
    drawn = dict(zip(NAMES, draws.unbind(1)))
    pictures = _move(images.permute(0, 3, 1, 2).float(), draws, drawn, settings)
    if settings.recolours:
        brightness, contrast, saturation = (
            1 + getattr(settings, name) * (2 * drawn[name] - 1)
            for name in ("brightness", "contrast", "saturation")
        )
        turn = 2 * math.pi * settings.hue * (2 * drawn["hue"] - 1)
        pictures = recolour(pictures, brightness, contrast, saturation, turn)
    if settings.blur:
        pictures = blur(pictures, settings.blur * drawn["blur"])
    if settings.jpeg < 100:
        pictures = jpeg(pictures, settings.jpeg + (100 - settings.jpeg) * drawn["jpeg"])
    if settings.erase:
        pictures = _erase(pictures, drawn, draws[:, len(NAMES) :], settings)
    return pictures


def _move(
    pictures: Tensor, draws: Tensor, drawn: dict[str, Tensor], settings: Augmentation
) -> Tensor:
    """Crop, flip, shift and scale in one resampling."""
    signed = 2 * draws[:, : len(BASIC)] - 1
    scale = 1 + settings.scale * signed[:, 3]
    flip = torch.where(signed[:, 0] < 0, -1.0, 1.0) if settings.flip else torch.ones_like(scale)
    # The affine map goes from output to input coordinates in -1..1, so half a side is 1.
    affine = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    affine[:, 0, 0], affine[:, 1, 1] = flip / scale, 1 / scale
    affine[:, :, 2] = 2 * settings.shift * signed[:, 1:3]
    if settings.crop < 1:
        area = 1 - (1 - settings.crop) * drawn["crop_area"]
        # Flatter than this, a crop of this area would not fit into the picture.
        aspect = (-area.log()).clamp(max=math.log(settings.crop_aspect))
        sides = _sides(area, aspect * (2 * drawn["crop_shape"] - 1))
        affine *= sides[:, :, None]
        affine[:, :, 2] += (1 - sides) * (
            2 * torch.stack([drawn["crop_x"], drawn["crop_y"]], 1) - 1
        )
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _erase(
    pictures: Tensor, drawn: dict[str, Tensor], colours: Tensor, settings: Augmentation
) -> Tensor:
    """Fill a rectangle of some pictures with `colours` (B, 3), or grey if these are (B, 0)."""
    least = min(SMALLEST_ERASED, settings.erase_area)
    area = least + (settings.erase_area - least) * drawn["erased_area"]
    sides = _sides(area, math.log(2) * (2 * drawn["erased_shape"] - 1))
    start = (1 - sides) * torch.stack([drawn["erased_x"], drawn["erased_y"]], 1)
    side = pictures.shape[-1]
    middles = (torch.arange(side, device=pictures.device) + 0.5) / side
    inside = (start[:, :, None] <= middles) & (middles < (start + sides)[:, :, None])  # (B, 2, S)
    inside &= (drawn["erased"] < settings.erase)[:, None, None]
    covered = inside[:, None, 1, :, None] & inside[:, None, 0, None, :]
    fill = colours[:, :, None, None] if settings.erase_with == "batch" else GREY
    return torch.where(covered, fill, pictures)


def _sides(area: Tensor, log_aspect: Tensor) -> Tensor:
    """Return width and height (B, 2) of rectangles, as shares of the side, at most 1."""
    half = log_aspect / 2
    return (area.sqrt()[:, None] * torch.stack([half, -half], 1).exp()).clamp(max=1)
