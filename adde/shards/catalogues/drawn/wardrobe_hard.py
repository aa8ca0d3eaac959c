"""The embedded catalogue `wardrobe-hard`: the same figures, as a harder search problem.

It has 6 attributes, 22 values and 2,304 label combinations; every attribute is visible on every
item. Items are drawn one by one, not in families. The difficulties are:

- a dense label space: in a test split of 2,000, about 11 of the 16 one-attribute edits of an item
  have an exact target, which makes 21,500 queries;
- a long tail: the k-th value of an attribute is drawn with probability proportional to 1 / k;
- missing labels: 30 % of the training labels, at random; val and test are complete;
- obscured pictures: each has one to three patches in the colours of garments and is blurred, so
  that a small network recognises an attribute in about 9 of 10 cases;
- new combinations: eight pairs of values (`HELD_OUT`) occur in no item of train or val, and in
  about 4 of 10 items of test.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from adde.schema import UNKNOWN, Attribute, Schema
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.drawn.voxel import COLOURS, Look, draw
from adde.shards.catalogues.drawn.wardrobe import SPLIT_OF_TEN, Figure, check_request, keyed_random
from adde.shards.catalogues.pictures import JPEG_QUALITY, encode

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
"""Pairs of values that occur together in test items only."""

MISSING = 0.3
"""Share of the training labels that are UNKNOWN."""

PATCHES = (1, 2, 3)
PATCH_SIDE = (0.18, 0.42)
"""Smallest and largest side of a patch, as a share of the picture's side."""
BLUR = (0.0, 0.035)
"""Smallest and largest radius of the Gaussian blur, as a share of the picture's side."""


@dataclass(frozen=True)
class ObscuredFigure(PictureSource):
    """A figure to be drawn later, then patched and blurred."""

    figure: Figure
    obscure_seed: str

    def read(self) -> tuple[bytes, str]:
        """Return the picture as JPEG, which is half as large as PNG for a blurred picture."""
        figure = self.figure
        image = draw(figure.look, figure.seed, figure.size)
        obscured = _obscure(image, keyed_random(self.obscure_seed))
        return encode(obscured, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def wardrobe_hard(items: int = 20_000, seed: int = 0, size: int = 64) -> Catalogue:
    """Return the catalogue `wardrobe-hard`; see `wardrobe` for arguments and errors."""
    check_request(items, 10, size)
    splits = tuple(SPLIT_OF_TEN[row % 10] for row in range(items))
    rngs = [keyed_random("wardrobe-hard", seed, "look", row) for row in range(items)]
    worn = np.stack([SCHEMA.encode(_look(rng, split)) for rng, split in zip(rngs, splits)])
    missing = np.array([[rng.random() < MISSING for _ in SCHEMA.names] for rng in rngs])
    missing &= (np.array(splits) == "train")[:, None]

    def source(row: int) -> ObscuredFigure:
        look = SCHEMA.decode(worn[row])  # complete, whatever labels are missing
        figure = Figure(look, f"wardrobe-hard/{seed}/{row}", size)
        return ObscuredFigure(figure, f"wardrobe-hard/{seed}/obscure/{row}")

    return Catalogue(
        name="wardrobe-hard",
        schema=SCHEMA,
        item_ids=tuple(f"{row:06d}" for row in range(items)),
        labels=np.where(missing, UNKNOWN, worn),
        splits=splits,
        source=source,
    )


def _look(rng: random.Random, split: str) -> Look:
    while True:
        look = {a.name: _long_tailed(a.values, rng) for a in SCHEMA.attributes}
        if split == "test" or not any(pair.items() <= look.items() for pair in HELD_OUT):
            return look


def _long_tailed(values: tuple[str, ...], rng: random.Random) -> str:
    return rng.choices(values, [1 / rank for rank in range(1, len(values) + 1)])[0]


def _obscure(image: Image.Image, rng: random.Random) -> Image.Image:
    """Draw patches on a picture and blur it."""
    side = image.width
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.choice(PATCHES)):
        width, height = (rng.uniform(*PATCH_SIDE) * side for _ in range(2))
        left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
        colour = rng.choice(list(COLOURS.values()))
        canvas.rectangle((left, top, left + width, top + height), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * side))
