"""The embedded catalogue `wardrobe-outfits`: single garments, and the outfits they form.

A figure wears the garment over the clothes of a mannequin, and the picture shows the part of the
figure where that kind of garment is. There are three attributes: the category (5 values), the
colour (8; unknown for glasses) and the kind (12: cut of a top, type of hat or frame; unknown for
trousers and shoes).

An outfit is drawn from one of ten hidden styles. It always has a top, trousers and shoes, and has
headwear and glasses with probability 0.6 each. Given the style, values are independent: the style's
first favourite with probability 0.60, its second with 0.25, any value otherwise. Five styles follow
common dress rules (one colour; two complementary ones; neutral with an accent), five are arbitrary.
The tables are known, and so are the best possible answers (`adde.outfits.StyleScorer`).

Whole outfits go to train, val and test (80/10/10), and no item is in two of them.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.drawn.voxel import COLOURS, GLASSES, HEADWEAR, MANNEQUIN, Look, draw
from adde.shards.catalogues.drawn.wardrobe import SPLIT_OF_TEN, check_request, keyed_random
from adde.shards.catalogues.pictures import encode
from adde.shards.index import SPLITS
from adde.shards.outfit_lists import BlankList, Judged, OutfitLists, StyleTables

NAME = "wardrobe-outfits"

CATEGORIES = ("top", "trousers", "shoes", "headwear", "glasses")
ALWAYS = ("top", "trousers", "shoes")
OFTEN = 0.6
"""Probability of each other category."""

KINDS = {
    # Without stripes: they are white, and so invisible on a white top.
    "top": ("plain", "checker", "hoodie", "overalls", "jacket", "tie"),
    "headwear": tuple(kind for kind in HEADWEAR if kind != "none"),
    "glasses": tuple(kind for kind in GLASSES if kind != "none"),
}
COLOURED = ("top", "trousers", "shoes", "headwear")

SCHEMA = Schema(
    (
        Attribute("category", CATEGORIES),
        Attribute("colour", tuple(COLOURS)),
        Attribute("kind", tuple(kind for kinds in KINDS.values() for kind in kinds)),
    )
)

FAVOURITES = (0.60, 0.25)
"""Probabilities of a style's first and second favourite; all values share the remainder."""

MONOCHROME = (("black", "grey"), ("pink", "red"))
"""The colour of everything, and the second favourite."""
COMPLEMENTS = (("red", "green"), ("blue", "yellow"))
"""The colour of top and headwear, and that of trousers and shoes."""
NEUTRAL = (("white", "grey"), "red")
"""Favourites of top and trousers, and the accent of shoes and headwear."""
ARBITRARY = 5
STYLES = len(MONOCHROME) + len(COMPLEMENTS) + 1 + ARBITRARY

ANSWERS = 4
"""Answers to a fill-in-the-blank question."""
MIN_ITEMS = 40 * len(CATEGORIES)
"""Items of forty outfits, so that every split has ANSWERS tops."""

PARTS = {
    "top": (0.255, 0.52, 0.46),
    "trousers": (0.31, 0.64, 0.36),
    "shoes": (0.335, 0.70, 0.30),
    "headwear": (0.19, 0.00, 0.64),
    "glasses": (0.20, 0.20, 0.54),
}
"""Left and upper edge and side of the part of a figure with a garment, as shares of the figure's
side. A part is wider than its garment, because figures are shifted and scaled."""

Outfit = list[int]
"""Rows of the items."""


@dataclass(frozen=True)
class Garment(PictureSource):
    """A garment to be drawn later."""

    category: str
    look: Look
    seed: str
    size: int

    def read(self) -> tuple[bytes, str]:
        """Return the part of the figure with the garment, as PNG."""
        left, upper, side = PARTS[self.category]
        whole = round(self.size / side)
        x, y = round(left * whole), round(upper * whole)
        picture = draw(self.look, self.seed, whole).crop((x, y, x + self.size, y + self.size))
        return encode(picture, "PNG")


