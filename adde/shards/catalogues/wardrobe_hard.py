"""The embedded catalogue `wardrobe-hard`: the same figures where it matters how one searches.

6 attributes, 22 values, 2,304 label combinations; every attribute can be seen on every item.
Items are drawn one by one, not in families. What makes it hard:

- a dense label space: in a test split of 2,000, about 11 of the 16 one-attribute edits of an item
  have an exact target, which makes 21,500 queries;
- a long tail: the k-th value of an attribute is drawn with probability proportional to 1 / k;
- 30 % of the training labels are missing at random; val and test are complete;
- one to three patches in the colours of garments lie on every picture, and it is blurred: a
  small network tells an attribute in about 9 of 10 cases, not in all;
- eight pairs of values (`HELD_OUT`) are worn by no item of train or val, and by about 4 of 10
  items of test.
"""

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from adde.schema import UNKNOWN, Attribute, Labels, Schema
from adde.shards.catalogues.voxel import COLOURS, Look, draw
from adde.shards.catalogues.wardrobe import SPLIT_OF_TEN, Figure, check_request, keyed_random

SCHEMA = Schema(
    (
        Attribute("outfit", ("plain", "stripes", "checker")),
        Attribute("top_colour", ("blue", "black", "red", "grey")),
        Attribute("trousers_colour", ("black", "blue", "grey", "green")),
        Attribute("shoes_colour", ("white", "black", "grey", "red")),
        Attribute("headwear", ("cap", "beanie", "bear_ears")),
        Attribute("headwear_colour", ("black", "grey", "green", "red")),
    )
)
"""Values from the most to the least common."""

HELD_OUT = (
    {"outfit": "plain", "top_colour": "grey"},
    {"outfit": "stripes", "headwear": "beanie"},
    {"outfit": "checker", "shoes_colour": "white"},
    {"top_colour": "black", "trousers_colour": "blue"},
    {"top_colour": "red", "headwear_colour": "grey"},
    {"trousers_colour": "grey", "shoes_colour": "black"},
    {"shoes_colour": "grey", "headwear_colour": "black"},
    {"headwear": "bear_ears", "headwear_colour": "red"},
)
"""Pairs of values that only test items wear together."""

MISSING = 0.3
"""Share of the training labels that are UNKNOWN."""

PATCHES = (1, 2, 3)
PATCH_SIDE = (0.18, 0.42)
"""Least and greatest side of a patch, as a share of the picture's side."""
BLUR = (0.0, 0.035)
"""Least and greatest radius of the Gaussian blur, as a share of the picture's side."""


@dataclass(frozen=True)
class ObscuredFigure:
    """A figure yet to be drawn, patched and blurred."""

    figure: Figure
    obscure_seed: str

    def read(self) -> tuple[bytes, str]:
        """The picture as JPEG (blurred, it is half as large as PNG), and "jpg"."""
        figure = self.figure
        image = draw(figure.look, figure.seed, figure.size)
        buffer = io.BytesIO()
        _obscure(image, keyed_random(self.obscure_seed)).save(
            buffer, "JPEG", quality=92, subsampling=0
        )
        return buffer.getvalue(), "jpg"

    def stamp(self) -> str:
        """What it is drawn from."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class WardrobeHard:
    """N labelled figures; a picture is drawn when it is asked for.

    Item i's look, labels and picture are functions of (seed, i) alone.
    """

    name: str
    schema: Schema
    item_ids: tuple[str, ...]
    labels: Labels
    """(N, A) int64: what is known."""
    worn: Labels
    """(N, A) int64: what is drawn, with nothing missing."""
    splits: tuple[str, ...]
    seed: int
    size: int
    factors: Mapping[str, int] = field(default_factory=dict[str, int])

    def source(self, row: int) -> ObscuredFigure:
        """The row's figure as it is worn, and what obscures it."""
        look = self.schema.decode(self.worn[row])
        figure = Figure(look, f"{self.name}/{self.seed}/{row}", self.size)
        return ObscuredFigure(figure, f"{self.name}/{self.seed}/obscure/{row}")


def wardrobe_hard(items: int = 20_000, seed: int = 0, size: int = 64) -> WardrobeHard:
    """The catalogue `wardrobe-hard`; arguments and errors as of `wardrobe`."""
    check_request(items, 10, size)
    splits = tuple(SPLIT_OF_TEN[row % 10] for row in range(items))
    rngs = [keyed_random("wardrobe-hard", seed, "look", row) for row in range(items)]
    worn = np.stack([SCHEMA.encode(_look(rng, split)) for rng, split in zip(rngs, splits)])
    missing = np.array([[rng.random() < MISSING for _ in SCHEMA.names] for rng in rngs])
    missing &= (np.array(splits) == "train")[:, None]
    return WardrobeHard(
        name="wardrobe-hard",
        schema=SCHEMA,
        item_ids=tuple(f"{row:06d}" for row in range(items)),
        labels=np.where(missing, UNKNOWN, worn),
        worn=worn,
        splits=splits,
        seed=seed,
        size=size,
    )


def _look(rng: random.Random, split: str) -> Look:
    while True:
        look = {a.name: _long_tailed(a.values, rng) for a in SCHEMA.attributes}
        if split == "test" or not any(pair.items() <= look.items() for pair in HELD_OUT):
            return look


def _long_tailed(values: tuple[str, ...], rng: random.Random) -> str:
    return rng.choices(values, [1 / rank for rank in range(1, len(values) + 1)])[0]


def _obscure(image: Image.Image, rng: random.Random) -> Image.Image:
    """Lays patches on a picture and blurs it."""
    side = image.width
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.choice(PATCHES)):
        width, height = (rng.uniform(*PATCH_SIDE) * side for _ in range(2))
        left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
        colour = rng.choice(list(COLOURS.values()))
        canvas.rectangle((left, top, left + width, top + height), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * side))
