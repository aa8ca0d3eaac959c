"""The gallery that needs no service: SQLite for the items, one mapped file for the vectors.

Layout of the folder, beside gallery.json::

    items.sqlite   a row per stored vector; what SQLite has committed is what the gallery holds
    vectors.f32    row r at r * (A D + A + 1) floats: unit vector, squared lengths of its
                   subspaces, length before normalising
    index.*        where there are too many items to look at each: see `adde.serving.index`

Vectors are written and synced before SQLite commits their rows, so a process killed at any
moment leaves the last committed state, and at most bytes behind the last row that the next write
covers. An update stores a new row and marks the old one dead; `snapshot` leaves the dead out.
"""

import fcntl
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, did_you_mean
from adde.files import atomic_path
from adde.schema import Vector
from adde.serving import filters as filtering
from adde.serving.facets import Facet, facets_of
from adde.serving.gallery import (
    SLACK,
    BusyError,
    Header,
    Item,
    ItemNotFoundError,
    augmented,
    augmented_query,
    facts,
    require_once,
)
from adde.serving.index import Index, Mask, exact

ITEMS, VECTORS, LOCK = "items.sqlite", "vectors.f32", "lock"

EXACT_ITEMS = 200_000
"""Up to here every item is looked at, if not asked otherwise."""

TABLES = """
CREATE TABLE IF NOT EXISTS items (row INTEGER PRIMARY KEY, id TEXT NOT NULL,
    live INTEGER NOT NULL, labels TEXT NOT NULL, predicted TEXT NOT NULL, fields TEXT NOT NULL,
    facts TEXT NOT NULL, place TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS live_ids ON items (id) WHERE live;
CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY);
"""
COLUMNS = "row, id, labels, predicted, fields, place"


@dataclass(frozen=True)
class _State:
    """One committed state; searches hold on to it while the next is made."""

    rows: Vector
    """(N, A D + A + 1) float32, mapped."""
    live: Mask
    """(N,) which rows are items."""


