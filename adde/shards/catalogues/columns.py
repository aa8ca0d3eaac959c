"""Which columns of a table are attributes, and the labels that their cells become."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from adde.errors import UserError
from adde.schema import UNKNOWN, Attribute, Labels, Schema
from adde.shards.catalogues.table import Table
from adde.shards.catalogues.traits import no_trait
from adde.shards.catalogues.unknown import doubtful

OTHER = "other"
"""The value that rare values are folded into."""

ROWS_PER_VALUE = 2
"""A found attribute has at least this many labelled rows per distinct value: ids, prices and
descriptions have fewer."""


@dataclass(frozen=True)
class Folded:
    """What becomes of a column's cells: the values kept, the rare ones in `other` or unknown."""

    values: tuple[str, ...]
    other: frozenset[str]
    unknown: frozenset[str]

    def label(self, cell: str) -> int:
        """Index of a cell's value, UNKNOWN where it is empty or too rare."""
        if not cell or cell in self.unknown:
            return UNKNOWN
        return self.values.index(OTHER if cell in self.other else cell)


def fold(cells: Sequence[str], train: Sequence[bool], min_count: int) -> Folded:
    """Folds values that fewer than `min_count` training rows hold.

    Only training rows count, as a value that none of them shows cannot be learnt. Rare values,
    together with a value "other" that is there already, become "other" where they reach
    `min_count` together; otherwise they are unknown.

    Args:
        cells: N cells, "" where empty.
        train: N, True in training rows.
        min_count: least number of training rows.
    """
    counts = Counter(compress(cells, train))
    values = set(cells) - {""}
    common = {value for value in values if counts[value] >= min_count}
    rare = values - common
    together = sum(counts[value] for value in rare | ({OTHER} & values))
    if rare and together >= min_count:
        return Folded(tuple(sorted(common | {OTHER})), frozenset(rare), frozenset())
    return Folded(tuple(sorted(common)), frozenset(), frozenset(rare))


def label_attributes(
    table: Table,
    train: Sequence[bool],
    taken: Collection[str | None],
    asked: Sequence[str],
    max_values: int,
    min_count: int,
) -> tuple[Schema, Labels, list[str]]:
    """Schema, labels (N, A) int64, and notices of what was folded or left out.

    Attributes stand in the table's order of columns, their values sorted.

    Args:
        table: N rows.
        train: N, True in training rows.
        taken: columns that mean something else; not looked at unless asked for.
        asked: the attributes; if empty, every other column with at most `max_values` distinct
            values and at least ROWS_PER_VALUE labelled rows per value.
        max_values: see `asked`.
        min_count: see `fold`.

    Raises:
        UserError: an attribute that was asked for is no column or has fewer than two values, or
            no column makes an attribute.
    """
    for name in asked:
        table.column(name)
    names = [n for n in table.columns if (n in asked if asked else n not in taken)]
    attributes: list[Attribute] = []
    labels: list[Labels] = []
    notices: list[str] = []
    for name in names:
        cells = table.column(name)
        folded = fold(cells, train, min_count)
        found = not asked and (_too_many(cells, max_values) or no_trait(name, cells))
        if why := found or _one_value(folded, min_count):
            if asked:
                raise UserError(f"{table.path}: attribute {name!r} has {why}; leave it out")
            notices.append(f"column {name!r} is no attribute: it has {why}")
            continue
        notices += _tell_folded(name, cells, folded, min_count)
        notices += _tell_doubts(name, Counter(filter(None, cells)), bool(asked))
        attributes.append(Attribute(name, folded.values))
        label_of = {cell: folded.label(cell) for cell in set(cells)}
        labels.append(np.array([label_of[cell] for cell in cells], dtype=np.int64))
    if not attributes:
        raise UserError(
            f"{table.path}: expected a column that makes an attribute, found none:\n  "
            + "\n  ".join(notices or ["no column besides pictures, ids and splits"])
        )
    return Schema(tuple(attributes)), np.stack(labels, axis=1), notices


def _too_many(cells: Sequence[str], max_values: int) -> str | None:
    distinct = len(set(cells) - {""})
    labelled = sum(1 for cell in cells if cell)
    if distinct > max_values:
        return f"{distinct} distinct values, over --max-values {max_values}"
    if labelled < ROWS_PER_VALUE * distinct:
        return f"{distinct} distinct values in {labelled} rows, nearly all different"
    return None


def _tell_doubts(name: str, counts: Mapping[str, int], asked: bool) -> list[str]:
    """What a person may want otherwise: values that say nothing, and numbers."""
    notices: list[str] = []
    if doubts := doubtful(counts):
        shown = ", ".join(f"{value!r} ({counts[value]} rows)" for value in doubts)
        asked_of = " ".join(repr(f"{name}={value}") for value in doubts)
        notices.append(
            f"attribute {name!r}: {shown} is a value to learn; where it says that nothing is "
            f"known: --unknown {asked_of}"
        )
    if not asked and len(counts) > 2 and all(re.fullmatch(r"\d+(\.0)?", cell) for cell in counts):
        notices.append(
            f"attribute {name!r}: its {len(counts)} values are numbers; if they are no trait that "
            "a picture shows, leave it out by naming the others with --attributes"
        )
    return notices


def _one_value(folded: Folded, min_count: int) -> str | None:
    if len(folded.values) >= 2:
        return None
    return (
        f"only the values {list(folded.values)} with --min-count {min_count} training items, "
        "where at least two are expected"
    )


def _tell_folded(name: str, cells: Sequence[str], folded: Folded, min_count: int) -> list[str]:
    notices: list[str] = []
    for rare, fate in ((folded.other, f"are {OTHER!r}"), (folded.unknown, "are unknown")):
        if rare:
            items = sum(1 for cell in cells if cell in rare)
            shown = ", ".join(sorted(rare)[:10]) + (", ..." if len(rare) > 10 else "")
            notices.append(
                f"attribute {name!r}: {len(rare)} values with fewer than {min_count} training "
                f"items {fate} ({items} items): {shown}"
            )
    return notices
