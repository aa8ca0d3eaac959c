"""Tables of text cells from CSV and Parquet files."""

import csv
import importlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adde.errors import UserError, did_you_mean

SEPARATORS = ",;\t|"
"""The one that the header of a CSV file holds most of separates its cells."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of stripped text cells, "" where empty, in the order of the file."""

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    """File and line (CSV) or row (Parquet) of each row, for messages."""

    def column(self, name: str) -> tuple[str, ...]:
        """Cells of one column. Raises UserError with the nearest names where there is none."""
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name!r}; {did_you_mean(name, self.columns)}")
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Reads a table by the ending of its name, .csv or .parquet.

    Raises:
        UserError: no such file, another ending, not UTF-8, a row of another length than the
            header, a column name that repeats, or a Parquet file that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"--catalogue: expected a CSV or Parquet file, found none at {path}")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"--catalogue: expected a file that ends in .csv or .parquet, found {path.name!r}"
        )
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> Table:
    text = _read_text(path)
    header_line = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header_line.count)  # ties: the comma, which comes first
    # strict: a quote left open would otherwise swallow the rest of the file in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    places: list[str] = []
    rows: list[list[str]] = []
    try:
        names = _column_names(path, next(reader, list[str]()))
        for cells in reader:
            if not any(cells):
                continue  # a blank line
            place = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise UserError(
                    f"{place}: expected {len(names)} cells as in the header, found {len(cells)}"
                )
            places.append(place)
            rows.append([cell.strip() for cell in cells])
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: expected CSV, found: {error}") from None
    columns = zip(*rows) if rows else ((),) * len(names)
    return Table(path, dict(zip(names, columns)), tuple(places))


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found byte {content[error.start]:#04x}; "
            "save the table as UTF-8"
        ) from None


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
    try:
        schema = parquet.read_schema(path)
        # Lists, structs and raw bytes are neither names nor labels.
        plain: dict[str, str] = {
            field.name: name
            for field, name in zip(schema, _column_names(path, list(schema.names)))
            if not arrow.types.is_nested(field.type) and "binary" not in str(field.type)
        }
        # Without a partitioning, a folder called x=1 does not become a column.
        table = parquet.read_table(path, columns=list(plain), partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, found: {error}") from None
    columns = {name: tuple(_texts(table[raw].to_pylist())) for raw, name in plain.items()}
    places = tuple(f"{path}, row {row}" for row in range(1, table.num_rows + 1))
    return Table(path, columns, places)


def _texts(cells: list[Any]) -> Iterator[str]:
    for cell in cells:
        missing = cell is None or cell != cell  # NaN differs from itself
        yield "" if missing else str(cell).strip()
