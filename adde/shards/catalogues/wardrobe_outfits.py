"""The embedded catalogue `wardrobe-outfits`: single garments, and the outfits they make.

A garment is worn by a figure whose other clothes are a mannequin's, and the picture is the part of
the figure where that kind of garment is. Three attributes: the category (5), the colour (8;
glasses have none) and the kind (12: a top's cut, a hat's, a frame's; trousers and shoes have none).

An outfit is drawn from one of ten styles, which are never told. Its top, trousers and shoes are
always there, headwear and glasses each in 6 of 10. Given the style, every value is drawn by itself:
the style's first favourite with .60, its second with .25, else any value. Five styles follow rules
that people dress by (one colour; two that complement each other; neutral with an accent), five are
arbitrary. As the tables are known, so are the best possible answers (`adde.outfits.StyleScorer`).

Whole outfits go to train, val and test (80/10/10), and no item is in two.
"""

import io
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.voxel import COLOURS, GLASSES, HEADWEAR, MANNEQUIN, Look, draw
from adde.shards.catalogues.wardrobe import SPLIT_OF_TEN, check_request, keyed_random
from adde.shards.index import SPLITS
from adde.shards.outfit_lists import BlankList, Judged, OutfitLists, StyleTables

NAME = "wardrobe-outfits"

CATEGORIES = ("top", "trousers", "shoes", "headwear", "glasses")
ALWAYS = ("top", "trousers", "shoes")
OFTEN = 0.6
"""Probability of each other category."""

