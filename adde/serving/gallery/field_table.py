"""Read item fields, such as price, brand and stock, from a table."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.schema import Schema
from adde.serving.gallery.base import Fields, Item, Split
from adde.serving.gallery.embedding import Embed, sample_ids
from adde.shards.catalogues.tables.parquet import table_files
from adde.shards.catalogues.tables.table import RowPlaces, read_table
from adde.shards.catalogues.tables.unknown import WORDS, blank_unknown
from adde.shards.index import ShardIndex

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
"""Whole numbers; 007 is text."""

THOUSANDS = {
    False: re.compile(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?"),
    True: re.compile(r"-?([1-9]\d{0,2}(?P<mark>[. '])\d{3}((?P=mark)\d{3})*|\d+)(,\d+)?"),
}
"""Numbers with thousands separators, by whether a comma is the decimal separator."""

OVERLAP_SAMPLE = 1000
"""Items checked against the table before embedding: enough to find a table that covers one in a
thousand.
"""


class FieldTable:
    """Fields of items, by item id.

    A column holds integers, numbers or booleans if all its cells do, otherwise text. An empty or
    unknown cell means that the item does not have the field. `notices` reports each field's kind,
    and the cell that made a numeric column text.

    Args:
        path: a CSV or Parquet table, one row per item.
        id_column: column of the item ids, as in the shards.
        columns: columns to use as fields; if empty, all except ids and attributes.
        schema: its attributes are not fields.
        unknown: words that mean "not known"; see `blank_unknown`.
        decimal_comma: columns in which 1.045,90 is a number and 1,045.90 is not.
        skip_unreadable: skip rows that cannot be read or have no unique id.

    Raises:
        UserError: the table cannot be read, a column is missing or is an attribute, or ids are
            missing or duplicate.
    """

    def __init__(
        self,
        path: Path,
        id_column: str,
        columns: Sequence[str],
        schema: Schema,
        unknown: Sequence[str] = WORDS,
        decimal_comma: Sequence[str] = (),
        skip_unreadable: bool = False,
    ) -> None:
        table = read_table(path, skip_unreadable).with_ids(id_column, skip_unreadable)
        table, unknown_notices = blank_unknown(table, unknown, {id_column, *schema.names})
        self.path, self.id_column = path, id_column
        files = [sha256_of_file(file) for file in table_files(path)]
        settings = [files, sorted(unknown), sorted(decimal_comma), skip_unreadable]
        self.hash = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        """Hash of the files and the settings."""
        self.unmatched = 0
        """Items looked up so far that the table does not have."""
        self._rows = {item_id: row for row, item_id in enumerate(table.column(id_column))}
        if taken := sorted(set(columns) & {*schema.names, id_column}):
            raise UserError(
                f"{path}: expected columns that are neither attributes nor the ids, found "
                f"{taken[0]!r}"
            )
        found = [name for name in table.columns if name not in (*schema.names, id_column)]
        for name in decimal_comma:
            table.column(name)
        self._columns = {
            name: _typed(table.column(name), name in decimal_comma) for name in columns or found
        }
        if not self._columns:
            raise UserError(f"{path}: expected columns beside ids and attributes, found none")
        kinds = [column.describe(name, table.places) for name, column in self._columns.items()]
        self.notices = (*table.notices, *unknown_notices, *kinds)
        """Messages worth reading before hours of embedding."""

    @property
    def names(self) -> tuple[str, ...]:
        """Field names, in the table's order or as requested."""
        return tuple(self._columns)

    def fields(self, item_id: str) -> Fields:
        """Return the fields of an item; empty, and counted, if the table does not have it."""
        row = self._rows.get(item_id)
        if row is None:
            self.unmatched += 1
            return {}
        values = ((name, column.value(row)) for name, column in self._columns.items())
        return {name: value for name, value in values if value is not None}

    def require_overlap(self, index: ShardIndex, split: Split) -> None:
        """Check up to `OVERLAP_SAMPLE` evenly spaced items before any is embedded.

        Raises:
            UserError: the table has none of them, or a sample cannot be read.
        """
        ids = sample_ids(index, split, OVERLAP_SAMPLE)
        if not any(item_id in self._rows for item_id in ids):
            raise UserError(
                f"{self.path}: expected item ids in column {self.id_column!r}, found none of "
                f"{len(ids):,} from {ids[0]!r} to {ids[-1]!r}; name their column with --id-column"
            )

    def with_fields(self, embed: Embed) -> Embed:
        """Wrap `embed` to add the fields to its items."""
        return partial(self._with_fields, embed)

    def _with_fields(
        self, embed: Embed, index: ShardIndex, split: Split, start: int
    ) -> Iterator[list[Item]]:
        for items in embed(index, split, start):
            yield [replace(item, fields=self.fields(item.item_id)) for item in items]


@dataclass(frozen=True)
class _Column:
    """The cells of a field and how to parse them."""

    cells: Sequence[str]
    kind: str
    read: Callable[[str], Any]
    comma: bool
    """Whether a comma is the decimal separator."""

    def value(self, row: int) -> Any:
        """Return the value of a row's cell, None if it is empty."""
        return self.read(self.cells[row]) if self.cells[row] else None

    def describe(self, name: str, places: RowPlaces) -> str:
        """Describe the kind in one line; for text that is mostly numeric, name the first cell that
        is not.
        """
        counts = Counter(filter(None, self.cells))
        line = f"field {name!r}: {self.kind}, {counts.total():,} of {len(self.cells):,} rows"
        if self.kind.endswith("numbers") and counts:
            numbers = [self.read(cell) for cell in counts]
            return f"{line}, {min(numbers)} to {max(numbers)}"
        either = {
            c for c in counts if _number(c, False) is not None or _number(c, True) is not None
        }
        if self.kind != "text" or 2 * len(either) < len(counts):
            return line
        odd = {cell for cell in counts if _number(cell, self.comma) is None}
        first = next(row for row, cell in enumerate(self.cells) if cell in odd)
        advice = "correct them, or list words that mean unknown with --unknown"
        if not self.comma and odd <= either:
            advice = f"to read numbers with a decimal comma, use --decimal-comma {name}"
        return (
            f"{line}: not numeric because {sum(counts[cell] for cell in odd):,} cells are not, the "
            f"first {self.cells[first]!r} ({places[first]}); filters by min and max will be "
            f"rejected; {advice}"
        )


def _typed(cells: Sequence[str], comma: bool) -> _Column:
    filled = set(cells) - {""}
    if not filled:
        return _Column(cells, "nothing", str, comma)
    numbers = [_number(cell, comma) for cell in filled]
    if all(isinstance(number, int) for number in numbers):
        return _Column(cells, "whole numbers", lambda cell: _number(cell, comma), comma)
    if all(number is not None for number in numbers):
        return _Column(cells, "numbers", lambda cell: float(_number(cell, comma) or 0), comma)
    if {cell.lower() for cell in filled} <= {"true", "false"}:
        return _Column(cells, "true or false", lambda cell: cell.lower() == "true", comma)
    return _Column(cells, "text", str, comma)


def _number(cell: str, comma: bool) -> int | float | None:
    """Parse a cell as a number, None if it is not one."""
    if match := THOUSANDS[comma].fullmatch(cell):
        mark = (match["mark"] or "") if comma else ","
        cell = cell.replace(mark, "").replace(",", ".")
    if WHOLE.fullmatch(cell):
        return int(cell)
    if re.match(r"-?0\d", cell) or "_" in cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