def _look(category: str, colour: str | None, kind: str | None) -> Look:
    """Return the look of a figure that wears a garment over a mannequin's clothes."""
    look: dict[str, str | None] = {
        "outfit": kind if category == "top" else "plain",
        "headwear": kind if category == "headwear" else "none",
        "glasses": kind if category == "glasses" else "none",
        "layer_colour": MANNEQUIN,
    }
    for name in COLOURED:
        look[f"{name}_colour"] = colour if name == category else MANNEQUIN
    return look


def wardrobe_outfits(items: int = 20_000, seed: int = 0, size: int = 64) -> Catalogue:
    """Return the catalogue `wardrobe-outfits`.

    Outfit o depends on (seed, o) only, so a larger catalogue begins with the smaller one.

    Args:
        items: Upper limit on the number of garments; outfits stay whole.
        seed: Seed of everything random.
        size: Side of a picture in pixels.

    Raises:
        UserError: There are too few items to fill every split, or the size cannot be drawn.
    """
    check_request(items, MIN_ITEMS, size)
    tables = style_tables(seed)
    item_ids, labels, splits = list[str](), list[Labels](), list[str]()
    by_split: dict[str, list[Outfit]] = {split: [] for split in SPLITS}
    for number, outfit in enumerate(_outfits(tables, seed)):
        if len(labels) + len(outfit) > items:
            break
        split = SPLIT_OF_TEN[number % 10]
        by_split[split].append([*range(len(labels), len(labels) + len(outfit))])
        for garment in outfit:
            item_ids.append(f"{number:06d}-{garment['category']}")
            labels.append(SCHEMA.encode(garment))
            splits.append(split)
    every = np.stack(labels)
    lists = _questions(by_split, item_ids, every[:, 0], tables, seed)

    def source(row: int) -> Garment:
        shown = SCHEMA.decode(every[row])
        category = str(shown["category"])
        look = _look(category, shown["colour"], shown["kind"])
        return Garment(category, look, f"{NAME}/{seed}/{item_ids[row]}", size)

    return Catalogue(NAME, SCHEMA, item_ids, every, splits, source, benchmark=lists)


def style_tables(seed: int) -> StyleTables:
    """Return the probabilities (S,) of the styles and (S, C, V) of values by style and category."""
    rng = keyed_random(NAME, seed, "styles")
    values = np.zeros((STYLES, len(CATEGORIES), SCHEMA.num_values))
    colours = [*_colour_rules()]
    for _ in range(ARBITRARY):
        colours.append({category: _any_colours(category, colours, rng) for category in COLOURED})
    for style, favourites in enumerate(colours):
        for c, category in enumerate(CATEGORIES):
            _fill(values[style, c], "category", (category,), (category,))
            if category in COLOURED:
                _fill(values[style, c], "colour", tuple(COLOURS), favourites[category])
            if kinds := KINDS.get(category):
                _fill(values[style, c], "kind", kinds, rng.sample(kinds, 2))
    return StyleTables(np.full(STYLES, 1 / STYLES), values)


def _colour_rules() -> Iterator[dict[str, Sequence[str]]]:
    """Yield the favourite colours by category of each style that follows a rule."""
    for pair in MONOCHROME:
        yield dict.fromkeys(COLOURED, pair)
    for above, below in COMPLEMENTS:
        high, low = (above, below), (below, above)
        yield {"top": high, "headwear": high, "trousers": low, "shoes": low}
    neutral, accent = NEUTRAL
    accents = (accent, neutral[0])
    yield {"top": neutral, "trousers": neutral[::-1], "shoes": accents, "headwear": accents}


def _any_colours(
    category: str, others: Sequence[dict[str, Sequence[str]]], rng: random.Random
) -> Sequence[str]:
    """Return two colours; the first is one that the fewest other styles have as first favourite."""
    taken = Counter(dict.fromkeys(COLOURS, 0))
    taken.update(favourites[category][0] for favourites in others)
    first = rng.choice([colour for colour in COLOURS if taken[colour] == min(taken.values())])
    return first, rng.choice([colour for colour in COLOURS if colour != first])


