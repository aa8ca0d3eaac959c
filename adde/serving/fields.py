"""What a table says of items beside their attributes: price, brand, stock."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.schema import Schema
from adde.serving.embedding import Embed, Split, spaced_ids
from adde.serving.gallery import Fields, Item
from adde.shards.index import ShardIndex
from adde.shards.table import read_table

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
"""Not 007, which is a name."""

LOOKED_AT = 1000
"""Items of which a table must have one: enough to meet a table of a thousandth of a catalogue."""


class FieldTable:
    """Fields of items by their ids.

    A column whose cells are all whole numbers, numbers, or true and false holds such; any other
    holds text. An empty cell is a field that the item does not have.

    Args:
        path: a CSV or Parquet table, one row per item.
        id_column: column of the item ids, as the shards have them.
        columns: those that become fields; if empty, every other but the attributes.
        schema: whose attributes are no fields.

    Raises:
        UserError: the table cannot be read, a column is missing or an attribute, an id is missing
            or there twice.
    """

    def __init__(self, path: Path, id_column: str, columns: Sequence[str], schema: Schema) -> None:
        table = read_table(path)
        self.path, self.id_column = path, id_column
        self.sha256 = sha256_of_file(path)
        self.unmatched = 0
        """Items asked for that the table does not have."""
        self._rows = table.rows_by_id(id_column)
        if taken := sorted(set(columns) & {*schema.names, id_column}):
            raise UserError(
                f"{path}: expected columns that are neither attributes nor the ids, found "
                f"{taken[0]!r}"
            )
        found = [name for name in table.columns if name not in (*schema.names, id_column)]
        self._columns = {name: _typed(table.column(name)) for name in columns or found}
        if not self._columns:
            raise UserError(f"{path}: expected columns beside ids and attributes, found none")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the fields, in the table's order or as asked."""
        return tuple(self._columns)

    def fields(self, item_id: str) -> Fields:
        """Of one item; empty where the table does not have it, which is counted."""
        row = self._rows.get(item_id)
        if row is None:
            self.unmatched += 1
            return {}
        values = ((name, cells(row)) for name, cells in self._columns.items())
        return {name: value for name, value in values if value is not None}

    def require_some(self, index: ShardIndex, split: Split) -> None:
        """Looks at up to `LOOKED_AT` items, evenly spaced, before any is embedded.

        Raises:
            UserError: the table has none of them, or one cannot be read.
        """
        ids = spaced_ids(index, split, LOOKED_AT)
        if not any(item_id in self._rows for item_id in ids):
            raise UserError(
                f"{self.path}: expected item ids in column {self.id_column!r}, found none of "
                f"{len(ids):,} from {ids[0]!r} to {ids[-1]!r}; name their column with --id-column"
            )

    def with_fields(self, embed: Embed) -> Embed:
        """The same items with their fields."""
        return partial(self._with_fields, embed)

    def _with_fields(
        self, embed: Embed, index: ShardIndex, split: Split, start: int
    ) -> Iterator[list[Item]]:
        for items in embed(index, split, start):
            yield [replace(item, fields=self.fields(item.item_id)) for item in items]


def _typed(cells: Sequence[str]) -> Callable[[int], Any]:
    """Row -> what its cell means, None where it is empty."""
    filled = set(cells) - {""}
    kind: Callable[[str], Any] = str
    if all(WHOLE.fullmatch(cell) for cell in filled):
        kind = int
    elif all(_is_number(cell) for cell in filled):
        kind = float
    elif {cell.lower() for cell in filled} <= {"true", "false"}:
        kind = _is_true
    return lambda row: kind(cells[row]) if cells[row] else None


def _is_number(cell: str) -> bool:
    if re.match(r"-?0\d", cell) or "_" in cell:
        return False
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _is_true(cell: str) -> bool:
    return cell.lower() == "true"
