"""Parquet tables as columns of text: one file, or a folder of parts written by Spark or pandas."""

import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from adde.errors import untrusted

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
"""Means a missing value in the name of a folder."""


class ParquetTable:
    """A Parquet file, or the parts of a data set in the order of their names.

    Lists of texts are read as JSON. Other lists, structs and raw bytes are left out. Values in
    folder names (colour=red/) form a column. A column that a part lacks is empty there.

    Raises:
        UserError: A file cannot be read; any method may raise this.
    """

    def __init__(self, path: Path) -> None:
        # Imported here, because the base install lacks it. It has no type information.
        self._types: Any = importlib.import_module("pyarrow").types
        self._parquet: Any = importlib.import_module("pyarrow.parquet")
        self._files = table_files(path)
        self._folders = [_cells_of_folders(file, path) for file in self._files]
        fields: list[Any] = []
        for file in self._files:
            with untrusted(file, "a Parquet file"):
                fields.append(list(self._parquet.read_schema(file)))
        self.names = [field.name for field in fields[0]]
        """Columns of the first part, repeated ones included, then those of other parts."""
        others = [name for folder in self._folders for name in folder]
        others += [field.name for part in fields[1:] for field in part]
        self.names += [name for name in dict.fromkeys(others) if name not in self.names]
        everything = [field for part in fields for field in part]
        self._left_out = {field.name for field in everything if self._is_no_text(field.type)}
        # One part may hold whole numbers where another holds 1.0 and NaN.
        self._floats = {f.name for f in everything if self._types.is_floating(f.type)}

    @property
    def plain(self) -> list[str]:
        """Return the names of the columns that are read."""
        return [name for name in self.names if name not in self._left_out]

    def batches(self) -> Iterator[dict[str, list[str]]]:
        """Yield the cells of each column of `plain`, some rows at a time; "" if missing."""
        for path, folder in zip(self._files, self._folders):
            with untrusted(path, "a Parquet file"), self._parquet.ParquetFile(path) as file:
                there = [name for name in self.plain if name in file.schema_arrow.names]
                for batch in file.iter_batches(columns=there):
                    cells = {name: [folder.get(name, "")] * batch.num_rows for name in self.plain}
                    yield cells | {name: self._texts(name, batch.column(name)) for name in there}

    def _texts(self, name: str, column: Any) -> list[str]:
        cells: Iterable[Any] = column.to_pylist()
        if name in self._floats:
            # The shortest text of the number, as in a CSV: 0.1, not 0.10000000149.
            single = self._types.is_float32(column.type) or self._types.is_float16(column.type)
            number: Any = np.float32 if single else float
            cells = [
                cell if cell is None or isinstance(cell, str) else number(cell) for cell in cells
            ]
        return list(as_texts(cells))

    def _is_no_text(self, kind: Any) -> bool:
        if self._types.is_list(kind) or self._types.is_large_list(kind):
            return "string" not in str(kind.value_type)
        return self._types.is_nested(kind) or "binary" in str(kind)


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: the file itself, or all Parquet files in the folder.

    Names that begin with a dot or an underscore are metadata of the program that wrote the folder.
    """
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.rglob("*.parquet")) if file.is_file()]
    return [f for f in found if not any(p[0] in "._" for p in f.relative_to(path).parts)]


def as_texts(cells: Iterable[Any]) -> Iterator[str]:
    """Yield cells of any plain type as text, lists of texts as JSON, "" if missing."""
    for cell in cells:
        if isinstance(cell, list):
            yield json.dumps(cell, ensure_ascii=False) if cell else ""
            continue
        missing = cell is None or cell != cell  # NaN is not equal to itself
        yield "" if missing else str(cell)


def _cells_of_folders(file: Path, root: Path) -> dict[str, str]:
    """Return the values in the folder names of a part, by column."""
    folders = file.relative_to(root).parts[:-1] if file != root else ()
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder]
    return {unquote(name): "" if value == NULL_FOLDER else unquote(value) for name, value in pairs}
