"""A Hugging Face image dataset on disk, as `Dataset.save_to_disk` writes it.

A folder holds `state.json`, which names its Arrow files, `dataset_info.json` with its features, and
the files: Arrow streams in which a picture is {bytes, path}. A DatasetDict has `dataset_dict.json`
and one such folder per split. Only pyarrow is needed. Files are memory-mapped, so pictures stay on
disk.
"""

import importlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from adde.errors import UserError, untrusted
from adde.files import read_json
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.pictures import store
from adde.shards.catalogues.tables.parquet import as_texts
from adde.shards.catalogues.tables.splits import split_of, splits_by_hash
from adde.shards.catalogues.tables.table import Cells, RowPlaces, Table
from adde.shards.catalogues.tables.tabular import TableOptions, table_catalogue

OPEN_FILES = 16
"""Arrow files that a process keeps mapped."""


@dataclass(frozen=True)
class ArrowPicture(PictureSource):
    """One picture in an Arrow file."""

    file: Path
    column: str
    row: int
    size: int
    stamped: int
    """Modification time of the file; part of the stamp."""

    def read(self) -> tuple[bytes, str]:
        """Return the picture with a short side of at most `size`; see `PictureSource.read`."""
        where = f"{self.file}, row {self.row}, {self.column!r}"
        with untrusted(where, "a picture's bytes or its path"):
            cell = _opened(self.file).column(self.column)[self.row].as_py()
            content = cell["bytes"] if cell else None
            if content is None and cell and cell["path"]:
                where = f"{where}, {cell['path']}"
                content = (self.file.parent / cell["path"]).read_bytes()
        if not isinstance(content, bytes):
            raise UserError(f"{where}: expected a picture, found none")
        return store(content, where, self.size)


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path) -> Any:
    """Return the memory-mapped table of an Arrow stream; rows are read only on access."""
    arrow: Any = importlib.import_module("pyarrow")
    with untrusted(path, "an Arrow stream"):
        table = arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()
        table.validate(full=True)  # damaged offsets would otherwise read outside the file
        return table


def read_saved_dataset(root: Path, options: TableOptions, size: int) -> Catalogue:
    """Read a saved Dataset or DatasetDict as a catalogue.

    Columns of plain values and of ClassLabel may become attributes. The splits are those of a
    DatasetDict. If it has no validation split, a share of train becomes one.

    Raises:
        UserError: A file is missing or damaged, there is not exactly one column of pictures, or see
            `table_catalogue`.
    """
    parts = _parts(root)
    features = _features(next(iter(parts.values())))
    image = _image_column(root, features, options.image_column)
    files, ends, columns = list[Path](), list[int](), {name: Cells() for name in features}
    columns.pop(image)
    # The dataset may already have columns of these names.
    split_name, row_name = (_unused(name, features) for name in ("split", "row"))
    columns[split_name], columns[row_name] = Cells(), Cells()
    for split, folder in parts.items():
        if _features(folder) != features:
            raise UserError(f"{folder}: expected the same features as in every split")
        for file in _data_files(folder):
            table = _opened(file)
            with untrusted(file, f"the columns that {folder / 'dataset_info.json'} names"):
                _append(columns, table, features)
            start = ends[-1] if ends else 0
            for row in range(start, start + table.num_rows):
                columns[split_name].append(split)
                columns[row_name].append(f"{row:08d}")
            files.append(file)
            ends.append(start + table.num_rows)
    rows = len(columns[row_name].cells)
    cells = {name: column.cells for name, column in columns.items()}
    notices: list[str] = []
    if len(parts) == 1 or options.group_by:
        del cells[split_name]
    elif not options.split_column:
        splits, names = cells[split_name], cells[row_name]
        cells[split_name] = _with_validation(splits, names, options.val_share, notices)
        options = replace(options, split_column=split_name)
    table = Table(root, cells, RowPlaces(root, "row", range(rows)))
    options = replace(options, id_column=options.id_column or row_name)

    def source(row: int) -> ArrowPicture:
        number = bisect_right(ends, row)
        file, start = files[number], ends[number - 1] if number else 0
        return ArrowPicture(file, image, row - start, size, file.stat().st_mtime_ns)

    catalogue = table_catalogue(table, source, options)
    return replace(catalogue, notices=(*catalogue.notices, *notices))


def _unused(name: str, features: dict[str, Any]) -> str:
    while name in features:
        name = f"_{name}"
    return name


def _with_validation(
    splits: list[str], names: list[str], val_share: float, notices: list[str]
) -> list[str]:
    """Return the splits; if none is val, a hash of the names moves a share of train into it."""
    counts = Counter(split_of(split) for split in splits)
    if counts["val"] or not val_share:
        return splits
    notices.append(f"validation items are drawn from train, a share of {val_share}")
    drawn = splits_by_hash(names, val_share, 0)
    return [new if split_of(split) == "train" else split for split, new in zip(splits, drawn)]


def _parts(root: Path) -> dict[str, Path]:
    """Return the folder of each split; a Dataset saved alone counts as train."""
    listing = root / "dataset_dict.json"
    if not listing.exists():
        return {"train": root}
    try:
        return {str(split): root / split for split in read_json(listing)["splits"]}
    except (KeyError, TypeError):
        raise UserError(f"{listing}: expected a list of splits, found none") from None


def _features(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    content: Any = read_json(path)
    try:
        return dict(content["features"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: expected the dataset's features, found none") from None


def _data_files(folder: Path) -> Iterator[Path]:
    path = folder / "state.json"
    try:
        for entry in read_json(path)["_data_files"]:
            yield folder / entry["filename"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: expected the names of its Arrow files, found none") from None


def _image_column(root: Path, features: dict[str, Any], asked: str | None) -> str:
    found = [name for name, feature in features.items() if _type(feature) == "Image"]
    if asked in found:
        return asked
    if asked is not None or len(found) != 1:
        raise UserError(
            f"{root}: expected one column of pictures, found {found}; name one with --image-column"
        )
    return found[0]


def _append(columns: dict[str, Cells], table: Any, features: dict[str, Any]) -> None:
    for name, feature in features.items():
        kind = _type(feature)
        if name not in columns:
            continue
        if kind not in ("Value", "ClassLabel"):
            columns.pop(name)  # lists, structs and further pictures are not labels
            continue
        for batch in table.column(name).chunks:
            cells = batch.to_pylist()
            if kind == "ClassLabel":
                names = feature["names"]
                cells = [None if c is None or c < 0 else names[c] for c in cells]
            for cell in as_texts(cells):
                columns[name].append(cell)


def _type(feature: Any) -> object:
    try:
        return feature["_type"]
    except (KeyError, TypeError):
        return None  # a list or a struct of features