def _fill(
    row: npt.NDArray[np.float64], name: str, values: Sequence[str], favourites: Sequence[str]
) -> None:
    """Write the probabilities of an attribute's values into a row (V,)."""
    offset = SCHEMA.offsets[SCHEMA.attribute_index(name)]
    columns = {value: offset + SCHEMA.value_index(name, value) for value in values}
    if len(values) == 1:
        row[columns[values[0]]] = 1
        return
    row[[*columns.values()]] = (1 - sum(FAVOURITES)) / len(values)
    for value, probability in zip(favourites, FAVOURITES):
        row[columns[value]] += probability


def _outfits(tables: StyleTables, seed: int) -> Iterator[list[dict[str, str | None]]]:
    """Yield the garments of one outfit after another, without end."""
    number = 0
    while True:
        rng = keyed_random(NAME, seed, "outfit", number)
        style = rng.choices(range(STYLES), tables.prior.tolist())[0]
        worn = [name for name in CATEGORIES if name in ALWAYS or rng.random() < OFTEN]
        yield [_garment(tables, style, category, rng) for category in worn]
        number += 1


def _garment(
    tables: StyleTables, style: int, category: str, rng: random.Random
) -> dict[str, str | None]:
    row = tables.values[style, CATEGORIES.index(category)]
    garment: dict[str, str | None] = {"category": category}
    for attribute, offset in [*zip(SCHEMA.attributes, SCHEMA.offsets)][1:]:
        weights = row[offset : offset + len(attribute.values)].tolist()
        garment[attribute.name] = (
            rng.choices(attribute.values, weights)[0] if any(weights) else None
        )
    return garment


def _questions(
    by_split: dict[str, list[Outfit]],
    item_ids: Sequence[str],
    categories: Labels,
    tables: StyleTables,
    seed: int,
) -> OutfitLists:
    """Return the outfits, with questions about those of val and test."""
    blanks, judged = dict[str, list[BlankList]](), dict[str, list[Judged]]()
    for split in ("val", "test"):
        rng = keyed_random(NAME, seed, "questions", split)
        others = _Others(by_split[split], categories)
        blanks[split], judged[split] = [], []
        for outfit in by_split[split]:
            missing = rng.choice([row for row in outfit if others.count(row) >= ANSWERS - 1])
            answers = [missing, *others.draw(missing, ANSWERS - 1, rng)]
            rng.shuffle(answers)
            rest = [row for row in outfit if row != missing]
            named = _named(rest, item_ids), _named(answers, item_ids)
            blanks[split].append(BlankList(*named, answers.index(missing)))
            # The item stays if the split has no other item of its category.
            replaced = [o for row in outfit for o in others.draw(row, 1, rng) or [row]]
            judged[split].append(Judged(True, _named(outfit, item_ids)))
            judged[split].append(Judged(False, _named(replaced, item_ids)))
    outfits = {
        split: [_named(outfit, item_ids) for outfit in found] for split, found in by_split.items()
    }
    return OutfitLists("category", outfits, blanks, judged, oracle=tables)


class _Others:
    """Draws other items of the same split and category as an item."""

    def __init__(self, outfits: list[Outfit], categories: Labels) -> None:
        self._categories = categories
        self._by_category: dict[int, list[int]] = {}
        for row in (row for outfit in outfits for row in outfit):
            self._by_category.setdefault(int(categories[row]), []).append(row)

    def count(self, row: int) -> int:
        """Return the number of other items."""
        return len(self._by_category[int(self._categories[row])]) - 1

    def draw(self, row: int, count: int, rng: random.Random) -> list[int]:
        """Return up to `count` different others."""
        others = [o for o in self._by_category[int(self._categories[row])] if o != row]
        return rng.sample(others, min(count, len(others)))


def _named(rows: Sequence[int], item_ids: Sequence[str]) -> list[str]:
    return [item_ids[row] for row in rows]
