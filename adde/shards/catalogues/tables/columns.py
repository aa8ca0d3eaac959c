"""Choose the columns of a table that are attributes, and turn their cells into labels."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

import numpy as np

from adde.errors import UserError
from adde.schema import MAX_MULTIPLE, UNKNOWN, Attribute, Labels, Schema, label_of
from adde.shards.catalogues.tables.table import Table
from adde.shards.catalogues.tables.traits import no_trait
from adde.shards.catalogues.tables.unknown import doubtful

OTHER = "other"
"""The value into which rare values are merged."""

ROWS_PER_VALUE = 2
"""Least number of labelled rows per distinct value of an attribute that was not asked for. Ids,
prices and descriptions have fewer."""


@dataclass(frozen=True)
class Folded:
    """The values of a column, and the rare ones that become `other` or unknown."""

    values: tuple[str, ...]
    other: frozenset[str]
    unknown: frozenset[str]

    def label(self, cell: str) -> int:
        """Return the index of a cell's value, or UNKNOWN if it is empty or too rare."""
        if not cell or cell in self.unknown:
            return UNKNOWN
        return self.values.index(OTHER if cell in self.other else cell)


def split_values(cell: str, separator: str) -> list[str] | None:
    """Return the values of a cell with several: a JSON list of texts, or texts with separators.

    None if the cell is neither: a list that is not JSON or holds anything but texts.
    """
    if not cell.startswith("["):
        return [value for part in cell.split(separator) if (value := part.strip())]
    found = _json_list(cell)
    if found is None or not all(isinstance(value, str) for value in found):
        return None
    return [value for part in found if (value := part.strip())]


def _json_list(cell: str) -> list[Any] | None:
    """Return the list that a cell is in JSON, or None."""
    try:
        found: Any = json.loads(cell) if cell.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return cast(list[Any], found) if isinstance(found, list) else None


