"""The embedded catalogue `wardrobe`: families of clothed figures, easy to tell apart.

8 attributes, 61 values. A family is a base item and two to five variants, each of which differs
from the base in exactly one label; every member has its own seed, so skin, hair, face,
background, place and scale differ as well. Whole families go to train, val and test (80/10/10).
An attribute that cannot be seen on an item is UNKNOWN.
"""

import io
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from adde.errors import UserError
from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.voxel import (
    COLOURS,
    GLASSES,
    HEADWEAR,
    HIDDEN,
    Look,
    ambiguous,
    draw,
    visible,
)

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
"""Numbers of variants a family may have."""
SPLIT_OF_TEN = ("train",) * 4 + ("val",) + ("train",) * 4 + ("test",)
"""Family f is in split f % 10; families are independent draws, so any rule that fixed is fair."""
MIN_ITEMS = 10 * (1 + max(VARIANTS))
"""Ten families, so that every split holds one."""
SIZES = (16, 1024)
"""Least and greatest side of a picture in pixels."""


@dataclass(frozen=True)
class Figure:
    """A figure yet to be drawn."""

    look: Look
    seed: str
    size: int

    def read(self) -> tuple[bytes, str]:
        """The figure as PNG (on flat faces smaller than JPEG, and exact), and "png"."""
        buffer = io.BytesIO()
        draw(self.look, self.seed, self.size).save(buffer, "PNG")
        return buffer.getvalue(), "png"

    def stamp(self) -> str:
        """What it is drawn from."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class Wardrobe:
    """N labelled figures; a picture is drawn when it is asked for.

    Item i's look is a function of (seed, i) alone: a larger catalogue begins with the smaller.
    """

    name: str
    schema: Schema
    item_ids: tuple[str, ...]
    labels: Labels
    """(N, A) int64."""
    splits: tuple[str, ...]
    seed: int
    size: int
    factors: Mapping[str, int] = field(default_factory=dict[str, int])
    """None: what a look shows depends on more than one attribute."""

    def source(self, row: int) -> Figure:
        """The row's figure."""
        look = self.schema.decode(self.labels[row])
        return Figure(look, f"{self.name}/{self.seed}/{row}", self.size)


def wardrobe(items: int = 20_000, seed: int = 0, size: int = 64) -> Wardrobe:
    """The catalogue `wardrobe`.

    Args:
        items: number of figures, N.
        seed: of everything that is random.
        size: side of a picture in pixels.

    Raises:
        UserError: fewer items than give every split a family, or a size that cannot be drawn.
    """
    check_request(items, MIN_ITEMS, size)
    members = list(islice(_members(seed), items))
    return Wardrobe(
        name="wardrobe",
        schema=SCHEMA,
        item_ids=tuple(f"{family:06d}-{member}" for family, member, _ in members),
        labels=np.stack([SCHEMA.encode(look) for _, _, look in members]),
        splits=tuple(SPLIT_OF_TEN[family % 10] for family, _, _ in members),
        seed=seed,
        size=size,
    )


def check_request(items: int, least: int, size: int) -> None:
    """Refuses a catalogue too small to fill its splits, and pictures of a senseless size."""
    if items < least:
        raise UserError(f"items: expected at least {least} to fill every split, found {items}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"size: expected {SIZES[0]} to {SIZES[1]} pixels, found {size}")


def keyed_random(*key: object) -> random.Random:
    """A generator that depends on its key alone: the same in every process and on every run."""
    return random.Random("/".join(map(str, key)))  # a str is hashed with sha512, unsalted


def _members(seed: int) -> Iterator[tuple[int, int, Look]]:
    """(family, member, look) without end; member 0 is the family's base."""
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
    """The base with one known label changed, such that all others stay as visible as they were."""
    attribute = rng.choice([a for a in SCHEMA.attributes if base[a.name] is not None])
    while True:
        look = {**base, attribute.name: rng.choice(attribute.values)}
        same_seen = all(visible(name, look) == (word is not None) for name, word in base.items())
        if same_seen and not ambiguous(look):
            return look
