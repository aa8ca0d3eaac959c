"""Shards kept on local disk: bounded in bytes, shared by all processes of a machine.

An entry is named by the sha256 of its content, so whatever has an entry's name is whole. What is
still being downloaded is `<sha256>.<bytes>.part` and counts with all its bytes to come. One
process at a time downloads a shard (file locks, gone with the process that held them).
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
"""Seconds between two looks at a lock, or for room, that another process has."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    part: bool
    bytes: int
    used: float


@dataclass(frozen=True)
class Cache:
    """At most `limit` bytes of shards in `folder`; the least recently used go first."""

    folder: Path
    limit: int

    def open(self, key: str, size: int) -> int | None:
        """File descriptor of an entry, marked as used and as in use; None where it is not there."""
        path = self.folder / key
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size != size:
            # Nothing of ours writes that: somebody else's hand, or a disk that lost a write.
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        _use(descriptor)
        return descriptor

    def lock(self, key: str, seconds: float) -> AbstractContextManager[None]:
        """Only one process at a time downloads `key`.

        Raises:
            UserError: another process held it for `seconds`.
        """
        return _locked(self._lock_of(key), seconds)

    def make_room(self, key: str, size: int, seconds: float) -> Path:
        """Evicts until `size` more bytes fit, and returns the path to download `key` to.

        What a killed process left of the same download is kept there, to go on from.

        Raises:
            UserError: the cache is smaller than the shard, or full of other downloads for
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
            f"{self.limit} bytes with other downloads in it; set ADDE_CACHE_GB to more"
        )

    def keep(self, part: Path, key: str) -> int:
        """Makes a finished download an entry; its file descriptor, in use."""
        descriptor = os.open(part, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.fsync(descriptor)
        _use(descriptor)
        part.rename(self.folder / key)
        return descriptor

    def _lock_of(self, key: str) -> Path:
        # 4,096 locks for all shards: lock files that come and go with their shard would race.
        return self.folder / f"{key[:3]}.lock"

    def _evict(self, size: int, part: Path) -> bool:
        """Whether `size` bytes fit, after removing what may go."""
        entries = [entry for entry in self._entries() if entry.path != part]
        free = self.limit - size - sum(entry.bytes for entry in entries)
        # What readers hold open goes last: its bytes come back only when they close it.
        for may_go in (self._idle, _whole):
            for entry in list(entries):
                if free < 0 and may_go(entry):
                    entry.path.unlink(missing_ok=True)
                    entries.remove(entry)
                    free += entry.bytes
        return free >= 0

    def _entries(self) -> list[_Entry]:
        """All entries and downloads, least recently used first."""
        entries: list[_Entry] = []
        for path in self.folder.iterdir():
            if found := ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):  # finished or evicted meanwhile
                    status = path.stat()
                    size = int(found["bytes"] or status.st_size)
                    part = found["bytes"] is not None
                    entries.append(_Entry(path, found["key"], part, size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry.used)

    def _idle(self, entry: _Entry) -> bool:
        """No reader has the entry open; no process is downloading it."""
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
    """Marks a file as used now; to the nanosecond, as the kernel's own time has steps of 4 ms."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


@contextmanager
def _locked(path: Path, seconds: float) -> Generator[None]:
    from filelock import FileLock, Timeout  # not at the top: serving does without

    lock = FileLock(path, timeout=seconds, poll_interval=POLL)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{path}: expected the process that holds this lock to be done in {seconds:g} s, "
            "found it holding on; look for one that hangs, or set ADDE_FETCH_SECONDS to more"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turns what the cache's disk refuses into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "free some space, set ADDE_CACHE_GB to less" if full else "make it writable"
        raise UserError(
            f"{folder}: expected to write the cache of shards there, found: "
            f"{error.strerror or error}; {what}, or name another folder in ADDE_CACHE"
        ) from None
