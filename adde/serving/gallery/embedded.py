"""The gallery engine that needs no service: SQLite for the items, flat files for the vectors.

Layout of the folder, beside gallery.json::

    items.sqlite   one row per stored vector; the rows committed here are the gallery
    vectors.f32    row r at r * (A D + A + 1) floats: the unit vector, the squared lengths of its
                   subspaces, and the length before normalising
    beliefs.f32    row r at r * (V + A) floats, known labels certain; only if calibrated
    index.*        the search index of a large gallery: see `adde.serving.gallery.index`

Vectors and beliefs are written and fsynced before SQLite commits their rows. A process killed at
any moment therefore leaves the last committed state, plus at most some bytes after the last row,
which the next write overwrites. An update adds a new row and marks the old one dead; `snapshot`
writes a copy without dead rows.

Stored rows and their facts never change. SQLite's user_version counts commits; before every answer
a reader, in this process or another, compares it with its cached state and reloads the row list if
it has changed.
"""

import json
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.files import atomic_path
from adde.schema import Vector
from adde.scoring import Calibration
from adde.serving import text_search
from adde.serving.gallery import filters as filtering
from adde.serving.gallery.base import (
    GALLERY_NAME,
    Fields,
    Header,
    Item,
    UnavailableError,
    beliefs_to_store,
    facts,
    require_unique,
)
from adde.serving.gallery.facets import Facet, facets_of
from adde.serving.gallery.index import Index
from adde.serving.gallery.item_database import (
    ITEMS,
    begin_reading,
    connect,
    damaged,
    not_found,
    open_to_write,
    require_no_gaps,
    select_rows,
    shown_label_queries,
    value_kinds,
)
from adde.serving.gallery.row_file import RowFile, lock_for_writing, writer_lock
from adde.serving.gallery.scan import Mask, best_match_rows, nearest_rows, rows_showing
from adde.serving.gallery.scorers import BY_DISTANCE, SLACK, DistanceScorer, RankOptions, augmented

VECTORS, BELIEFS = "vectors.f32", "beliefs.f32"

EXACT_ITEMS = 20_000
"""Galleries of at most this many items are scanned exactly; larger ones get an index."""

READERS = 4
"""Read connections, so that one slow search does not block the others."""

ROWS_PER_READ = 10_000
"""Rows per read of a full scan: a commit waits until the read ends."""

COLUMNS = "row, id, labels, predicted, fields, place"


@dataclass(frozen=True)
class _State:
    """One committed state; running searches keep theirs while the next one is created."""

    rows: Vector
    """(N, A D + A + 1) float32, mapped."""
    beliefs: Vector | None
    """(N, V + A) float32, mapped."""
    live: Mask
    """(N,) True for rows that are live items."""
    version: int
    """SQLite's user_version, which grows with every commit."""


