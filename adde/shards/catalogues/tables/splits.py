"""Assign items to splits, by a column or by a hash that stays the same as a catalogue grows."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence

from adde.errors import UserError
from adde.shards.catalogues.tables.table import Table
from adde.shards.index import SPLITS

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "query", "gallery"), "test"),
}
"""Words of a split column, in any case, optionally followed by "set". Retrieval benchmarks divide
their test items into query and gallery."""

SPLIT_NAMES = {"split", "splits", "partition", "subset", "fold", "folds", "evaluation"}
"""A column with one of these words in its name holds splits."""

NAME_WORDS = {"train", "training", "test", "testing", "val", "validation"}
"""So does a column whose name consists of these and FILLING, such as is_train."""

FILLING = {"is", "in", "or", "set", "data"}


def split_of(cell: str) -> str | None:
    """Return the split that a cell means, or None."""
    return SPLIT_WORDS.get(re.sub(r"[\s_-]*set$", "", cell.lower()))


def find_split_columns(table: Table) -> list[str]:
    """Return the columns most of whose non-empty cells are words of at least two splits."""
    return [name for name, cells in table.columns.items() if _says_splits(cells)]


def named_as_split(table: Table) -> list[str]:
    """Return the columns with several values whose names suggest splits."""
    return [
        name
        for name, cells in table.columns.items()
        if _is_split_name(words(name)) and len(set(cells) - {""}) > 1
    ]


def words(name: str) -> list[str]:
    """Return the words of a column's name: isTrain and is_train have the same two."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def find_split_column(table: Table, asked: Collection[str] = ()) -> str | None:
    """Return the column of splits, or None if no column looks like one.

    Args:
        table: N rows.
        asked: Attributes that were asked for; these are never splits.

    Raises:
        UserError: Several columns look like splits, or one does by its name only. Ignoring it could
            train on test items.
    """
    found = [name for name in find_split_columns(table) if name not in asked]
    if len(found) > 1:
        raise UserError(
            f"{table.path}: expected one column of splits, found {found}; name one with "
            "--split-column"
        )
    named = [name for name in named_as_split(table) if name not in asked]
    if not found and named:
        cells = Counter(filter(None, table.column(named[0])))
        raise UserError(
            f"{table.path}: column {named[0]!r} looks like splits, expected train, val or test in "
            f"it, found {', '.join(repr(cell) for cell, _ in cells.most_common(5))}; write those "
            "words there, name another column with --split-column, or rename this one if it means "
            "something else"
        )
    return found[0] if found else None


def with_splits(table: Table, column: str, skip: bool = False) -> Table:
    """Return the rows with a valid split in a column.

    Raises:
        UserError: There are other rows and `skip` is False; names them.
    """
    cells = table.column(column)
    wrong = {cell for cell in set(cells) if split_of(cell) is None}
    return table.checked(
        lambda row: (
            f"expected train, val or test in column {column!r}, found {cells[row] or 'none'!r}"
            if cells[row] in wrong
            else None
        ),
        skip,
    )


def splits_of_column(table: Table, column: str) -> tuple[str, ...]:
    """Return each row's split according to a column. Raises UserError for any other word."""
    splits = {cell: split_of(cell) for cell in set(table.column(column))}
    found = tuple(split for cell in table.column(column) if (split := splits[cell]))
    if len(found) < len(table):
        with_splits(table, column)
    return found


def splits_by_hash(keys: Sequence[str], val_share: float, test_share: float) -> tuple[str, ...]:
    """Assign each key to a split by its sha256, independently of all other keys."""
    splits = {key: _split_of(key, val_share, test_share) for key in set(keys)}
    return tuple(splits[key] for key in keys)


def require_items(splits: Sequence[str], val_share: float, test_share: float, source: str) -> None:
    """Raise UserError for an empty split whose share is not 0; the message begins with `source`."""
    shares = {"train": 1.0, "val": val_share, "test": test_share}
    for split in SPLITS:
        if shares[split] > 0 and split not in splits:
            away = "" if split == "train" else f", or allow an empty split with --{split}-share 0"
            raise UserError(
                f"{source}: expected items in split {split!r}, found none of {len(splits)}; "
                f"add some{away}"
            )


def _says_splits(cells: Sequence[str]) -> bool:
    counts = Counter(cells)
    del counts[""]
    found = {cell: split for cell in counts if (split := split_of(cell))}
    matching = sum(counts[cell] for cell in found)
    return len(set(found.values())) > 1 and 2 * matching >= counts.total()


def _is_split_name(name: list[str]) -> bool:
    only_words = NAME_WORDS.intersection(name) and set(name) <= NAME_WORDS | FILLING
    return bool(only_words or SPLIT_NAMES.intersection(name))


def _split_of(key: str, val_share: float, test_share: float) -> str:
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if draw < test_share:
        return "test"
    return "val" if draw < test_share + val_share else "train"
