"""Tables of text cells from CSV and Parquet files."""

import csv
import importlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, overload

from adde.errors import UserError, did_you_mean, foreign
from adde.files import open_text

SEPARATORS = ",;\t|"
"""The one that the header of a CSV file holds most of separates its cells."""

SHARED = 10_000
"""Distinct cells of a column up to which equal ones are held once."""


@dataclass(frozen=True, eq=False)
class Places(Sequence[str]):
    """Where each row stands, in words; held as numbers, as there may be millions."""

    path: Path
    unit: str
    """What the numbers count, such as "line"."""
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "str | Places":
        if isinstance(index, slice):
            return Places(self.path, self.unit, self.numbers[index])
        return f"{self.path}, {self.unit} {self.numbers[index]}"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of stripped text cells, "" where empty, in the order of the file."""

    path: Path
    columns: Mapping[str, Sequence[str]]
    places: Sequence[str]
    """File and line (CSV) or row (Parquet) of each row, for messages."""

    def __len__(self) -> int:
        return len(self.places)

    def column(self, name: str) -> Sequence[str]:
        """Cells of one column. Raises UserError with the nearest names where there is none."""
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name!r}; {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def rows_by_id(self, name: str) -> dict[str, int]:
        """The row of each item id of a column, in order.

        Raises:
            UserError: there is no such column, an id is missing, or there twice; names the places.
        """
        rows: dict[str, int] = {}
        for row, item_id in enumerate(self.column(name)):
            if not item_id:
                place = self.places[row]
                raise UserError(f"{place}: expected an item id in column {name!r}, found none")
            if item_id in rows:
                raise UserError(
                    f"{self.places[row]}: expected an item id of its own in column {name!r}, found "
                    f"{item_id!r} as in {self.places[rows[item_id]]}; name a column of unique ids "
                    "with --id-column"
                )
            rows[item_id] = row
        return rows


class Cells:
    """A column being read: equal cells are one object while the distinct ones are few."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self._known: dict[str, str] | None = {}

    def append(self, cell: str) -> None:
        """Adds a cell, stripped."""
        cell = cell.strip()
        if self._known is not None:
            cell = self._known.setdefault(cell, cell)
            if len(self._known) > SHARED:
                self._known = None  # ids and the like: the pool would outgrow what it saves
        self.cells.append(cell)


def read_table(path: Path) -> Table:
    """Reads a table by the ending of its name, .csv or .parquet.

    Raises:
        UserError: no such file, another ending, not UTF-8, a row of another length than the
            header, a column name that repeats, or a Parquet file that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a CSV or Parquet file, found none")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path}: expected a table whose name ends in .csv or .parquet, found another"
        )
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> Table:
    # Line by line: the text of a large table would be held beside its cells.
    with open_text(path, newline="") as file:
        separator = max(SEPARATORS, key=file.readline().count)  # ties: the comma, the first
        file.seek(0)
        return _read_rows(path, file, separator)


def _read_rows(path: Path, file: TextIO, separator: str) -> Table:
    # strict: a quote left open would otherwise swallow the rest of the file in silence.
    reader = csv.reader(file, delimiter=separator, strict=True)
    lines = array("q")
    try:
        names = _column_names(path, next(reader, list[str]()))
        columns = [Cells() for _ in names]
        for cells in reader:
            if not any(cells):
                continue  # a blank line
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(names)} cells as in the "
                    f"header, found {len(cells)}"
                )
            lines.append(reader.line_num)
            for column, cell in zip(columns, cells):
                column.append(cell)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: expected CSV, found: {error}") from None
    contents = [tuple(column.cells) for column in columns]
    return Table(path, dict(zip(names, contents)), Places(path, "line", lines))


def _column_names(path: Path, header: list[str]) -> list[str]:
    """Stripped names; an unnamed column (the index that pandas writes) is named by its number."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(header, 1)]
    if not names:
        raise UserError(f"{path}, line 1: expected a header with the names of columns, found none")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: expected each column's name once, found {name!r} twice")
    return names


def _read_parquet(path: Path) -> Table:
    # Imported here: only tables need it, and the base install has none. It carries no types.
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with foreign(path, "a Parquet file"):
        schema = parquet.read_schema(path)
        # Lists, structs and raw bytes are neither names nor labels.
        plain: dict[str, str] = {
            field.name: name
            for field, name in zip(schema, _column_names(path, list(schema.names)))
            if not arrow.types.is_nested(field.type) and "binary" not in str(field.type)
        }
        columns = {name: Cells() for name in plain.values()}
        rows = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(plain)):
                rows += batch.num_rows
                for raw, name in plain.items():
                    for cell in as_texts(batch.column(raw).to_pylist()):
                        columns[name].append(cell)
    contents = {name: tuple(column.cells) for name, column in columns.items()}
    return Table(path, contents, Places(path, "row", range(1, rows + 1)))


def as_texts(cells: Iterable[Any]) -> Iterator[str]:
    """Cells of any plain type as text, "" where one is missing."""
    for cell in cells:
        missing = cell is None or cell != cell  # NaN differs from itself
        yield "" if missing else str(cell)
