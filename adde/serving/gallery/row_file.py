"""Files of the embedded gallery: rows of float32, and the lock that admits one writer."""

import fcntl
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from adde.errors import UserError
from adde.files import naming
from adde.schema import Vector
from adde.serving.gallery.base import BusyError
from adde.serving.gallery.item_database import ITEMS

LOCK = "lock"


class RowFile:
    """A file of float32 rows that is appended to, fsynced and memory-mapped."""

    def __init__(self, opened: ExitStack, path: Path, mode: str, width: int) -> None:
        self._path, self._width = path, width
        with naming(path):
            self._file = opened.enter_context(path.open(mode, buffering=0))

    def write(self, start: int, rows: Vector) -> None:
        """Write rows (n, width) from row `start` on and fsync."""
        if rows.shape[1] != self._width:
            raise ValueError(f"expected rows of {self._width} numbers, found {rows.shape[1]}")
        content, at = memoryview(rows.tobytes()), start * self._width * 4
        with naming(self._path):
            while content:
                written = os.pwrite(self._file.fileno(), content, at)
                content, at = content[written:], at + written
            os.fsync(self._file.fileno())

    def map(self, count: int) -> Vector:
        """Map the first `count` rows. Raises UserError if the file has fewer."""
        expected, size = count * self._width * 4, os.fstat(self._file.fileno()).st_size
        if size < expected:
            raise UserError(
                f"{self._path}: expected {expected} bytes, found {size}; "
                "the gallery is damaged, build it again"
            )
        if not count:  # nothing to map
            return np.empty((0, self._width), np.float32)
        return np.memmap(self._file, np.float32, "r", shape=(count, self._width))


@contextmanager
def writer_lock(folder: Path) -> Generator[None]:
    """Hold the writer lock of a gallery's folder, if there is one, until the end.

    Raises:
        BusyError: another process holds it.
    """
    if not (folder / ITEMS).exists():
        yield
        return
    descriptor = lock_for_writing(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def lock_for_writing(folder: Path) -> int:
    """Take the writer lock; closing the descriptor releases it. Raises BusyError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise BusyError(
            f"{folder}: another process writes this gallery; wait until it ends, or stop it"
        ) from None
    return descriptor
