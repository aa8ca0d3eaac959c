"""SQLite access of the embedded gallery: connections, queries, and errors that name the file."""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, did_you_mean
from adde.schema import MAX_MULTIPLE, SEVERAL, UNKNOWN, Labels
from adde.serving import text_search
from adde.serving.gallery.base import ItemNotFoundError, UnavailableError

ITEMS = "items.sqlite"

LOCK_TIMEOUT = 20.0
"""Seconds to wait for another process or thread to commit."""

# A range of the index on ids: every id with this prefix sorts between the prefix and prefix + LAST.
SIMILAR_IDS = "SELECT id FROM items WHERE live AND id >= ? AND id <= ? LIMIT 1000"
LAST = "\U0010ffff"
"""The highest Unicode code point."""

# The value column has no declared type, so that SQLite keeps "10" and 10 apart.
TABLES = """
CREATE TABLE IF NOT EXISTS items (row INTEGER PRIMARY KEY, id TEXT NOT NULL,
    live INTEGER NOT NULL, labels TEXT NOT NULL, predicted TEXT NOT NULL, fields TEXT NOT NULL,
    place TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS live_ids ON items (id) WHERE live;
CREATE INDEX IF NOT EXISTS dead ON items (row) WHERE NOT live;
CREATE TABLE IF NOT EXISTS names (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS facts (name INTEGER NOT NULL, value NOT NULL, row INTEGER NOT NULL,
    PRIMARY KEY (name, value, row)) WITHOUT ROWID;
"""


def connect(folder: Path, mode: str) -> sqlite3.Connection:
    """Connect to the items of a folder, mode "ro", "rw" or "rwc". Raises UserError."""
    path = folder / ITEMS
    address = f"file:{quote(str(path.resolve()))}?mode={mode}"
    try:
        return sqlite3.connect(
            address, uri=True, check_same_thread=False, timeout=LOCK_TIMEOUT, isolation_level=None
        )
    except sqlite3.Error as error:
        raise damaged(path, error) from None


def open_to_write(folder: Path) -> sqlite3.Connection:
    """Connect for writing and create missing tables. Raises UserError."""
    with ExitStack() as opened:
        database = opened.enter_context(closing(connect(folder, "rwc")))
        try:
            database.execute("PRAGMA synchronous = FULL")
            # 64 MiB of page cache and no spilling: changes reach the file only at commit, so
            # readers do not wait during a transaction.
            database.execute("PRAGMA cache_size = -65536")
            database.execute("PRAGMA cache_spill = OFF")
            database.executescript(TABLES)
            if database.execute("SELECT 1 FROM items LIMIT 1").fetchone() is None:
                database.execute(text_search.TABLE)
        except sqlite3.Error as error:
            raise damaged(folder / ITEMS, error) from None
        opened.pop_all()
        return database


def begin_reading(folder: Path, database: sqlite3.Connection) -> int:
    """Begin a read transaction and return the version that it sees."""
    ends = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            database.execute("BEGIN")
            return database.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):  # Python 3.10 has no error code for this
                raise
            database.rollback()
            if time.monotonic() > ends:
                raise
        _roll_back(folder)


def _roll_back(folder: Path) -> None:
    """Roll back the journal left by a writer that was killed in the middle of a commit.

    Readers open the database read-only on purpose. A read-write reader would roll back any journal
    it finds at this path, even if the folder has been replaced and the journal belongs to the new
    gallery; that would damage both. A new connection, opened by path, sees database and journal of
    the same gallery.
    """
    try:
        # SQLite rolls back on the first read of a writable connection. It does not while a live
        # process writes: then the journal belongs to a gallery that has just replaced ours, and
        # will soon be gone.
        with closing(connect(folder, "rw")) as database:
            database.execute("SELECT max(row) FROM items").fetchone()
    except sqlite3.OperationalError as error:
        raise UnavailableError(
            f"{folder / ITEMS}: a process that wrote the gallery was killed, and its unfinished "
            f"commit cannot be rolled back from here: {error}; open the gallery once where its "
            "folder is writable"
        ) from None
    time.sleep(0.02)


def damaged(path: Path, error: sqlite3.Error) -> UserError:
    """Make the error for a file that is not a readable database."""
    return UserError(f"{path}: expected the gallery's SQLite database, found: {error}")


def require_no_gaps(found: Iterable[int | None], path: Path) -> None:
    """Raise UserError unless rows are numbered 0 to count - 1."""
    last, count = found
    if (-1 if last is None else last) != (count or 0) - 1:
        raise UserError(f"{path}: expected rows 0 to {count}, found {last}; build it again")


def select_rows(
    database: sqlite3.Connection, query: str, values: Sequence[Any] = ()
) -> npt.NDArray[np.int64]:
    """Return the rows that a query finds. They come as one string, so that other threads do not
    wait for the GIL row by row.
    """
    (found,) = database.execute(f"SELECT group_concat(row) FROM ({query})", values).fetchone()
    return np.fromstring(found, np.int64, sep=",") if found else np.empty(0, np.int64)


def shown_label_queries(must: Mapping[int, Labels]) -> Iterator[tuple[str, list[int]]]:
    """Yield one query per attribute for the rows whose known label, or else predicted one, fits.

    As `adde.scoring.fits` with the wanted labels; a label that is a set is at least SEVERAL.
    """
    for a, labels in must.items():
        known, seen = (f"json_extract({column}, '$[{a}]')" for column in ("labels", "predicted"))
        marks = ", ".join("?" * len(labels))
        shown = f"CASE {known} WHEN {UNKNOWN} THEN {seen} ELSE {known} END"
        asked = sum(1 << label for label in labels.tolist() if label < MAX_MULTIPLE)
        mask, test = (asked, "!= 0") if len(labels) == 1 else (SEVERAL - 1 & ~asked, "= 0")
        a_set = f"{known} >= {SEVERAL} AND ({known} & {mask}) {test}"
        yield (
            f"SELECT row FROM items WHERE live AND ({shown} IN ({marks}) OR {a_set})",
            labels.tolist(),
        )


def value_kinds(database: sqlite3.Connection, name: str) -> list[str]:
    """Return the kinds of values that items have in a field: "numbers", "text", or both."""
    number = "SELECT number FROM names WHERE name = ?"
    found = f"SELECT 1 FROM facts WHERE name = ({number}) AND value"
    # Text sorts above every number in SQLite.
    tests = {"numbers": f"{found} < '' LIMIT 1", "text": f"{found} >= '' LIMIT 1"}
    return [kind for kind, test in tests.items() if database.execute(test, (name,)).fetchone()]


def not_found(database: sqlite3.Connection, item_id: str) -> ItemNotFoundError:
    """Make the error for an unknown id, with the most similar ids."""
    start = item_id[: max(1, len(item_id) // 2)]  # of millions, compare only similar ids
    ids = [found for (found,) in database.execute(SIMILAR_IDS, (start, start + LAST))]
    near = f"; {did_you_mean(item_id, ids)}" if ids else ""
    return ItemNotFoundError(f"no item {item_id!r} in the gallery{near}")
