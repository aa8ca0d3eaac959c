"""A catalogue's pictures, made by worker processes and handed over in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

from tqdm import tqdm

from adde.errors import UserError
from adde.shards.catalogue import Catalogue

CHUNK = 32
"""Pictures a worker makes at a time."""

AHEAD = 4
"""Chunks per worker that are under way or wait to be taken; what bounds memory."""


@dataclass(frozen=True)
class Picture:
    """One catalogue row's encoded picture, or why there is none."""

    row: int
    content: bytes
    extension: str
    error: str | None = None


def make_pictures(
    catalogue: Catalogue, rows: Sequence[int], workers: int | None = None
) -> Generator[Picture, None, None]:
    """The pictures of catalogue rows in the order of `rows`, with a progress bar.

    Args:
        catalogue: picklable; each worker process has a copy.
        rows: row numbers.
        workers: processes; 1 works in this process, None is one per core.

    Raises:
        UserError: a worker process was killed.
    """
    workers = workers or os.cpu_count() or 1
    chunks = [list(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    workers = min(workers, len(chunks))
    with tqdm(total=len(rows), desc="pictures", unit="picture", disable=None) as bar:
        if workers <= 1:
            made = (_make_chunk(catalogue, chunk) for chunk in chunks)
        else:
            made = _in_processes(catalogue, chunks, workers)
        for pictures in made:
            bar.update(len(pictures))
            yield from pictures


def _in_processes(
    catalogue: Catalogue, chunks: Sequence[list[int]], workers: int
) -> Iterator[list[Picture]]:
    # spawn: a fork copies locks that threads of this process may hold.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (catalogue,))
    try:
        under_way: deque[Future[list[Picture]]] = deque()
        for chunk in chunks:
            with _ctrl_c_held_back():  # a worker may be started here
                under_way.append(pool.submit(_make_here, chunk))
            if len(under_way) >= AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "pictures: a worker process was killed, perhaps for want of memory; "
            f"try fewer --workers than {workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Generator[None, None, None]:
    """Ctrl-C waits until the body is done; processes started in it never see one.

    It reaches the whole process group, and the process that started the others deals with it.
    Held back from before they start, as they would else complain while they import.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_mine: list[Catalogue] = []
"""A worker process's own copy, so that the catalogue travels once and not with every chunk."""


def _start_worker(catalogue: Catalogue) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _mine.append(catalogue)


def _end_with_parent() -> None:
    # Workers hold both ends of the pool's pipes, so one whose parent is killed waits for ever.
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _make_here(rows: list[int]) -> list[Picture]:
    return _make_chunk(_mine[0], rows)


def _make_chunk(catalogue: Catalogue, rows: list[int]) -> list[Picture]:
    return [_make(catalogue, row) for row in rows]


def _make(catalogue: Catalogue, row: int) -> Picture:
    try:
        return Picture(row, *catalogue.source(row).read())
    except UserError as error:
        return Picture(row, b"", "", str(error))
