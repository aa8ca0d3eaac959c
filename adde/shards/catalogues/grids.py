"""Catalogues of exact factors: an item for each combination of their values, or for some."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from adde.errors import UserError
from adde.schema import Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.splits import require_items, splits_by_hash
from adde.shards.catalogues.tabular import TableOptions

Pictures = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.int64]
"""(n, 2) seed and number of each item, for what is random in a picture and no factor."""

OPTIONS = ("val_share", "test_share", "hold_out")
"""Fields of TableOptions that a grid heeds."""


class Draw(Protocol):
    """Draws pictures (n, size, size, 3) of labels (n, K). Picklable."""

    def __call__(self, labels: Labels, size: int, keys: Keys) -> Pictures:
        """As the class says."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A picture of a grid yet to be drawn."""

    name: str
    draw: Draw
    labels: tuple[int, ...]
    number: int
    seed: int
    size: int

    def read(self) -> tuple[bytes, str]:
        """The picture as PNG."""
        labels, key = np.array([self.labels]), np.array([[self.seed, self.number]])
        return as_png(self.draw(labels, self.size, key)[0])

    def stamp(self) -> str:
        """What it is drawn from."""
        return repr((self.name, self.labels, self.number, self.seed, self.size))


def as_png(pixels: Pictures) -> tuple[bytes, str]:
    """A picture (S, S, 3) or (S, S) as a `Source` gives it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), "png"


def numbers(values: npt.NDArray[np.floating[Any]]) -> tuple[str, ...]:
    """Names of a factor's numeric values."""
    return tuple(f"{value:.4g}" for value in values)


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
) -> Items:
    """Combinations of factors, each once, in an order drawn by `seed`.

    A larger catalogue of one seed begins with the smaller. An id is the number of the combination
    in the grid, the last factor counting fastest.

    Args:
        name: of the catalogue.
        schema: the factors.
        draw: the pictures.
        options: the splits.
        items: number of combinations.
        seed: of the order, and of what is random in the pictures.
        size: side of a picture in pixels.
        sizes: that can be drawn.

    Raises:
        UserError: more items than combinations, a size that cannot be drawn, or as of
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
    labels = np.stack(np.unravel_index(chosen, schema.sizes), axis=1).astype(np.int64)
    item_ids = [f"{number:06d}" for number in chosen.tolist()]

    def picture(row: int) -> Drawn:
        return Drawn(name, draw, tuple(labels[row].tolist()), int(chosen[row]), seed, size)

    splits = grid_splits(schema, item_ids, labels, options, f"{items} items of {name}")
    return Items(name, schema, item_ids, labels, splits, picture, factors=sizes_of(schema))


def schema_of(factors: Mapping[str, Sequence[str]]) -> Schema:
    """The schema of factors by name."""
    return Schema(tuple(Attribute(name, tuple(values)) for name, values in factors.items()))


def sizes_of(schema: Schema) -> dict[str, int]:
    """Number of values of each factor, for `Items.factors`."""
    return dict(zip(schema.names, schema.sizes))


def grid_splits(
    schema: Schema,
    item_ids: Sequence[str],
    labels: Labels,
    options: TableOptions,
    source: str,
) -> tuple[str, ...]:
    """Splits of N items by a hash of their ids, or with combinations of `options.hold_out` in test.

    Raises:
        UserError: a split is empty, or as of `held_out`.
    """
    val, test = options.val_share, options.test_share
    if options.hold_out:
        held = held_out(schema, labels, options.hold_out, test)
        seen = splits_by_hash(item_ids, val, 0)
        splits = tuple("test" if out else split for out, split in zip(held.tolist(), seen))
    else:
        splits = splits_by_hash(item_ids, val, test)
    require_items(splits, val, test, source)
    return splits


def held_out(
    schema: Schema, labels: Labels, names: Sequence[str], share: float
) -> npt.NDArray[np.bool_]:
    """(N,) whether an item shows a combination that training never sees, of the factors `names`.

    About `share` of the combinations are held out, drawn by a hash of their numbers; every value
    stays in at least one combination that is not.

    Raises:
        UserError: an unknown factor, fewer than two, or a share that holds out none.
    """
    columns = sorted({schema.attribute_index(name) for name in names})
    if len(columns) < 2:
        raise UserError(f"--hold-out: expected at least two factors, found {list(names)}")
    sizes = [schema.sizes[column] for column in columns]
    combinations = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    words = [repr((columns, row)) for row in combinations.tolist()]
    order = sorted(range(len(words)), key=lambda n: hashlib.sha256(words[n].encode()).digest())
    left = [np.full(size, len(words) // size) for size in sizes]
    held = np.zeros(len(words), dtype=np.bool_)
    for number in order:
        values = combinations[number].tolist()
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