def fold(cells: Sequence[str], train: Sequence[bool], min_count: int) -> Folded:
    """Merge values that fewer than `min_count` training rows hold.

    Only training rows count, because a value without any cannot be learnt. Rare values become
    "other" if together, and with an existing value "other", they reach `min_count`. Otherwise they
    become unknown.

    Args:
        cells: N cells, "" if empty.
        train: N, True in training rows.
        min_count: Least number of training rows.
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
    multiple: Collection[str] = (),
    separator: str = ";",
) -> tuple[Schema, Labels, list[str]]:
    """Return the schema, labels (N, A) int64, and notices about merged and omitted columns.

    Attributes have the order of the table's columns; values are sorted.

    Args:
        table: N rows.
        train: N, True in training rows.
        taken: Columns with another meaning; ignored unless asked for.
        asked: The attributes. If empty: every other column with at most `max_values` distinct
            values and at least ROWS_PER_VALUE labelled rows per value.
        max_values: See `asked`.
        min_count: See `fold`. A set keeps its other values if one is too rare.
        multiple: Attributes of which an item may have several values; see `split_values`.
        separator: Between the values of a cell with several.

    Raises:
        UserError: An attribute that was asked for is missing or has fewer than two values, no
            column qualifies as an attribute, a cell holds a list where one value is expected, or
            an attribute of several values has more than MAX_MULTIPLE.
    """
    for name in (*asked, *multiple):
        table.column(name)
    if asked and (others := sorted(set(multiple) - set(asked))):
        raise UserError(
            f"--multiple: expected attributes among --attributes {' '.join(asked)}, found "
            f"{others[0]!r}; add it there"
        )
    names = [n for n in table.columns if (n in asked if asked else n not in taken)]
    attributes: list[Attribute] = []
    labels: list[Labels] = []
    notices: list[str] = []
    for name in names:
        cells = table.column(name)
        several = name in multiple
        values = _cell_values(table, name, separator) if several else {c: [c] for c in set(cells)}
        if not several and (lists := _first_list(cells)) is not None:
            if asked:
                raise UserError(
                    f"{table.places[lists]}: attribute {name!r}: expected one value, found the "
                    f"list {cells[lists]}; --multiple {name} allows several values"
                )
            notices.append(
                f"column {name!r} is no attribute: it has lists of values; --multiple {name} "
                "makes it an attribute of which an item may have several values"
            )
            continue
        pairs = [(value, part) for cell, part in zip(cells, train) for value in values[cell]]
        each, in_train = [value for value, _ in pairs], [part for _, part in pairs]
        folded = fold(each, in_train, min_count)
        asked_for = bool(asked) or several
        found = not asked_for and (_too_many(cells, max_values) or no_trait(name, cells))
        if why := found or _one_value(folded, min_count):
            if asked:
                raise UserError(f"{table.path}: attribute {name!r} has {why}; leave it out")
            notices.append(f"column {name!r} is no attribute: it has {why}")
            continue
        notices += _fold_notices(name, each, folded, min_count)
        notices += _doubt_notices(name, Counter(filter(None, each)), asked_for)
        if several and len(folded.values) > MAX_MULTIPLE:
            raise UserError(
                f"{table.path}: --multiple {name}: expected at most {MAX_MULTIPLE} values, found "
                f"{len(folded.values)} with --min-count {min_count}; raise it to merge rare values"
            )
        attributes.append(Attribute(name, folded.values, several))
        labels_of = {
            cell: label_of([label for v in found if (label := folded.label(v)) != UNKNOWN])
            for cell, found in values.items()
        }
        labels.append(np.array([labels_of[cell] for cell in cells], dtype=np.int64))
    if not attributes:
        raise UserError(
            f"{table.path}: expected a column that makes an attribute, found none:\n  "
            + "\n  ".join(notices or ["no column besides pictures, ids and splits"])
        )
    return Schema(tuple(attributes)), np.stack(labels, axis=1), notices


def _cell_values(table: Table, name: str, separator: str) -> dict[str, list[str]]:
    """Return the values of each distinct cell of a column of several values."""
    found: dict[str, list[str]] = {}
    for row, cell in enumerate(table.column(name)):
        if cell in found:
            continue
        values = split_values(cell, separator)
        if values is None:
            raise UserError(
                f"{table.places[row]}: attribute {name!r}: expected values separated by "
                f"{separator!r} or a JSON list of texts, found {cell[:100]}"
            )
        found[cell] = list(dict.fromkeys(values))
    return found


def _first_list(cells: Sequence[str]) -> int | None:
    """Return the first row whose cell is a list in JSON, or None."""
    lists = {cell for cell in set(cells) if _json_list(cell) is not None}
    return next((row for row, cell in enumerate(cells) if cell in lists), None) if lists else None


def _too_many(cells: Sequence[str], max_values: int) -> str | None:
    distinct = len(set(cells) - {""})
    labelled = sum(1 for cell in cells if cell)
    if distinct > max_values:
        return f"{distinct} distinct values, over --max-values {max_values}"
    if labelled < ROWS_PER_VALUE * distinct:
        return f"{distinct} distinct values in {labelled} rows, nearly all different"
    return None


def _doubt_notices(name: str, counts: Mapping[str, int], asked: bool) -> list[str]:
    """Return notices about values that may mean unknown, and about numbers."""
    notices: list[str] = []
    if doubts := doubtful(counts):
        shown = ", ".join(f"{value!r} ({counts[value]} rows)" for value in doubts)
        asked_of = " ".join(repr(f"{name}={value}") for value in doubts)
        notices.append(
            f"attribute {name!r}: {shown} is learnt as a value; if it means unknown: "
            f"--unknown {asked_of}"
        )
    if not asked and len(counts) > 2 and all(re.fullmatch(r"\d+(\.0)?", cell) for cell in counts):
        notices.append(
            f"attribute {name!r}: its {len(counts)} values are numbers; if they are not visible "
            "in a picture, leave it out by naming the others with --attributes"
        )
    return notices


def _one_value(folded: Folded, min_count: int) -> str | None:
    if len(folded.values) >= 2:
        return None
    return (
        f"only the values {list(folded.values)} with --min-count {min_count} training items, "
        "where at least two are expected"
    )


def _fold_notices(name: str, cells: Sequence[str], folded: Folded, min_count: int) -> list[str]:
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
