"""Which split an item is in: by a column, or by a hash that stays as the catalogue grows."""

import hashlib
from collections.abc import Sequence

from adde.errors import UserError
from adde.shards.index import SPLITS
from adde.shards.table import Table

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split column may say, in any case."""


def find_split_column(table: Table) -> str | None:
    """The first column that holds split words only, at least two different ones; or None."""
    for name, cells in table.columns.items():
        words = {cell.lower() for cell in set(cells)}
        if words <= set(SPLIT_WORDS) and len({SPLIT_WORDS[word] for word in words}) > 1:
            return name
    return None


def splits_of_column(table: Table, column: str) -> tuple[str, ...]:
    """Each row's split as a column says it. Raises UserError at any other word."""
    cells = table.column(column)
    for cell, place in zip(cells, table.places):
        if cell.lower() not in SPLIT_WORDS:
            raise UserError(
                f"{place}: expected train, val or test in column {column!r}, found {cell!r}"
            )
    return tuple(SPLIT_WORDS[cell.lower()] for cell in cells)


def splits_by_hash(keys: Sequence[str], val_share: float, test_share: float) -> tuple[str, ...]:
    """Draws each key into a split by its sha256: the same on every run, whatever else is there."""
    splits = {key: _split_of(key, val_share, test_share) for key in set(keys)}
    return tuple(splits[key] for key in keys)


def require_items(splits: Sequence[str], val_share: float, test_share: float, source: str) -> None:
    """Refuses an empty split, unless its share is 0; `source` says what the splits came from."""
    shares = {"train": 1.0, "val": val_share, "test": test_share}
    for split in SPLITS:
        if shares[split] > 0 and split not in splits:
            away = "" if split == "train" else f", or go without by --{split}-share 0"
            raise UserError(
                f"{source}: expected items in split {split!r}, found none of {len(splits)}; "
                f"add some{away}"
            )


def _split_of(key: str, val_share: float, test_share: float) -> str:
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if draw < test_share:
        return "test"
    return "val" if draw < test_share + val_share else "train"