class EmbeddedGallery:
    """A gallery in a folder, of one process that may write and others that read.

    A reader sees what was committed when it opened the folder.

    Args:
        folder: where it lies.
        writable: may be changed.
        exact_items: `finish` builds an index for more than these.

    Raises:
        UserError: no gallery there, it is damaged, or another process writes it.
    """

    def __init__(
        self, folder: Path, writable: bool = False, exact_items: int = EXACT_ITEMS
    ) -> None:
        self.header = Header.read(folder)
        self._folder = folder
        self._lock = threading.RLock()
        attributes = len(self.header.schema.sizes)
        self._shape = (attributes, self.header.width)
        self._stride = attributes * self.header.width + attributes + 1
        self._writable, self._exact_items = writable, exact_items
        with ExitStack() as opened:
            if writable:
                opened.callback(os.close, _only_writer(folder))
            self._database = opened.enter_context(closing(_open_database(folder, writable)))
            mode = "r+b" if writable else "rb"
            self._vectors = opened.enter_context((folder / VECTORS).open(mode, buffering=0))
            self._state = self._read_state()
            self.index = Index.open(folder)
            # Also where nobody closes it.
            self._close = weakref.finalize(self, opened.pop_all().close)

    @classmethod
    def create(
        cls, folder: Path, header: Header, exact_items: int = EXACT_ITEMS
    ) -> "EmbeddedGallery":
        """A new empty gallery, open for writing."""
        folder.mkdir(parents=True)
        (folder / VECTORS).touch()
        header.write(folder)
        return cls(folder, True, exact_items)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._state.live))

    def probe(self) -> int:
        """See `Gallery`."""
        return len(self)

    def nearest(
        self,
        query: Vector,
        weights: Vector,
        k: int,
        filters: Mapping[str, Any],
        exclude: str | None = None,
    ) -> list[Item]:
        """See `Gallery`. Ties go to the item stored first."""
        state = self._state
        allowed = self._allowed(state, filters, exclude)
        wanted = min(k + SLACK, int(np.count_nonzero(allowed)))
        if not wanted:
            return []
        vector = augmented_query(query, weights)
        rows = (
            None if self.index is None else self.index.search(vector, allowed, state.rows, wanted)
        )
        if rows is None:
            rows = exact(state.rows, allowed, vector, wanted)
        return self._items(state, rows)

    def _allowed(self, state: _State, filters: Mapping[str, Any], exclude: str | None) -> Mask:
        if not filters and exclude is None:
            return state.live
        allowed = state.live.copy()
        with self._lock:
            if filters:
                names = [*self.header.schema.names]
                names += [name for (name,) in self._database.execute("SELECT name FROM names")]
                clause, values = filtering.to_sql(filtering.parse(filters, names))
                found = self._database.execute(f"SELECT row FROM items WHERE {clause}", values)
                passed = np.fromiter((row for (row,) in found), np.int64)
                keep = np.zeros_like(allowed)
                keep[passed[passed < len(keep)]] = True
                allowed &= keep
            if exclude is not None:
                query = "SELECT row FROM items WHERE live AND id = ?"
                for (row,) in self._database.execute(query, (exclude,)):
                    allowed[row : row + 1] = False
        return allowed

    def get(self, item_id: str) -> Item:
        """See `Gallery`."""
        with self._lock:
            query = f"SELECT {COLUMNS} FROM items WHERE live AND id = ?"
            record = self._database.execute(query, (item_id,)).fetchone()
            if record is None:
                raise self._not_found(item_id)
            return self._item(self._state, record)

    def _not_found(self, item_id: str) -> ItemNotFoundError:
        start = item_id[: max(1, len(item_id) // 2)]  # of a million ids, those worth comparing
        query = "SELECT id FROM items WHERE live AND substr(id, 1, ?) = ? LIMIT 1000"
        ids = [found for (found,) in self._database.execute(query, (len(start), start))]
        near = f"; {did_you_mean(item_id, ids)}" if ids else ""
        return ItemNotFoundError(f"no item {item_id!r} in the gallery{near}")

    def _items(self, state: _State, rows: npt.NDArray[np.int64]) -> list[Item]:
        marks = ", ".join("?" * len(rows))
        # Rows are never changed, so what a search found is there whatever happened since.
        query = f"SELECT {COLUMNS} FROM items WHERE row IN ({marks})"
        with self._lock:
            records = {r[0]: r for r in self._database.execute(query, rows.tolist())}
        return [self._item(state, records[row]) for row in rows.tolist()]

    def _item(self, state: _State, record: tuple[Any, ...]) -> Item:
        row, item_id, labels, predicted, fields, place = record
        values = np.array(state.rows[row])
        return Item(
            item_id=item_id,
            labels=np.array(json.loads(labels), np.int64),
            predicted=np.array(json.loads(predicted), np.int64),
            vector=values[: self._shape[0] * self._shape[1]].reshape(self._shape),
            norm=float(values[-1]),
            fields=json.loads(fields),
            place=tuple(stored) if (stored := json.loads(place)) else None,
        )

    def facets(self) -> list[Facet]:
        """See `Gallery`."""
        with self._lock:
            query = "SELECT fields FROM items WHERE live AND fields != '{}'"
            return facets_of(json.loads(text) for (text,) in self._database.execute(query))

    def upsert(self, items: Sequence[Item]) -> None:
        """See `Gallery`. Raises UserError where the gallery was not opened for writing."""
        if not items:
            return
        records = [(item, facts(self.header.schema, item)) for item in items]
        require_once(items)
        with self._writing():
            start = len(self._state.live)
            self._append(start, items)
            live = np.append(self._state.live, np.ones(len(items), np.bool_))
            with self._transaction():
                for row, (item, known) in enumerate(records, start):
                    live[self._bury(item.item_id)] = False
                    self._insert(row, item, known)
            self._state = self._map(live)

    def _append(self, start: int, items: Sequence[Item]) -> None:
        unit = np.stack([item.vector for item in items]).astype(np.float32)
        if unit.shape[1:] != self._shape:
            raise ValueError(f"expected vectors of shape {self._shape}, found {unit.shape[1:]}")
        norms = np.array([[item.norm] for item in items], np.float32)
        rows = np.concatenate([augmented(unit), norms], axis=1)
        content, at = memoryview(rows.tobytes()), start * self._stride * 4
        while content:
            written = os.pwrite(self._vectors.fileno(), content, at)
            content, at = content[written:], at + written
        os.fsync(self._vectors.fileno())

    def _insert(self, row: int, item: Item, known: Mapping[str, Any]) -> None:
        execute = self._database.execute
        values = (item.labels.tolist(), item.predicted.tolist(), item.fields, known, item.place)
        texts = [json.dumps(value) for value in values]
        execute("INSERT INTO items VALUES (?, ?, 1, ?, ?, ?, ?, ?)", (row, item.item_id, *texts))
        for name in item.fields:
            execute("INSERT OR IGNORE INTO names VALUES (?)", (name,))

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Gallery`. Raises UserError where the gallery was not opened for writing."""
        with self._writing():
            with self._transaction():
                buried = [row for item_id in item_ids for row in self._bury(item_id)]
            live = self._state.live.copy()
            live[buried] = False
            self._state = self._map(live)
        return len(buried)

    def _bury(self, item_id: str) -> list[int]:
        """Marks an item dead, if there is one; the rows that it had."""
        query = "SELECT row FROM items WHERE live AND id = ?"
        rows = [row for (row,) in self._database.execute(query, (item_id,))]
        self._database.executemany("UPDATE items SET live = 0 WHERE row = ?", zip(rows))
        return rows

    def _writing(self) -> threading.RLock:
        if not self._writable:
            raise UserError(f"{self._folder}: the gallery is open for reading only")
        return self._lock

    @contextmanager
    def _transaction(self) -> Generator[None]:
        try:
            with self._database:
                yield
        except sqlite3.OperationalError as error:  # the disk is full, or gone
            raise UserError(f"{self._folder / ITEMS}: nothing was written: {error}") from error

    def _read_state(self) -> _State:
        found = self._database.execute("SELECT live FROM items ORDER BY row")
        return self._map(np.fromiter((value for (value,) in found), np.bool_))

    def _map(self, live: Mask) -> _State:
        expected = len(live) * self._stride * 4
        size = os.fstat(self._vectors.fileno()).st_size
        if size < expected:
            raise UserError(
                f"{self._folder / VECTORS}: expected {expected} bytes, found {size}; "
                "the gallery is damaged, build it again"
            )
        shape = (len(live), self._stride)
        if not len(live):  # nothing to map
            return _State(np.empty(shape, np.float32), live)
        return _State(np.memmap(self._vectors, np.float32, "r", shape=shape), live)

    def finish(self) -> None:
        """Builds the index where there are too many items to look at each."""
        if len(self) > self._exact_items:
            self.build_index()

    def build_index(self) -> None:
        """Builds the index of all rows there are, with its recall beside it."""
        with self._writing():
            state = self._state
        self.index = Index.build(self._folder, state.rows, state.live, self._shape)

    def snapshot(self, folder: Path) -> None:
        """Writes the present state as a gallery of its own, without dead rows; all or nothing."""
        with (
            atomic_path(folder) as temporary,
            closing(EmbeddedGallery.create(temporary, self.header)) as copy,
        ):
            state = self._state
            rows = np.flatnonzero(state.live)
            for at in range(0, len(rows), 1024):
                copy.upsert(self._items(state, rows[at : at + 1024]))
            if self.index is not None and len(copy):
                copy.build_index()
            else:
                copy.finish()

    def close(self) -> None:
        """Lets go of the files."""
        with self._lock:
            self._close()


def _only_writer(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise BusyError(
            f"{folder}: another process writes this gallery; wait for it or end it"
        ) from None
    return descriptor


def _open_database(folder: Path, writable: bool) -> sqlite3.Connection:
    path = folder / ITEMS
    mode = "rwc" if writable else "ro"
    with ExitStack() as opened:
        try:
            address = f"file:{quote(str(path.resolve()))}?mode={mode}"
            database = sqlite3.connect(address, uri=True, check_same_thread=False)
            opened.enter_context(closing(database))
            if writable:
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(TABLES)
            _whole(database.execute("SELECT max(row), count(*) FROM items").fetchone(), path)
        except sqlite3.Error as error:
            raise UserError(f"{path}: expected the gallery's items, found: {error}") from None
        opened.pop_all()
        return database


def _whole(found: Iterable[int | None], path: Path) -> None:
    last, count = found
    if (-1 if last is None else last) != (count or 0) - 1:
        raise UserError(f"{path}: expected rows 0 to {count}, found {last}; build it again")
