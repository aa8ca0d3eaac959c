"""What is packed into shards. Anything of this shape will do: a table, drawings, your own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adde.errors import UserError
from adde.schema import UNKNOWN, Labels, Schema
from adde.shards.index import SPLITS


class Source(Protocol):
    """One picture yet to be read or drawn. Picklable and small: it is all that a worker gets."""

    def read(self) -> tuple[bytes, str]:
        """Encoded bytes and their extension "jpg", "png" or "webp".

        Raises:
            UserError: the picture does not decode; names the file.
        """
        ...

    def stamp(self) -> str:
        """Changes when what `read` gives does; cheap."""
        ...


class Catalogue(Protocol):
    """N labelled pictures."""

    @property
    def name(self) -> str:
        """Name of the catalogue, kept in index.json."""
        ...

    @property
    def schema(self) -> Schema:
        """Attributes that the labels refer to."""
        ...

    @property
    def item_ids(self) -> Sequence[str]:
        """N names that answers are given in; none twice."""
        ...

    @property
    def labels(self) -> Labels:
        """(N, A) int64, UNKNOWN where missing."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """N of "train", "val", "test"."""
        ...

    @property
    def factors(self) -> Mapping[str, int]:
        """Of exact factors, the attributes that are such, with their numbers of values, the last
        fastest in a grid of all combinations; empty of any other catalogue.
        """
        ...

    def source(self, row: int) -> Source:
        """Where the row's picture comes from."""
        ...


@dataclass(frozen=True, eq=False)
class Items:
    """A catalogue whose items were listed somewhere: a table, or the files of a dataset."""

    name: str
    schema: Schema
    item_ids: Sequence[str]
    labels: Labels
    """(N, A) int64."""
    splits: Sequence[str]
    pictures: Callable[[int], Source]
    """Of row numbers."""
    notices: tuple[str, ...] = ()
    """What was found, folded or left out, for the person who reads the summary."""

    factors: Mapping[str, int] = field(default_factory=dict[str, int])

    def source(self, row: int) -> Source:
        """Where the row's picture comes from."""
        return self.pictures(row)


def check(catalogue: Catalogue) -> None:
    """Refuses what no reader of the shards could make sense of, whoever wrote the catalogue.

    Raises:
        UserError: the parts differ in length, a label is outside the schema, a split is unknown,
            or an item id appears twice.
    """
    name, labels, sizes = catalogue.name, catalogue.labels, catalogue.schema.sizes
    expected = (len(catalogue.item_ids), len(sizes))
    if labels.shape != expected or len(catalogue.splits) != len(labels):
        raise UserError(
            f"catalogue {name!r}: expected labels {expected} as of its item ids and attributes, "
            f"and as many splits, found {labels.shape} and {len(catalogue.splits)}"
        )
    bad = np.argwhere((labels < UNKNOWN) | (labels >= np.array(sizes)))
    if len(bad):
        row, attribute = bad[0].tolist()
        raise UserError(
            f"catalogue {name!r}, item {catalogue.item_ids[row]!r}: expected a label from "
            f"{UNKNOWN} to {sizes[attribute] - 1} of {catalogue.schema.names[attribute]!r}, "
            f"found {labels[row, attribute]}"
        )
    if strange := set(catalogue.splits) - set(SPLITS):
        raise UserError(f"catalogue {name!r}: expected splits {SPLITS}, found {sorted(strange)}")
    if len(set(catalogue.item_ids)) < len(labels):
        raise UserError(f"catalogue {name!r}: expected every item id once, found one twice")