KINDS = {
    # Not stripes, which are white: on white they cannot be seen.
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
"""Probabilities of a style's first and second favourite; all values share the rest."""

MONOCHROME = (("black", "grey"), ("pink", "red"))
"""A colour for everything, and the second favourite."""
COMPLEMENTS = (("red", "green"), ("blue", "yellow"))
"""A colour for top and headwear, and the one for trousers and shoes."""
NEUTRAL = (("white", "grey"), "red")
"""Favourites of top and trousers, and the accent of shoes and headwear."""
ARBITRARY = 5
STYLES = len(MONOCHROME) + len(COMPLEMENTS) + 1 + ARBITRARY

ANSWERS = 4
"""Of a question of FITB."""
MIN_ITEMS = 40 * len(CATEGORIES)
"""Forty outfits, so that every split has ANSWERS tops."""

PARTS = {
    "top": (0.255, 0.52, 0.46),
    "trousers": (0.31, 0.64, 0.36),
    "shoes": (0.335, 0.70, 0.30),
    "headwear": (0.19, 0.00, 0.64),
    "glasses": (0.20, 0.20, 0.54),
}
"""Left, upper edge and side of the part of a figure where a garment is, as shares of its side. As
figures are shifted and scaled, a part is wider than its garment."""

Outfit = list[int]
"""Rows of its items."""


@dataclass(frozen=True)
class Garment:
    """A garment yet to be drawn."""

    category: str
    look: Look
    seed: str
    size: int

    def read(self) -> tuple[bytes, str]:
        """The part of the figure that wears it, as PNG, and "png"."""
        left, upper, side = PARTS[self.category]
        whole = round(self.size / side)
        x, y = round(left * whole), round(upper * whole)
        picture = draw(self.look, self.seed, whole).crop((x, y, x + self.size, y + self.size))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue(), "png"

    def stamp(self) -> str:
        """What it is drawn from."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class WardrobeOutfits:
    """N garments; a picture is drawn when it is asked for.

    Outfit o's garments are a function of (seed, o) alone: a larger catalogue begins with the
    smaller.
    """

    name: str
    schema: Schema
    item_ids: tuple[str, ...]
    labels: Labels
    """(N, 3) int64."""
    splits: tuple[str, ...]
    given: OutfitLists
    seed: int
    size: int
    factors: Mapping[str, int] = field(default_factory=dict[str, int])

    def source(self, row: int) -> Garment:
        """The row's garment."""
        shown = self.schema.decode(self.labels[row])
        category = str(shown["category"])
        look = _look(category, shown["colour"], shown["kind"])
        return Garment(category, look, f"{self.name}/{self.seed}/{self.item_ids[row]}", self.size)


def _look(category: str, colour: str | None, kind: str | None) -> Look:
    """A figure that wears a garment, and otherwise a mannequin's clothes."""
    look: dict[str, str | None] = {
        "outfit": kind if category == "top" else "plain",
        "headwear": kind if category == "headwear" else "none",
        "glasses": kind if category == "glasses" else "none",
        "layer_colour": MANNEQUIN,
    }
    for name in COLOURED:
        look[f"{name}_colour"] = colour if name == category else MANNEQUIN
    return look


def wardrobe_outfits(items: int = 20_000, seed: int = 0, size: int = 64) -> WardrobeOutfits:
    """The catalogue `wardrobe-outfits`.

    Args:
        items: the most garments, N; outfits are whole.
        seed: of everything that is random.
        size: side of a picture in pixels.

    Raises:
        UserError: fewer items than fill every split, or a size that cannot be drawn.
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
    given = _given(by_split, item_ids, every[:, 0], tables, seed)
    return WardrobeOutfits(NAME, SCHEMA, tuple(item_ids), every, tuple(splits), given, seed, size)


def style_tables(seed: int) -> StyleTables:
    """The probabilities of the styles, and (S, C, V) of the values of each category in each."""
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
    """Favourite colours by category, of the styles that follow rules."""
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
    """Two colours, the first of those that are the fewest other styles' first favourite."""
    taken = Counter(dict.fromkeys(COLOURS, 0))
    taken.update(favourites[category][0] for favourites in others)
    first = rng.choice([colour for colour in COLOURS if taken[colour] == min(taken.values())])
    return first, rng.choice([colour for colour in COLOURS if colour != first])


def _fill(
    row: npt.NDArray[np.float64], name: str, values: Sequence[str], favourites: Sequence[str]
) -> None:
    """Writes the probabilities of an attribute's values into a row (V,)."""
    offset = SCHEMA.offsets[SCHEMA.attribute_index(name)]
    columns = {value: offset + SCHEMA.value_index(name, value) for value in values}
    if len(values) == 1:
        row[columns[values[0]]] = 1
        return
    row[[*columns.values()]] = (1 - sum(FAVOURITES)) / len(values)
    for value, probability in zip(favourites, FAVOURITES):
        row[columns[value]] += probability


def _outfits(tables: StyleTables, seed: int) -> Iterator[list[dict[str, str | None]]]:
    """Garments by attribute, outfit after outfit without end."""
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


def _given(
    by_split: dict[str, list[Outfit]],
    item_ids: Sequence[str],
    categories: Labels,
    tables: StyleTables,
    seed: int,
) -> OutfitLists:
    """The outfits, with questions about those of val and test."""
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
            # Of a category that nothing else has, the item stays.
            replaced = [o for row in outfit for o in others.draw(row, 1, rng) or [row]]
            judged[split].append(Judged(True, _named(outfit, item_ids)))
            judged[split].append(Judged(False, _named(replaced, item_ids)))
    outfits = {
        split: [_named(outfit, item_ids) for outfit in found] for split, found in by_split.items()
    }
    return OutfitLists("category", outfits, blanks, judged, oracle=tables)


class _Others:
    """The items of a split by category, to draw others of an item's category from."""

    def __init__(self, outfits: list[Outfit], categories: Labels) -> None:
        self._categories = categories
        self._alike: dict[int, list[int]] = {}
        for row in (row for outfit in outfits for row in outfit):
            self._alike.setdefault(int(categories[row]), []).append(row)

    def count(self, row: int) -> int:
        """How many others there are."""
        return len(self._alike[int(self._categories[row])]) - 1

    def draw(self, row: int, count: int, rng: random.Random) -> list[int]:
        """Different others, as many as there are."""
        alike = [other for other in self._alike[int(self._categories[row])] if other != row]
        return rng.sample(alike, min(count, len(alike)))


def _named(rows: Sequence[int], item_ids: Sequence[str]) -> list[str]:
    return [item_ids[row] for row in rows]
