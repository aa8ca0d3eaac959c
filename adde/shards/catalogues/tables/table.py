"""Tables of text cells from CSV and Parquet files."""

import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from adde.errors import UserError, did_you_mean
from adde.shards.catalogues.tables.delimited import read_records
from adde.shards.catalogues.tables.parquet import ParquetTable, table_files

SHARED = 10_000
"""Equal cells of a column share one object up to this many distinct cells."""

MAX_NAMED = 20
"""Most rows that a message names."""

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
PARQUET = (".parquet", ".pq")

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\u00ad\ufeff"))
SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " ")


def plain(text: str) -> str:
    """Return the normal form of a text; texts that look the same share it.

    It is stripped and composed (NFC), without invisible marks. A file name unpacked on a Mac holds
    u and two dots where a table holds ü, and web pages leave non-breaking and zero-width spaces.
    """
    text = text.strip()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.translate(INVISIBLE | SPACES)).strip()


class Faults:
    """Counts unusable rows and describes the first MAX_NAMED."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._first: list[str] = []

    def add(self, place: str, fault: str) -> None:
        """Record a row."""
        self._count += 1
        if self._count <= MAX_NAMED:
            self._first.append(f"{place}: {fault}")

    def settle(self, skip: bool) -> tuple[str, ...]:
        """Return the notices about rows that are left out, if any.

        Raises:
            UserError: There are such rows and `skip` is False; names the first.
        """
        if not self._count:
            return ()
        rest = self._count - len(self._first)
        lines = "\n  ".join(self._first + [f"and {rest} more"] * (rest > 0))
        if skip:
            return (
                f"{self._count} rows of {self._path} cannot be used and are left out:\n  {lines}",
            )
        problem = lines if self._count == 1 else f"{self._count} rows cannot be used:\n  {lines}\n"
        gap = "; " if self._count == 1 else ""
        raise UserError(f"{problem}{gap}correct them, or leave them out with --skip-unreadable")


@dataclass(frozen=True, eq=False)
class RowPlaces(Sequence[str]):
    """Describes each row's place in its file. Stores numbers, because there may be millions."""

    path: Path
    unit: str
    """Unit of the numbers, such as "line"."""
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "RowPlaces": ...
    def __getitem__(self, index: int | slice) -> "str | RowPlaces":
        if isinstance(index, slice):
            return RowPlaces(self.path, self.unit, self.numbers[index])
        return f"{self.path}, {self.unit} {self.numbers[index]}"

    def take(self, rows: Sequence[int]) -> "RowPlaces":
        """Return the places of some rows."""
        return replace(self, numbers=array("q", (self.numbers[row] for row in rows)))


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of stripped text cells, "" where empty, in the order of the file."""

    path: Path
    columns: Mapping[str, Sequence[str]]
    places: RowPlaces
    """File and line (CSV) or row (Parquet) of each row, for messages."""
    notices: tuple[str, ...] = ()
    """Lines for the build's summary about rows that were left out."""

    def __len__(self) -> int:
        return len(self.places)

    def column(self, name: str) -> Sequence[str]:
        """Return the cells of a column. If there is none, raise UserError with similar names."""
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name!r}; {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def checked(self, fault_of: Callable[[int], str | None], skip: bool = False) -> "Table":
        """Return the rows for which `fault_of` returns None.

        Raises:
            UserError: There are others and `skip` is False; names them.
        """
        faults, rows = Faults(self.path), array("q")
        for row in range(len(self)):
            if fault := fault_of(row):
                faults.add(self.places[row], fault)
            else:
                rows.append(row)
        notices = self.notices + faults.settle(skip)
        if len(rows) == len(self):
            return self
        columns = {n: tuple(cells[row] for row in rows) for n, cells in self.columns.items()}
        return Table(self.path, columns, self.places.take(rows), notices)

    def with_ids(self, name: str, skip: bool = False) -> "Table":
        """Return the rows with a new item id in a column; the first row of an id counts.

        Raises:
            UserError: There is no such column, or there are other rows and `skip` is False.
        """
        cells, rows = self.column(name), dict[str, int]()

        def fault(row: int) -> str | None:
            if not cells[row]:
                return f"expected an item id in column {name!r}, found none"
            if (before := rows.setdefault(cells[row], row)) != row:
                return (
                    f"expected a unique item id in column {name!r}, found {cells[row]!r} as in "
                    f"{self.places[before]} (--id-column names a column of unique ids)"
                )
            return None

        return self.checked(fault, skip)


class Cells:
    """A column being read. Equal cells share one object while the distinct ones are few."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self._known: dict[str, str] | None = {}

    def append(self, cell: str) -> None:
        """Add a cell in its plain form."""
        cell = plain(cell)
        if self._known is not None:
            cell = self._known.setdefault(cell, cell)
            if len(self._known) > SHARED:
                self._known = None  # the pool would outgrow its savings, as for ids
        self.cells.append(cell)


def read_table(path: Path, skip_unreadable: bool = False) -> Table:
    """Read a table; the file's ending decides between CSV (and its relatives) and Parquet.

    Args:
        path: A file, or a folder of Parquet files, as Spark and pandas write large tables.
        skip_unreadable: Leave out rows that cannot be read instead of raising.

    Raises:
        UserError: There is no such file, the ending is unknown, the text is not UTF-8, a row is
            longer or shorter than the header, a column name repeats, or a Parquet file cannot be
            read.
    """
    if not table_files(path):
        found = "a folder without any .parquet" if path.is_dir() else "none"
        raise UserError(f"{path}: expected a CSV or Parquet file, found {found}")
    if path.is_dir() or path.suffix.lower() in PARQUET:
        return _read_parquet(path)
    if path.suffix.lower() in DELIMITED:
        return _read_delimited(path, skip_unreadable)
    raise UserError(
        f"{path}: expected a table whose name ends in .csv or .parquet, found another; save a "
        "spreadsheet as CSV in UTF-8, unpack an archive"
    )


def _read_delimited(path: Path, skip: bool) -> Table:
    records = read_records(path)
    header = next(records, None)
    if header is None or header.fault:
        found = header.fault if header else "none"
        raise UserError(
            f"{path}, line 1: expected a header with the names of columns, found {found}"
        )
    if any("\0" in cell for cell in header.cells):
        raise UserError(
            f"{path}, line {header.first}: expected the names of columns, found zero bytes, as "
            "in UTF-16 without its mark; save it as UTF-8"
        )
    names = _column_names(path, header.cells)
    columns = [Cells() for _ in names]
    lines, faults = array("q"), Faults(path)
    for record in records:
        fault = record.fault and f"expected CSV, found: {record.fault}"
        found = len(record.cells)
        # Spreadsheets append empty cells; these are not extra commas.
        if not fault and (found < len(names) or any(map(str.strip, record.cells[len(names) :]))):
            fault = f"expected {len(names)} cells as in the header, found {found}"
        if record.cells == header.cells:  # concatenated tables
            fault = "expected a row, found the header once more"
        if fault:
            several = record.last > record.first
            place = f"lines {record.first} to {record.last}" if several else f"line {record.first}"
            faults.add(f"{path}, {place}", fault)
            continue
        lines.append(record.first)
        for column, cell in zip(columns, record.cells):
            column.append(cell)
    notices = faults.settle(skip)
    contents = {
        name: tuple(column.cells)
        for name, column, title in zip(names, columns, header.cells)
        # A column without a name or a cell is the edge of a sheet.
        if title.strip() or any(column.cells)
    }
    return Table(path, contents, RowPlaces(path, "line", lines), notices)


def _column_names(path: Path, header: Sequence[str]) -> list[str]:
    """Return the plain names; an unnamed column, such as pandas' index, is named by its number."""
    names = [plain(cell) or f"column {number}" for number, cell in enumerate(header, 1)]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        where = "; ".join(
            f"{name!r} {'twice' if names.count(name) == 2 else f'{names.count(name)} times'} "
            f"(columns {', '.join(str(n) for n, other in enumerate(names, 1) if other == name)})"
            for name in repeated[:MAX_NAMED]
        )
        raise UserError(f"{path}: expected each column's name once, found {where}; rename them")
    return names


def _read_parquet(path: Path) -> Table:
    table = ParquetTable(path)
    named = dict(zip(table.names, _column_names(path, table.names)))
    columns = {name: Cells() for name in table.plain}
    rows = 0
    for batch in table.batches():
        for name, cells in batch.items():
            for cell in cells:
                columns[name].append(cell)
        rows += max(map(len, batch.values()), default=0)
    contents = {named[name]: tuple(column.cells) for name, column in columns.items()}
    return Table(path, contents, RowPlaces(path, "row", range(1, rows + 1)))
