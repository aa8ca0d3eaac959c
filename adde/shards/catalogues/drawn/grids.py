"""Catalogues of exact factors: one item for each combination of their values, or for some."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from adde.errors import UserError
from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.pictures import encode
from adde.shards.catalogues.tables.splits import require_items, splits_by_hash
from adde.shards.catalogues.tables.tabular import TableOptions

Pictures = npt.NDArray[np.uint8]
Source = Callable[[int], PictureSource]
Keys = npt.NDArray[np.int64]
"""(n, 2) seed and number of each item; random properties that are not factors depend on them."""

OPTIONS = ("val_share", "test_share", "hold_out")
"""Fields of TableOptions that apply to a grid."""


class Draw(Protocol):
    """Draws pictures (n, size, size, 3) of labels (n, K). Picklable."""

    def __call__(self, labels: Labels, size: int, keys: Keys) -> Pictures:
        """See the class."""
        ...


@dataclass(frozen=True)
class GridPicture(PictureSource):
    """A picture of a grid to be drawn later."""

    name: str
    draw: Draw
    labels: tuple[int, ...]
    number: int
    seed: int
    size: int

    def read(self) -> tuple[bytes, str]:
        """Return the picture as PNG."""
        labels, key = np.array([self.labels]), np.array([[self.seed, self.number]])
        return encode(Image.fromarray(self.draw(labels, self.size, key)[0]), "PNG")

    def stamp(self) -> str:
        """Return everything that the picture depends on."""
        return repr((self.name, self.labels, self.number, self.seed, self.size))


def numbers(values: npt.NDArray[np.floating[Any]]) -> tuple[str, ...]:
    """Return the names of a factor's numeric values."""
    return tuple(f"{value:.4g}" for value in values)


def numbered(count: int) -> tuple[str, ...]:
    """Return "0", "1" and so on as the names of `count` values."""
    return tuple(map(str, range(count)))


def schema_of(factors: Mapping[str, Sequence[str]]) -> Schema:
    """Return the schema of factors, given their values by name."""
    return Schema(tuple(Attribute(name, tuple(values)) for name, values in factors.items()))


def sizes_of(schema: Schema) -> dict[str, int]:
    """Return the number of values of each factor, for `Catalogue.factors`."""
    return dict(zip(schema.names, schema.sizes))


def all_combinations(sizes: Sequence[int]) -> Labels:
    """Return all combinations (prod(sizes), K) int64; the last factor changes fastest."""
    numbers = np.arange(int(np.prod(sizes)))
    return np.stack(np.unravel_index(numbers, tuple(sizes)), axis=1).astype(np.int64)


def drawn_grid(
    name: str,
    schema: Schema,
    draw: Draw,
    options: TableOptions,
    *,
    items: int,
    seed: int,
    size: int,
    sizes: Sequence[int],
) -> Catalogue:
    """Return some combinations of factors, each once, in an order that `seed` decides.

    A larger catalogue of the same seed begins with the smaller one. An item id is the number of
    its combination in the grid, where the last factor changes fastest.

    Args:
        name: Name of the catalogue.
        schema: The factors.
        draw: Draws the pictures.
        options: The splits.
        items: Number of combinations.
        seed: Decides the order, and the random properties of the pictures.
        size: Side of a picture in pixels.
        sizes: Sides that can be drawn.

    Raises:
        UserError: There are fewer combinations than `items`, the size cannot be drawn, or see
            `grid_splits`.
    """
    total = int(np.prod(schema.sizes))
    if not 1 <= items <= total:
        raise UserError(
            f"items: expected 1 to {total:,}, the combinations of {name}, found {items:,}"
        )
    if size not in sizes:
        shown = f"{sizes[0]} to {sizes[-1]}" if isinstance(sizes, range) else sizes
        raise UserError(f"size: expected {shown} pixels, found {size}")
    chosen = np.random.default_rng(seed).permutation(total)[:items]
    labels = all_combinations(schema.sizes)[chosen]
    item_ids = [f"{number:06d}" for number in chosen.tolist()]

    def picture(row: int) -> GridPicture:
        return GridPicture(name, draw, tuple(labels[row].tolist()), int(chosen[row]), seed, size)

    where = f"{items} items of {name}"
    return grid_catalogue(name, schema, item_ids, labels, picture, options, where)


def grid_catalogue(
    name: str,
    schema: Schema,
    item_ids: Sequence[str] | None,
    labels: Labels,
    source: Source,
    options: TableOptions,
    where: str,
    notices: tuple[str, ...] = (),
) -> Catalogue:
    """Return the catalogue of N items with exact factors; item ids are row numbers if None.

    Raises:
        UserError: See `grid_splits`.
    """
    ids = [f"{row:07d}" for row in range(len(labels))] if item_ids is None else item_ids
    splits = grid_splits(schema, ids, labels, options, where)
    return Catalogue(name, schema, ids, labels, splits, source, notices, sizes_of(schema))


def grid_splits(
    schema: Schema,
    item_ids: Sequence[str],
    labels: Labels,
    options: TableOptions,
    where: str,
) -> tuple[str, ...]:
    """Return the splits of N items, by a hash of their ids.

    With `options.hold_out`, the test split consists of held-out combinations instead.

    Raises:
        UserError: A split is empty, or see `held_out`; the message starts with `where`.
    """
    val, test = options.val_share, options.test_share
    if options.hold_out:
        held = held_out(schema, labels, options.hold_out, test)
        seen = splits_by_hash(item_ids, val, 0)
        splits = tuple("test" if out else split for out, split in zip(held.tolist(), seen))
    else:
        splits = splits_by_hash(item_ids, val, test)
    require_items(splits, val, test, where)
    return splits


def held_out(
    schema: Schema, labels: Labels, names: Sequence[str], share: float
) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: whether training must not see an item's combination of the factors `names`.

    About `share` of the combinations are held out, chosen by a hash of their numbers. Every value
    stays in at least one combination that training sees.

    Raises:
        UserError: A factor is unknown, there are fewer than two, or the share holds out none.
    """
    columns = sorted({schema.attribute_index(name) for name in names})
    if len(columns) < 2:
        raise UserError(f"--hold-out: expected at least two factors, found {list(names)}")
    sizes = [schema.sizes[column] for column in columns]
    combinations = all_combinations(sizes).tolist()
    words = [repr((columns, row)) for row in combinations]
    order = sorted(range(len(words)), key=lambda n: hashlib.sha256(words[n].encode()).digest())
    left = [np.full(size, len(words) // size) for size in sizes]
    held = np.zeros(len(words), dtype=np.bool_)
    for number in order:
        values = combinations[number]
        if held.sum() >= round(share * len(words)):
            break
        if min(count[value] for count, value in zip(left, values)) > 1:
            held[number] = True
            for count, value in zip(left, values):
                count[value] -= 1
    if not held.any():
        raise UserError(
            f"--hold-out: expected a --test-share of {len(words)} combinations that holds out at "
            f"least one and leaves every value to training, found {share}"
        )
    return held[np.ravel_multi_index(tuple(labels[:, columns].T), sizes)]
