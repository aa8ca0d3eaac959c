"""Locations of shards: a local folder, or an address whose shards are read through a cache.

`ADDE_CACHE` is the cache's folder (default $XDG_CACHE_HOME/adde/shards, or ~/.cache/adde/shards),
`ADDE_CACHE_GB` its size (50), `ADDE_FETCH_SECONDS` the time limit for one shard (1800). All
processes and ranks of a machine share the cache. Credentials come from the machine: ~/.netrc,
proxies, AWS and Google settings, fsspec's configuration files.
"""

import json
import math
import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from adde.errors import UserError, untrusted
from adde.files import cache_folder, sha256_of_file
from adde.shards.remote.cache import Cache, disk_errors
from adde.shards.remote.download import Download, RetryPolicy
from adde.shards.remote.transport import HTTP, OBJECTS, shown


class ShardEntry(Protocol):
    """The properties of a file that are needed to fetch it, from the index."""

    @property
    def name(self) -> str:
        """File name in the folder."""
        ...

    @property
    def bytes(self) -> int:
        """Size of the file."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest of its content."""
        ...


def locate(root: Path | str) -> "Path | Remote":
    """Return a local folder as a path, and an address (http, https, s3 or gs) with its cache.

    Raises:
        UserError: The address is of another kind, or a setting of the cache is not a number.
    """
    if isinstance(root, Path) or "://" not in root:
        return Path(root)
    if urlsplit(root).scheme not in (*HTTP, *OBJECTS):
        raise UserError(
            f"{shown(root)}: expected a folder, or an address of {', '.join((*HTTP, *OBJECTS))}"
        )
    folder = Path(os.environ.get("ADDE_CACHE") or cache_folder() / "shards").expanduser()
    cache = Cache(folder, int(_number("ADDE_CACHE_GB", 50) * 1e9))
    return Remote(root, cache, RetryPolicy(deadline=_number("ADDE_FETCH_SECONDS", 1800)))


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise UserError(f"{variable}: expected a number above 0, found {text!r}")


@dataclass(frozen=True)
class Remote:
    """A folder of shards at an address; its text omits credentials."""

    address: str = field(repr=False)
    cache: Cache
    policy: RetryPolicy

    def __str__(self) -> str:
        return shown(self.address).rstrip("/")

    def read_json(self, name: str) -> Any:
        """Download and parse a JSON file of the folder, without the cache. Raises UserError."""
        with disk_errors(self.cache.folder):
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache.folder, buffering=0) as file:
                Download(self._place(name), name, file, None, self.policy).run()
                file.seek(0)
                content = file.readall()
        with untrusted(f"{self}/{name}", "JSON"):
            return json.loads(content)

    def open(self, shard: ShardEntry) -> int:
        """Return a file descriptor of a shard's local copy; download the shard if necessary.

        The copy matches the sha256 in the index. It stays readable while the descriptor is open,
        even if evicted. The caller closes the descriptor.

        Raises:
            UserError: The download fails or twice gives another sha256, the cache is too small, or
                its disk is full.
        """
        key, size = shard.sha256, shard.bytes
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise UserError(f"{self}/{shard.name}: expected a sha256 in the index, found {key!r}")
        with disk_errors(self.cache.folder):
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            found = self.cache.open(key, size)
            if found is not None:
                return found
            with self.cache.lock(key, self.policy.deadline):
                # Usually the previous holder of the lock has downloaded it.
                found = self.cache.open(key, size)
                return self._bring(shard) if found is None else found

    def _bring(self, shard: ShardEntry) -> int:
        part = self.cache.make_room(shard.sha256, shard.bytes, self.policy.deadline)
        try:
            with part.open("r+b", buffering=0) as file:
                self._fill(part, file, shard)
            return self.cache.keep(part, shard.sha256)
        finally:
            part.unlink(missing_ok=True)

    def _fill(self, part: Path, file: FileIO, shard: ShardEntry) -> None:
        what = f"shard {shard.name}"
        download = Download(self._place(shard.name), what, file, shard.bytes, self.policy)
        found = ""
        for _ in range(2):  # retry once: a connection or a disk may flip a bit
            download.run()
            found = sha256_of_file(part)
            if found == shard.sha256:
                return
            download.clear()
        raise download.error(
            f"sha256 {shard.sha256}", found, "shard and index differ: upload both again"
        )

    def _place(self, name: str) -> str:
        parts = urlsplit(self.address)  # a signature in the query applies to every file
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


class Prefetcher:
    """Fetches shards into the cache in a background thread; one per reader."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._waiting: deque[ShardEntry] = deque()
        self._change = threading.Lock()
        self._thread: threading.Thread | None = None

    def prefetch(self, shards: Iterable[ShardEntry]) -> None:
        """Replace the queue of shards to fetch; the shard that is read next comes first.

        At most half of the cache is fetched ahead, because more would evict shards before they are
        read. A failure is ignored here; reading the shard fails again and reports it. If the
        process ends during a download, the next one continues it.
        """
        room = self._remote.cache.limit // 2
        chosen: deque[ShardEntry] = deque()
        for shard in shards:
            room -= shard.bytes
            if room < 0:
                break
            chosen.append(shard)
        with self._change:
            self._waiting = chosen
            if chosen and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._change:
                if not self._waiting:
                    self._thread = None
                    return
                shard = self._waiting.popleft()
            with suppress(UserError):
                os.close(self._remote.open(shard))
