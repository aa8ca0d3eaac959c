"""The embedded catalogue `wardrobe`: families of clothed figures that are easy to tell apart.

It has 8 attributes with 61 values. A family is a base item and two to five variants, each of which
differs from the base in exactly one label. Every member has its own seed, so skin, hair, face,
background, position and scale differ as well. Whole families go to train, val and test (80/10/10).
An attribute that is not visible on an item is UNKNOWN.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.drawn.voxel import (
    COLOURS,
    GLASSES,
    HEADWEAR,
    HIDDEN,
    Look,
    ambiguous,
    draw,
    visible,
)
from adde.shards.catalogues.pictures import encode

SCHEMA = Schema(
    (
        Attribute("outfit", tuple(HIDDEN)),
        Attribute("top_colour", tuple(COLOURS)),
        Attribute("layer_colour", tuple(COLOURS)),
        Attribute("trousers_colour", tuple(COLOURS)),
        Attribute("shoes_colour", tuple(COLOURS)),
        Attribute("headwear", tuple(HEADWEAR)),
        Attribute("headwear_colour", tuple(COLOURS)),
        Attribute("glasses", tuple(GLASSES)),
    )
)
VARIANTS = (2, 3, 4, 5)
"""Possible numbers of variants in a family."""
SPLIT_OF_TEN = ("train",) * 4 + ("val",) + ("train",) * 4 + ("test",)
"""Split of family f, by f % 10. Families are independent draws, so a fixed rule is fair."""
MIN_ITEMS = 10 * (1 + max(VARIANTS))
"""Items of ten families, so that every split gets one."""
SIZES = (16, 1024)
"""Smallest and largest side of a picture in pixels."""


@dataclass(frozen=True)
class Figure(PictureSource):
    """A figure to be drawn later."""

    look: Look
    seed: str
    size: int

    def read(self) -> tuple[bytes, str]:
        """Return the figure as PNG, which is exact and for flat faces smaller than JPEG."""
        return encode(draw(self.look, self.seed, self.size), "PNG")


def wardrobe(items: int = 20_000, seed: int = 0, size: int = 64) -> Catalogue:
    """Return the catalogue `wardrobe`.

    Item i depends on (seed, i) only, so a larger catalogue begins with the smaller one.

    Args:
        items: Number of figures, N.
        seed: Seed of everything random.
        size: Side of a picture in pixels.

    Raises:
        UserError: There are too few items to give every split a family, or the size cannot be
            drawn.
    """
    check_request(items, MIN_ITEMS, size)
    members = list(islice(_members(seed), items))
    labels = np.stack([SCHEMA.encode(look) for _, _, look in members])
    return Catalogue(
        name="wardrobe",
        schema=SCHEMA,
        item_ids=tuple(item_name(family, member) for family, member, _ in members),
        labels=labels,
        splits=tuple(SPLIT_OF_TEN[family % 10] for family, _, _ in members),
        source=lambda row: Figure(SCHEMA.decode(labels[row]), figure_seed(seed, row), size),
    )


def redraw(
    item_ids: Sequence[str], labels: Labels, size: int, seed: int
) -> list[npt.NDArray[np.uint8] | None]:
    """See `adde.shards.catalogues.drawn.redraw`; a figure keeps its background, hair and face."""
    left, rows = set(item_ids), dict[str, int]()
    for row, (family, member, _) in enumerate(_members(seed)):
        item_id = item_name(family, member)
        if item_id in left:
            rows[item_id] = row
            left.remove(item_id)
        if not left:
            break
    found: list[npt.NDArray[np.uint8] | None] = []
    for item_id, wanted in zip(item_ids, labels):
        look = SCHEMA.decode(wanted)
        there = all(visible(name, look) == (word is not None) for name, word in look.items())
        picture = None
        if there and not ambiguous(look):
            picture = np.asarray(draw(look, figure_seed(seed, rows[item_id]), size))
        found.append(picture)
    return found


def item_name(family: int, member: int) -> str:
    """Return the id of a member of a family."""
    return f"{family:06d}-{member}"


def figure_seed(seed: int, row: int) -> str:
    """Return DiceBear's seed of a figure in a catalogue of seed `seed`."""
    return f"wardrobe/{seed}/{row}"


def check_request(items: int, least: int, size: int) -> None:
    """Raise UserError for a catalogue too small to fill its splits, or a size out of SIZES."""
    if items < least:
        raise UserError(f"items: expected at least {least} to fill every split, found {items}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"size: expected {SIZES[0]} to {SIZES[1]} pixels, found {size}")


def keyed_random(*key: object) -> random.Random:
    """Return a generator that depends on its key only: it is the same in every process and run."""
    return random.Random("/".join(map(str, key)))  # a str is hashed with sha512, unsalted


def _members(seed: int) -> Iterator[tuple[int, int, Look]]:
    """Yield (family, member, look) without end; member 0 is the family's base."""
    family = 0
    while True:
        rng = keyed_random("wardrobe", seed, "family", family)
        for member, look in enumerate(_family(rng)):
            yield family, member, look
        family += 1


def _family(rng: random.Random) -> list[Look]:
    base = _base(rng)
    looks = [base]
    for _ in range(rng.choice(VARIANTS)):
        variant = base
        while variant in looks:
            variant = _variant(base, rng)
        looks.append(variant)
    return looks


def _base(rng: random.Random) -> Look:
    while True:
        look = {a.name: rng.choice(a.values) for a in SCHEMA.attributes}
        seen = {name: word if visible(name, look) else None for name, word in look.items()}
        if not ambiguous(seen):
            return seen


def _variant(base: Look, rng: random.Random) -> Look:
    """Return the base with one known label changed; all attributes stay as visible as they were."""
    attribute = rng.choice([a for a in SCHEMA.attributes if base[a.name] is not None])
    while True:
        look = {**base, attribute.name: rng.choice(attribute.values)}
        same = all(visible(name, look) == (word is not None) for name, word in base.items())
        if same and not ambiguous(look):
            return look
