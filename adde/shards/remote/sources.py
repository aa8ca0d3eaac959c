"""Where shards lie: a local folder, or an address whose shards are read through a cache.

`ADDE_CACHE` names the cache's folder ($XDG_CACHE_HOME/adde/shards, else ~/.cache/adde/shards),
`ADDE_CACHE_GB` its size (50), `ADDE_FETCH_SECONDS` how long one shard may take (1800). All
processes and ranks of a machine share it. Access is the machine's own: ~/.netrc, proxies, the AWS
and Google settings, fsspec's configuration files.
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
from adde.shards.remote.download import Download, Patience
from adde.shards.remote.transport import HTTP, OBJECTS, shown


class Stored(Protocol):
    """What must be known of a shard to fetch it: a row of the index."""

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
    """A local folder as a path; an address (http, https, s3 or gs) with the cache it is read by.

    Raises:
        UserError: an address of another kind, or settings of the cache that are no numbers.
    """
    if isinstance(root, Path) or "://" not in root:
        return Path(root)
    if urlsplit(root).scheme not in (*HTTP, *OBJECTS):
        raise UserError(
            f"{shown(root)}: expected a folder, or an address of {', '.join((*HTTP, *OBJECTS))}"
        )
    folder = Path(os.environ.get("ADDE_CACHE") or cache_folder() / "shards").expanduser()
    cache = Cache(folder, int(_number("ADDE_CACHE_GB", 50) * 1e9))
    return Remote(root, cache, Patience(deadline=_number("ADDE_FETCH_SECONDS", 1800)))


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise UserError(f"{variable}: expected a number above 0, found {text!r}")


@dataclass(frozen=True)
class Remote:
    """A folder of shards behind an address; its text has no credentials."""

    address: str = field(repr=False)
    cache: Cache
    patience: Patience

    def __str__(self) -> str:
        return shown(self.address).rstrip("/")

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder, as it is there now. Raises UserError."""
        with disk_errors(self.cache.folder):
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache.folder, buffering=0) as file:
                Download(self._place(name), name, file, None, self.patience).run()
                file.seek(0)
                content = file.readall()
        with untrusted(f"{self}/{name}", "JSON"):
            return json.loads(content)

    def open(self, shard: Stored) -> int:
        """File descriptor of a shard's local copy, downloaded first where it is not there.

        The copy has the index's sha256. It stays readable while the descriptor is open, evicted
        or not. The caller closes it.

        Raises:
            UserError: the shard cannot be had, or is another than the index says, twice; the
                cache is too small or its disk full.
        """
        key, size = shard.sha256, shard.bytes
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise UserError(f"{self}/{shard.name}: expected a sha256 in the index, found {key!r}")
        with disk_errors(self.cache.folder):
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            found = self.cache.open(key, size)
            if found is not None:
                return found
            with self.cache.lock(key, self.patience.deadline):
                # Whoever had the lock before has brought it, as a rule.
                found = self.cache.open(key, size)
                return self._bring(shard) if found is None else found

    def _bring(self, shard: Stored) -> int:
        part = self.cache.make_room(shard.sha256, shard.bytes, self.patience.deadline)
        try:
            with part.open("r+b", buffering=0) as file:
                self._fill(part, file, shard)
            return self.cache.keep(part, shard.sha256)
        finally:
            part.unlink(missing_ok=True)

    def _fill(self, part: Path, file: FileIO, shard: Stored) -> None:
        what = f"shard {shard.name}"
        download = Download(self._place(shard.name), what, file, shard.bytes, self.patience)
        found = ""
        for _ in range(2):  # once more from the start: a line or a disk can flip a bit
            download.run()
            found = sha256_of_file(part)
            if found == shard.sha256:
                return
            download.clear()
        raise download.error(
            f"sha256 {shard.sha256}", found, "shard and index differ: upload both again"
        )

    def _place(self, name: str) -> str:
        parts = urlsplit(self.address)  # a signature in the query goes with every file
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


class Prefetcher:
    """Fetches shards into the cache in a thread of its own; one per reader."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._waiting: deque[Stored] = deque()
        self._change = threading.Lock()
        self._thread: threading.Thread | None = None

    def prefetch(self, shards: Iterable[Stored]) -> None:
        """Replaces the shards waiting to be fetched, the next to be read first.

        Only as many as fill half of the cache: more would push out what is to be read before.
        What fails here fails again, with its message, when the shard is read. A download that is
        under way when the process ends is gone on from by the next one.
        """
        room = self._remote.cache.limit // 2
        chosen: deque[Stored] = deque()
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
