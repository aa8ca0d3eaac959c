"""Cache of shards on local disk, bounded in bytes and shared by all processes of a machine.

An entry's name is the sha256 of its content, so every file with such a name is complete. A download
in progress is `<sha256>.<bytes>.part` and counts with its final size. File locks ensure that one
process at a time downloads a shard; they vanish with their process.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adde.errors import UserError

ENTRY = re.compile(r"(?P<key>[0-9a-f]{64})(?:\.(?P<bytes>\d+)\.part)?")
POLL = 0.05
"""Seconds between attempts to get a lock or room that another process holds."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    part: bool
    bytes: int
    used: float


@dataclass(frozen=True)
class Cache:
    """At most `limit` bytes of shards in `folder`; the least recently used are evicted first."""

    folder: Path
    limit: int

    def open(self, key: str, size: int) -> int | None:
        """Return a file descriptor of an entry and mark it as in use, or None if missing."""
        path = self.folder / key
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size != size:
            # Not written by this code: someone changed the file, or the disk lost a write.
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        _use(descriptor)
        return descriptor

    def lock(self, key: str, seconds: float) -> AbstractContextManager[None]:
        """Lock `key`, so that only one process at a time downloads it.

        Raises:
            UserError: Another process held the lock for `seconds`.
        """
        return _locked(self._lock_of(key), seconds)

    def make_room(self, key: str, size: int, seconds: float) -> Path:
        """Evict until `size` more bytes fit, and return the path to download `key` to.

        If a killed process left part of the same download there, the download continues from it.

        Raises:
            UserError: The cache is smaller than the shard, or was full of other downloads for
                `seconds`.
        """
        part = self.folder / f"{key}.{size}.part"
        until = time.monotonic() + seconds
        while size <= self.limit:
            with _locked(self.folder / "evict.lock", seconds):
                if self._evict(size, part):
                    part.touch()
                    return part
            if time.monotonic() > until:
                break
            time.sleep(POLL)
        raise UserError(
            f"{self.folder}: expected room for a shard of {size} bytes, found a cache of "
            f"{self.limit} bytes with other downloads in it; increase ADDE_CACHE_GB"
        )

    def keep(self, part: Path, key: str) -> int:
        """Turn a finished download into an entry and return its file descriptor, in use."""
        descriptor = os.open(part, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.fsync(descriptor)
        _use(descriptor)
        part.rename(self.folder / key)
        return descriptor

    def _lock_of(self, key: str) -> Path:
        # 4,096 lock files for all shards, because creating and deleting one per shard would race.
        return self.folder / f"{key[:3]}.lock"

    def _evict(self, size: int, part: Path) -> bool:
        """Evict entries, and return whether `size` bytes fit."""
        entries = [entry for entry in self._entries() if entry.path != part]
        free = self.limit - size - sum(entry.bytes for entry in entries)
        # Entries in use go last, as their space is freed only when the readers close them.
        for may_go in (self._idle, _whole):
            for entry in list(entries):
                if free < 0 and may_go(entry):
                    entry.path.unlink(missing_ok=True)
                    entries.remove(entry)
                    free += entry.bytes
        return free >= 0

    def _entries(self) -> list[_Entry]:
        """Return all entries and downloads, least recently used first."""
        entries: list[_Entry] = []
        for path in self.folder.iterdir():
            if found := ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):  # finished or evicted in the meantime
                    status = path.stat()
                    size = int(found["bytes"] or status.st_size)
                    part = found["bytes"] is not None
                    entries.append(_Entry(path, found["key"], part, size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry.used)

    def _idle(self, entry: _Entry) -> bool:
        """Whether no reader has the entry open and no process is downloading it."""
        path = self._lock_of(entry.key) if entry.part else entry.path
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def _whole(entry: _Entry) -> bool:
    return not entry.part


def _use(descriptor: int) -> None:
    """Mark a file as used now, to the nanosecond; the kernel's clock has steps of 4 ms."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


@contextmanager
def _locked(path: Path, seconds: float) -> Generator[None]:
    from filelock import FileLock, Timeout  # imported here, because serving does not need it

    lock = FileLock(path, timeout=seconds, poll_interval=POLL)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{path}: expected the process that holds this lock to be done in {seconds:g} s, "
            "found it still locked; look for a process that hangs, or increase ADDE_FETCH_SECONDS"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn an OSError of the cache's disk into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, decrease ADDE_CACHE_GB" if full else "make it writable"
        raise UserError(
            f"{folder}: expected to write the cache of shards there, found: "
            f"{error.strerror or error}; {advice}, or set ADDE_CACHE to another folder"
        ) from None