class EmbeddedGallery:
    """A gallery in a folder, with at most one writing process and any number of readers.

    Every call sees the state committed when it begins, by whichever process.

    Args:
        folder: the gallery's folder.
        writable: open it for changes.
        exact_items: `finish` builds an index for more items than this.

    Raises:
        UserError: there is no gallery, it is damaged, or another process writes it.
    """

    def __init__(
        self, folder: Path, writable: bool = False, exact_items: int = EXACT_ITEMS
    ) -> None:
        self.header = Header.read(folder)
        self._folder = folder
        self._lock, self._latest = threading.RLock(), threading.Lock()
        attributes = len(self.header.schema.sizes)
        self._shape = (attributes, self.header.width)
        self._stride = attributes * self.header.width + attributes + 1
        self._writable, self._exact_items = writable, exact_items
        self._readers: LifoQueue[sqlite3.Connection] = LifoQueue()
        with ExitStack() as opened:
            if writable:
                opened.callback(os.close, lock_for_writing(folder))
                self._database = opened.enter_context(closing(open_to_write(folder)))
            for _ in range(READERS):
                self._readers.put(opened.enter_context(closing(connect(folder, "ro"))))
            mode = "r+b" if writable else "rb"
            self._vectors = RowFile(opened, folder / VECTORS, mode, self._stride)
            columns = self.header.schema.num_values + attributes
            self._beliefs = (
                RowFile(opened, folder / BELIEFS, mode, columns) if self.header.calibrated else None
            )
            self._state = self._map_state(np.empty(0, np.bool_), -1)
            with self._reading() as (database, _):
                whole = database.execute("SELECT max(row), count(*) FROM items").fetchone()
                require_no_gaps(whole, folder / ITEMS)
            self.index = Index.open(folder)
            # Files are closed even if the caller forgets to.
            self._close = weakref.finalize(self, opened.pop_all().close)

    @classmethod
    def create(
        cls, folder: Path, header: Header, exact_items: int = EXACT_ITEMS
    ) -> "EmbeddedGallery":
        """Create an empty gallery and open it for writing."""
        folder.mkdir(parents=True)
        (folder / VECTORS).touch()
        if header.calibrated:
            (folder / BELIEFS).touch()
        header.write(folder)
        return cls(folder, True, exact_items)

    @contextmanager
    def _reading(self) -> Generator[tuple[sqlite3.Connection, _State]]:
        """Yield a connection inside a read transaction, and the state that it sees.

        Commits wait until the block ends, so keep it short.

        Raises:
            UnavailableError: the database cannot be read at present.
            UserError: it is damaged.
        """
        database = self._readers.get()
        try:
            yield database, self._state_of(database, begin_reading(self._folder, database))
        except sqlite3.OperationalError as error:
            path = self._folder / ITEMS
            raise UnavailableError(f"{path}: the gallery cannot be read now: {error}") from error
        except sqlite3.DatabaseError as error:
            raise damaged(self._folder / ITEMS, error) from error
        finally:
            with suppress(sqlite3.Error):
                database.rollback()
            self._readers.put(database)

    def _state_of(self, database: sqlite3.Connection, version: int) -> _State:
        state = self._state
        return (
            state
            if state.version == version
            else self._publish(self._read_state(database, version))
        )

    def _publish(self, state: _State) -> _State:
        with self._latest:  # another thread may have published a later one
            if state.version > self._state.version:
                self._state = state
        return state

    def _current_state(self) -> _State:
        with self._reading() as (_, state):
            return state

    def __len__(self) -> int:
        return int(np.count_nonzero(self._current_state().live))

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
        asked: RankOptions = BY_DISTANCE,
    ) -> list[Item]:
        """See `Gallery`. Ties go to the item stored first."""
        with self._reading() as (database, state):
            allowed = self._allowed(database, state, filters, exclude)
            if asked.must and state.beliefs is None:
                for query_of_rows in shown_label_queries(asked.must):
                    allowed = allowed & _mask(select_rows(database, *query_of_rows), len(allowed))
        if asked.must and state.beliefs is not None:
            show = rows_showing if self.index is None else self.index.rows_showing
            allowed = show(state.beliefs, allowed, asked.must, self.header.schema)
        wanted = min(k + SLACK, int(np.count_nonzero(allowed)))
        if not wanted:
            return []
        near = DistanceScorer(query, weights, asked.unit)
        return self._items(state, self._best(state, allowed, near, asked, wanted))

    def _best(
        self, state: _State, allowed: Mask, near: DistanceScorer, asked: RankOptions, k: int
    ) -> npt.NDArray[np.int64]:
        if not asked.by_beliefs:
            if self.index is None:
                return nearest_rows(state.rows, allowed, near, k)
            return self.index.nearest(near, allowed, state.rows, k)
        if state.beliefs is None:
            raise ValueError("expected a gallery with beliefs to match, found none")
        match = asked.match_scorers(near.weights, self.header.schema, k)
        if self.index is None:
            return best_match_rows(state.beliefs, state.rows, allowed, match, near)
        return self.index.matches(match, near, allowed, state.rows, state.beliefs)

    def _allowed(
        self,
        database: sqlite3.Connection,
        state: _State,
        filters: Mapping[str, Any],
        exclude: str | None,
    ) -> Mask:
        if not filters and exclude is None:
            return state.live
        allowed = state.live.copy()
        if filters:
            names = [*self.header.schema.names]
            names += [name for (name,) in database.execute("SELECT name FROM names")]
            for condition in filtering.parse(filters, names, self.header.schema):
                rows = select_rows(database, *filtering.to_sql(condition))
                if not len(rows):
                    filtering.require_kind(condition, value_kinds(database, condition.name))
                allowed &= _mask(rows, len(allowed))
        if exclude is not None:
            query = "SELECT row FROM items WHERE live AND id = ?"
            allowed[select_rows(database, query, [exclude])] = False
        return allowed

    def get(self, item_id: str) -> Item:
        """See `Gallery`."""
        with self._reading() as (database, state):
            query = f"SELECT {COLUMNS} FROM items WHERE live AND id = ?"
            record = database.execute(query, (item_id,)).fetchone()
            if record is None:
                raise not_found(database, item_id)
        return self._item(state, record)

    def _items(self, state: _State, rows: npt.NDArray[np.int64]) -> list[Item]:
        marks = ", ".join("?" * len(rows))
        # Rows never change, so those that a search found still exist whatever was committed since.
        query = f"SELECT {COLUMNS} FROM items WHERE row IN ({marks})"
        with self._reading() as (database, _):
            records = {r[0]: r for r in database.execute(query, rows.tolist())}
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
            beliefs=None if state.beliefs is None else np.array(state.beliefs[row]),
        )

    def browse(
        self, text: str, filters: Mapping[str, Any], count: int, offset: int = 0, seed: int = 0
    ) -> list[Item]:
        """See `Gallery`."""
        with self._reading() as (database, state):
            allowed = self._allowed(database, state, filters, None)
            if not text.strip():
                rows = np.random.default_rng(seed).permutation(np.flatnonzero(allowed))
            elif not database.execute(text_search.TABLE_EXISTS).fetchone():
                raise UserError(
                    "query: this gallery was built before items had words; build it again"
                )
            elif asked := text_search.to_fts(text):
                rows = select_rows(database, text_search.FIND, [asked])
                rows = rows[allowed[rows]]
            else:
                rows = np.empty(0, np.int64)
        return self._items(state, rows[offset : offset + count])

    def items_not_from_shards(self) -> Iterator[list[Item]]:
        """Yield, in blocks, the items that were added directly and have no picture in a shard."""
        state = self._current_state()
        query = "SELECT row FROM items WHERE live AND place = 'null' AND row < ?"
        with self._reading() as (database, _):
            rows = select_rows(database, query, [len(state.live)])
        for at in range(0, len(rows), 1024):
            yield self._items(state, rows[at : at + 1024])

    def facets(self) -> list[Facet]:
        """See `Gallery`."""
        return facets_of(json.loads(text) for text in self._fields())

    def _fields(self) -> Iterator[str]:
        state = self._current_state()
        query = "SELECT row, fields FROM items WHERE row >= ? AND row < ? AND fields != '{}'"
        for start in range(0, len(state.live), ROWS_PER_READ):
            with self._reading() as (database, _):
                found = database.execute(query, (start, start + ROWS_PER_READ)).fetchall()
            yield from (text for row, text in found if state.live[row])

    def upsert(self, items: Sequence[Item]) -> None:
        """See `Gallery`. Raises UserError where the gallery was not opened for writing."""
        if not items:
            return
        known = [facts(self.header.schema, item) for item in items]
        require_unique(items)
        with self._writing() as state:
            start = len(state.live)
            self._append(start, items)
            live = np.append(state.live, np.ones(len(items), np.bool_))
            with self._transaction(state):
                for item in items:
                    live[self._mark_dead(item.item_id)] = False
                self._insert(start, items)
                self._insert_facts(start, known)
                self._insert_texts(start, [item.item_id for item in items], known)
            self._publish(self._map_state(live, state.version + 1))

    def _append(self, start: int, items: Sequence[Item]) -> None:
        unit = np.stack([item.vector for item in items]).astype(np.float32)
        if unit.shape[1:] != self._shape:
            raise ValueError(f"expected vectors of shape {self._shape}, found {unit.shape[1:]}")
        norms = np.array([[item.norm] for item in items], np.float32)
        self._vectors.write(start, np.concatenate([augmented(unit), norms], axis=1))
        beliefs = beliefs_to_store(self.header, items)
        if self._beliefs is not None and beliefs is not None:
            self._beliefs.write(start, beliefs)

    def _insert(self, start: int, items: Sequence[Item]) -> None:
        values = (
            (row, i.item_id, i.labels.tolist(), i.predicted.tolist(), i.fields, i.place)
            for row, i in enumerate(items, start)
        )
        self._database.executemany(
            "INSERT INTO items VALUES (?, ?, 1, ?, ?, ?, ?)",
            ((row, item_id, *map(json.dumps, rest)) for row, item_id, *rest in values),
        )

    def _insert_facts(self, start: int, known: Sequence[Mapping[str, Any]]) -> None:
        names = {name: None for one in known for name in one}
        self._database.executemany("INSERT OR IGNORE INTO names (name) VALUES (?)", zip(names))
        numbers = dict(self._database.execute("SELECT name, number FROM names"))
        for name in names:
            self._database.executemany(
                "INSERT INTO facts VALUES (?, ?, ?)",
                (
                    (numbers[name], value, row)
                    for row, one in enumerate(known, start)
                    if one.get(name) is not None
                    for value in (one[name] if isinstance(one[name], list) else [one[name]])
                ),
            )

    def _insert_texts(self, start: int, ids: Sequence[str], known: Sequence[Fields]) -> None:
        if not self._database.execute(text_search.TABLE_EXISTS).fetchone():
            return
        found = (text_search.searchable_text(item_id, one) for item_id, one in zip(ids, known))
        self._database.executemany(text_search.INSERT, enumerate(found, start))

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Gallery`. Raises UserError where the gallery was not opened for writing."""
        with self._writing() as state:
            with self._transaction(state):
                buried = [row for item_id in item_ids for row in self._mark_dead(item_id)]
            live = state.live.copy()
            live[buried] = False
            self._publish(self._map_state(live, state.version + 1))
        return len(buried)

    def _mark_dead(self, item_id: str) -> list[int]:
        """Mark an item dead, if it exists, and return the rows it had."""
        query = "SELECT row FROM items WHERE live AND id = ?"
        rows = [row for (row,) in self._database.execute(query, (item_id,))]
        self._database.executemany("UPDATE items SET live = 0 WHERE row = ?", zip(rows))
        return rows

    @contextmanager
    def _writing(self) -> Generator[_State]:
        """Block other writers until the end; yield the current state."""
        if not self._writable:
            raise UserError(f"{self._folder}: the gallery is open for reading only")
        with self._lock:
            yield self._current_state()

    @contextmanager
    def _transaction(self, state: _State) -> Generator[None]:
        try:
            with self._database:
                self._database.execute("BEGIN")
                yield
                self._database.execute(f"PRAGMA user_version = {state.version + 1}")
        except sqlite3.OperationalError as error:  # the disk is full, or gone
            raise UserError(f"{self._folder / ITEMS}: nothing was written: {error}") from error

    def _read_state(self, database: sqlite3.Connection, version: int) -> _State:
        (count,) = database.execute("SELECT coalesce(max(row) + 1, 0) FROM items").fetchone()
        live = np.ones(count, np.bool_)
        live[select_rows(database, "SELECT row FROM items WHERE NOT live")] = False
        return self._map_state(live, version)

    def _map_state(self, live: Mask, version: int) -> _State:
        beliefs = None if self._beliefs is None else self._beliefs.map(len(live))
        return _State(self._vectors.map(len(live)), beliefs, live, version)

    def finish(self) -> None:
        """Build the index if the gallery is too large for exact search.

        An index has no codes for sets of values; with such attributes search stays exact.
        """
        if len(self) > self._exact_items and self.header.schema.multiple:
            print(
                f"warning: {self._folder}: items have attributes of several values, so no index is "
                f"built and each search reads all {len(self):,} items",
                file=sys.stderr,
            )
        elif len(self) > self._exact_items:
            self.build_index()

    def build_index(self) -> None:
        """Build the index over all rows and record its recall beside it.

        Raises:
            UserError: an attribute has several values per item.
        """
        if self.header.schema.multiple:
            raise UserError(
                f"{self._folder}: expected a gallery whose attributes have one value per item, "
                "found attributes of several values, for which there is no index"
            )
        with self._writing() as state:
            pass
        schema, calibration = self.header.schema, None
        if self.header.calibration is not None:
            source = str(self._folder / GALLERY_NAME)
            calibration = Calibration.from_json(self.header.calibration, schema, source)
        self.index = Index.build(
            self._folder, state.rows, state.beliefs, state.live, schema, calibration
        )

    def snapshot(self, folder: Path) -> None:
        """Write the current state as a separate gallery without dead rows; all or nothing.

        Raises:
            BusyError: the target folder holds a gallery that some process, possibly this one,
                writes.
        """
        with (
            writer_lock(folder),
            atomic_path(folder) as temporary,
            closing(EmbeddedGallery.create(temporary, self.header, self._exact_items)) as copy,
        ):
            state = self._current_state()
            rows = np.flatnonzero(state.live)
            for at in range(0, len(rows), 1024):
                copy.upsert(self._items(state, rows[at : at + 1024]))
            if self.index is not None and len(copy):
                copy.build_index()
            else:
                copy.finish()

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            readers = [self._readers.get() for _ in range(READERS)]  # waits for running reads
            self._close()
            for database in readers:  # closed: later calls raise sqlite3.ProgrammingError
                self._readers.put(database)


def _mask(rows: npt.NDArray[np.int64], count: int) -> Mask:
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return mask
