"""Labelled pictures to pack: from a table, a data set, a drawing program or your own code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adde.errors import UserError
from adde.schema import SEVERAL, UNKNOWN, Labels, Schema, values_of
from adde.shards.benchmark_lists import BenchmarkLists
from adde.shards.index import SPLITS


class PictureSource(Protocol):
    """A picture to be read or drawn later. Small and picklable, because workers receive nothing
    else.
    """

    def read(self) -> tuple[bytes, str]:
        """Return the encoded bytes and their extension: "jpg", "png" or "webp".

        Raises:
            UserError: The picture does not decode; names the file.
        """
        ...

    def stamp(self) -> str:
        """Return a text that changes whenever the result of `read` changes. Must be cheap."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N labelled pictures.

    Raises:
        UserError: The parts differ in length, a label is outside the schema, a split is unknown,
            an item id appears twice, or an item has pictures in two splits.
    """

    name: str
    """Name of the catalogue, stored in index.json."""
    schema: Schema
    """Attributes that the labels refer to."""
    item_ids: Sequence[str]
    """N unique names; answers to queries use them."""
    labels: Labels
    """(N, A) int64 as in `adde.schema`, UNKNOWN where missing."""
    splits: Sequence[str]
    """N of "train", "val", "test"."""
    source: Callable[[int], PictureSource]
    """Maps a row number to its picture."""
    notices: tuple[str, ...] = ()
    """Lines for the build's summary: what was found, folded or left out."""
    factors: Mapping[str, int] = field(default_factory=dict[str, int])
    """Exact factors and their numbers of values; see `ShardIndex.factors`. Empty if the labels are
    not exact."""
    benchmark: BenchmarkLists | None = None
    """Queries or other questions that came with the data set."""
    items: Sequence[str] | None = None
    """N names of the items that the pictures show, where an item has several pictures. `item_ids`
    then name the pictures. None: each picture is an item of its own."""

    def __post_init__(self) -> None:
        labels, sizes = self.labels, self.schema.sizes
        expected = (len(self.item_ids), len(sizes))
        if labels.shape != expected or len(self.splits) != len(labels):
            raise UserError(
                f"catalogue {self.name!r}: expected labels {expected} to match its item ids and "
                f"attributes, and as many splits, found {labels.shape} and {len(self.splits)}"
            )
        bad = np.argwhere(~self.schema.is_label(labels))
        if len(bad):
            row, attribute = bad[0].tolist()
            found = values_of(label := int(labels[row, attribute]))
            raise UserError(
                f"catalogue {self.name!r}, item {self.item_ids[row]!r}: expected a label from "
                f"{UNKNOWN} to {sizes[attribute] - 1} of {self.schema.names[attribute]!r}, found "
                + (f"the set {found}" if label >= SEVERAL else f"{label}")
            )
        if unknown := set(self.splits) - set(SPLITS):
            raise UserError(
                f"catalogue {self.name!r}: expected splits {SPLITS}, found {sorted(unknown)}"
            )
        if len(set(self.item_ids)) < len(labels):
            raise UserError(
                f"catalogue {self.name!r}: expected every item id once, found one twice"
            )
        split_of: dict[str, str] = {}
        for item, split in zip(self.items or (), self.splits):
            if (other := split_of.setdefault(item, split)) != split:
                raise UserError(
                    f"catalogue {self.name!r}, item {item!r}: expected all its pictures in one "
                    f"split, found some in {other!r} and {split!r}; training would see test items"
                )
