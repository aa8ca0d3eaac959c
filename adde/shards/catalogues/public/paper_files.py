"""The support files that the paper's authors publish for Shopping100k and DeepFashion.

Their README describes them. `imgs_train.txt` and `imgs_test.txt` name one picture per line.
`labels_train.txt` and `labels_test.txt` hold the one-hot labels of all attributes, line by line,
and `attr_num.txt` the number of values of each attribute. `ref_test.txt`, `indfull_test.txt` and
`gt_test.txt` are the evaluation queries: the reference's line number in `labels_test.txt`, an
indicator of -1, 0 and 1, and the one-hot labels of the target. Queries are stored unchanged.

The files do not name attributes and values; a `schema.json` in the same folder may.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.files import open_text, read_json
from adde.metrics import Queries
from adde.schema import UNKNOWN, Attribute, Labels, Schema, labels_of, shows
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files
from adde.shards.catalogues.public.lists import read_names
from adde.shards.catalogues.tables.splits import splits_by_hash
from adde.shards.catalogues.tables.table import RowPlaces
from adde.shards.queries import QueryList

BLOCK = 4096
"""Lines of numbers read at a time."""

Numbers = npt.NDArray[np.float64]


def read_support(root: Path, images: Path | None, val_share: float, size: int) -> Catalogue:
    """Read the support files of a folder.

    Args:
        root: The folder of the files.
        images: The folder that the names in imgs_*.txt start from; `root` if None.
        val_share: Share of the training items that a hash of their names moves into a validation
            split, which the files lack.
        size: Cap on a picture's short side, pixels.

    Raises:
        UserError: A file is missing, or a line does not follow the module's description.
    """
    schema = _schema(root)
    names, labels, notices, splits = list[str](), list[Labels](), list[str](), list[str]()
    lines: list[int] = []
    for part in ("train", "test"):
        found = read_names(root / f"imgs_{part}.txt")
        rows, several = _read_labels(root / f"labels_{part}.txt", schema)
        if len(rows) != len(found):
            raise UserError(
                f"{root / f'labels_{part}.txt'}: expected {len(found)} lines as in "
                f"imgs_{part}.txt, found {len(rows)}"
            )
        if several:
            notices.append(f"labels_{part}.txt: {several} labels with several values are unknown")
        splits += splits_by_hash(found, val_share, 0) if part == "train" else ["test"] * len(found)
        names += found
        lines += range(1, len(found) + 1)
        labels.append(rows)
    for path in sorted(root.glob("triplet_train*.txt")):
        notices.append(f"{path.name} is not needed: triplets are mined in the batch")
    notices.append(f"validation items are drawn from train, a share of {val_share}")
    queries = _queries(root, schema, first=len(labels[0]), count=len(labels[1]))
    places = RowPlaces(root / "imgs_*.txt", "line", lines)
    return Catalogue(
        name=root.resolve().name,
        schema=schema,
        item_ids=names,
        labels=np.concatenate(labels),
        splits=splits,
        source=picture_files(images or root, names, places, size),
        notices=tuple(notices),
        benchmark=None if queries is None else QueryList(queries, names),
    )


def _schema(root: Path) -> Schema:
    """Return the attributes of attr_num.txt, with the names of schema.json if it exists."""
    path = root / "attr_num.txt"
    words = " ".join(read_names(path)).translate(str.maketrans("[],", "   ")).split()
    # At most six digits: each value gets a name in memory. `str.isdigit` would accept ².
    if not words or not all(re.fullmatch("[0-9]{1,6}", word) for word in words):
        raise UserError(f"{path}: expected the number of values of each attribute, found {words}")
    sizes = tuple(map(int, words))
    if (named := root / "schema.json").exists():
        schema = Schema.from_json(read_json(named), str(named))
        if schema.sizes != sizes:
            raise UserError(f"{named}: expected {sizes} values as in {path}, found {schema.sizes}")
        return schema
    return Schema(
        tuple(
            Attribute(f"attribute_{number:02d}", tuple(map(str, range(size))))
            for number, size in enumerate(sizes, 1)
        )
    )


def _blocks(path: Path, width: int) -> Iterator[tuple[int, Numbers]]:
    """First line number (from 1) and rows (B, width) of each block of a file of numbers."""
    with open_text(path) as file:
        first = 1
        while lines := list(islice(file, BLOCK)):
            where = f"{path}, lines {first} to {first + len(lines) - 1}"
            if not all(map(str.strip, lines)):
                raise UserError(f"{where}: expected {width} numbers per line, found a blank line")
            try:
                block = np.loadtxt(lines, dtype=np.float64, comments=None, ndmin=2)
            except ValueError as error:
                raise UserError(f"{where}: expected rows of numbers, found: {error}") from None
            if block.shape != (len(lines), width):
                raise UserError(f"{where}: expected {width} numbers per line, found {block.shape}")
            yield first, block
            first += len(lines)


def _read_labels(path: Path, schema: Schema) -> tuple[Labels, int]:
    """Labels (N, A) of one-hot rows, and how many are unknown as they have several values.

    Several values of an attribute that is `multiple` in schema.json are a set.
    """
    parts, several = [np.zeros((0, len(schema.sizes)), np.int64)], 0
    for first, block in _blocks(path, schema.num_values):
        labels, more = _from_one_hot(block, schema, f"{path}, from line {first}")
        parts.append(labels)
        several += more
    return np.concatenate(parts), several


def _from_one_hot(block: Numbers, schema: Schema, where: str) -> tuple[Labels, int]:
    if not np.isin(block, (0, 1)).all():
        raise UserError(f"{where}: expected zeros and ones, found {np.unique(block)[:5]}")
    parts = np.split(block, schema.offsets[1:], axis=1)
    counts = np.stack([part.sum(axis=1) for part in parts], axis=1)
    labels = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    labels = np.where(counts == 1, labels, UNKNOWN)
    for a in schema.multiple:
        labels[:, a] = labels_of(parts[a] == 1)
    return labels, int(((counts > 1) & (labels == UNKNOWN)).sum())


def _queries(root: Path, schema: Schema, first: int, count: int) -> Queries | None:
    """Return the evaluation queries; reference n in the files is row `first` + n."""
    path = root / "ref_test.txt"
    if not path.exists():
        return None
    references = np.concatenate([b[:, 0] for _, b in _blocks(path, 1)] or [np.zeros(0)])
    # `isin` also rejects NaN and 1.5.
    if (bad := np.flatnonzero(~np.isin(references, np.arange(count)))).size:
        raise UserError(
            f"{path}, line {bad[0] + 1}: expected a line of labels_test.txt from 0 to {count - 1}, "
            f"found {references[bad[0]]:g}"
        )
    columns = [np.zeros(0, np.int64)]
    asked = root / "indfull_test.txt"
    for line, block in _blocks(asked, schema.num_values):
        if (bad := np.flatnonzero((block == 1).sum(axis=1) != 1)).size:
            raise UserError(f"{asked}, line {line + bad[0]}: expected one 1 for the wanted value")
        columns.append((block == 1).argmax(axis=1))
    column = np.concatenate(columns)
    wanted = root / "gt_test.txt"
    targets, _ = _read_labels(wanted, schema)
    if not len(references) == len(column) == len(targets):
        raise UserError(
            f"{root}: expected as many lines in ref_test.txt, indfull_test.txt and gt_test.txt, "
            f"found {len(references)}, {len(column)} and {len(targets)}"
        )
    attribute = schema.attribute_of_column[column]
    value = column - np.array(schema.offsets)[attribute]
    shown = targets[np.arange(len(targets)), attribute]
    if (bad := np.flatnonzero(~shows(shown, value))).size:
        raise UserError(
            f"{wanted}, line {bad[0] + 1}: expected the value wanted by indfull_test.txt, "
            f"{value[bad[0]]} of {schema.names[attribute[bad[0]]]!r}, found {shown[bad[0]]}"
        )
    return Queries(references.astype(np.int64) + first, attribute, value, targets)
