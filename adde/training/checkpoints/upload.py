"""Copies of a run's checkpoints behind an address, for machines whose disks do not outlive them.

A thread of the main rank's makes the address hold what the run's folder does: the newest
checkpoints and the best, each one's state.json last, and best.json. A checkpoint there without
its state.json is none. What fails is tried again, told, counted, and never ends the training.
"""

import random
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from adde.errors import UserError
from adde.files import atomic_path, read_json, sha256_of_file
from adde.shards.remote.transport import HTTP, shown
from adde.training.checkpoints.checkpoint import (
    BEST_NAME,
    STATE_NAME,
    delete_old,
    folders,
    read_checkpoint,
)

TRIES = 5
BACKOFF = 1.0
"""Seconds of the longest first pause between tries; doubles. Drawn at random below it."""

Found = TypeVar("Found")


class Bucket:
    """Checkpoints behind an address of any kind that fsspec writes to.

    Raises:
        UserError: there is no such kind, or its package is missing.
    """

    def __init__(self, address: str) -> None:
        self._address, self.name = address, shown(address).rstrip("/")
        scheme = urlsplit(address).scheme
        if not scheme or scheme in HTTP:
            raise UserError(
                f"checkpoints.upload: expected an address such as s3://bucket/run, found {self}"
            )
        options = {"auto_mkdir": True} if scheme == "file" else {}
        try:
            core: Any = import_module("fsspec.core")
            self._system, root = core.url_to_fs(address, **options)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"checkpoints.upload: {self}: expected the packages that write there, found: "
                f"{error}; pip install 'adde[remote]'"
            ) from None
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self.name

    def folders(self) -> list[str]:
        """Names of checkpoints that are there, complete or not, newest first."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted((name for name in names if name.startswith("step-")), reverse=True)

    def read(self, name: str) -> bytes | None:
        """Content of a small file; None where there is none."""
        try:
            return self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def put(self, file: Path, name: str) -> None:
        """Uploads one file."""
        self._system.put_file(str(file), f"{self._root}/{name}")

    def upload(self, path: Path) -> None:
        """Uploads a checkpoint in place of what is there by its name.

        One that is replaced meanwhile, as that of a stage's last step is by the next stage's first,
        is uploaded anew: its state.json must not stand for parts of the other.
        """
        state = b""
        while (found := (path / STATE_NAME).read_bytes()) != state:
            state = found
            self.delete(path.name)
            for file in sorted(path.iterdir()):
                if file.name != STATE_NAME:
                    self.put(file, f"{path.name}/{file.name}")
        self._system.pipe_file(f"{self._root}/{path.name}/{STATE_NAME}", state)

    def delete(self, name: str) -> None:
        """Deletes a checkpoint; from the first moment on it counts no more."""
        self._system.invalidate_cache()
        state = f"{self._root}/{name}/{STATE_NAME}"
        if self._system.exists(state):
            self._system.rm(state)
        if self._system.exists(f"{self._root}/{name}"):
            self._system.rm(f"{self._root}/{name}", recursive=True)

    def download(self, name: str, path: Path) -> None:
        """Brings a checkpoint to `path`.

        Raises:
            UserError: a file is missing or is not the one whose hash is written; names it.
        """
        with atomic_path(path) as temporary:
            temporary.mkdir()
            self._system.get_file(f"{self._root}/{name}/{STATE_NAME}", str(temporary / STATE_NAME))
            for file, expected in read_json(temporary / STATE_NAME)["sha256"].items():
                self._system.get_file(f"{self._root}/{name}/{file}", str(temporary / file))
                if (found := sha256_of_file(temporary / file)) != expected:
                    raise UserError(
                        f"{self}/{name}/{file}: damaged: expected sha256 {expected}, found {found}"
                    )
            read_checkpoint(temporary)

    def explain(self, error: Exception) -> str:
        """An error's text without the address's credentials."""
        return f"{type(error).__name__}: {error}".replace(self._address, self.name)


class Uploads:
    """Keeps an address like the run's folder, in a thread of its own.

    Args:
        bucket: the address.
        run: folder of the run.
        keep: newest checkpoints that are kept in it, beside the best.

    Attributes:
        failures: times that this was given up.
    """

    def __init__(self, bucket: Bucket, run: Path, keep: int) -> None:
        self.failures = 0
        self._bucket, self._run, self._keep = bucket, run, keep
        self._work, self._close = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="upload", daemon=True)
        self._tidying = threading.Lock()
        self._busy: str | None = None
        self._thread.start()

    def follow(self) -> None:
        """Says that the run's checkpoints are others than before; deletes those no longer kept."""
        self._tidy()
        self._work.set()

    def close(self, seconds: float) -> None:
        """Waits until all is uploaded or given up, but no longer than `seconds`."""
        self._close.set()
        self._work.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"still not all uploaded after {seconds:g} s")

    def _loop(self) -> None:
        while not self._close.is_set() or self._work.is_set():
            self._work.wait()
            self._work.clear()
            try:
                again(self._mirror)
            except Exception as error:  # of whatever library the address is for
                self.failures += 1
                found = self._bucket.explain(error)
                self._warn(f"checkpoints not uploaded in {TRIES} tries: {found}")

    def _mirror(self) -> None:
        here = folders(self._run)
        for path in here:
            with self._tidying:
                self._busy = path.name
            if path.exists() and not self._is_there(path):
                self._bucket.upload(path)
        self._busy = None
        self._tidy()
        best = self._run / "checkpoints" / BEST_NAME
        if best.exists():
            self._bucket.put(best, BEST_NAME)
        kept = {path.name for path in folders(self._run)} | {path.name for path in here}
        for name in self._bucket.folders():
            if name not in kept:
                self._bucket.delete(name)

    def _tidy(self) -> None:
        """Deletes what is no longer kept, but for what is being read; that goes after it."""
        with self._tidying:
            delete_old(self._run, self._keep, self._busy)

    def _is_there(self, path: Path) -> bool:
        return self._bucket.read(f"{path.name}/{STATE_NAME}") == (path / STATE_NAME).read_bytes()

    def _warn(self, text: str) -> None:
        print(f"warning: {self._bucket}: {text}; training goes on", file=sys.stderr)


def fetch(bucket: Bucket, run: Path) -> None:
    """Brings the newest complete checkpoint where the run's folder has none as new, and the best.

    Raises:
        UserError: the address cannot be read, or all checkpoints there are damaged.
    """
    here = folders(run)
    there = _ask(bucket, bucket.folders)
    complete = [n for n in there if _ask(bucket, lambda n=n: bucket.read(f"{n}/{STATE_NAME}"))]
    newer = [name for name in complete if not here or name > here[0].name]
    if newer and not any(_bring(bucket, run, name) for name in newer):
        raise UserError(f"{bucket}: expected a whole checkpoint, found all {len(newer)} damaged")
    best = run / "checkpoints" / BEST_NAME
    content = None if best.exists() else _ask(bucket, lambda: bucket.read(BEST_NAME))
    if content:
        with atomic_path(best) as temporary:
            temporary.write_bytes(content)
        name = read_json(best)["checkpoint"]
        if not (run / "checkpoints" / name).exists() and not _bring(bucket, run, name):
            best.unlink()


def require_empty(bucket: Bucket) -> None:
    """A fresh run's uploads would push out another run's. Raises UserError."""
    if found := _ask(bucket, bucket.folders):
        raise UserError(
            f"checkpoints.upload: {bucket}: expected no checkpoints, found {found[0]} of another "
            "run; go on with --resume, or name another address"
        )


def again(job: Callable[[], Found]) -> Found:
    """What a job gives, tried up to `TRIES` times with pauses; raises what its last try raised."""
    for attempt in range(TRIES - 1):
        try:
            return job()
        except UserError:
            raise
        except Exception:
            threading.Event().wait(BACKOFF * 2**attempt * random.random())
    return job()


def _ask(bucket: Bucket, job: Callable[[], Found]) -> Found:
    try:
        return again(job)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoints.upload: {bucket}: expected checkpoints or none, found "
            f"{bucket.explain(error)} ({TRIES} tries); mend the address or the access to it"
        ) from None


def _bring(bucket: Bucket, run: Path, name: str) -> bool:
    path = run / "checkpoints" / name
    try:
        _ask(bucket, lambda: bucket.download(name, path))
    except UserError as error:
        print(f"warning: {error}; trying the one before it", file=sys.stderr)
        return False
    print(f"fetched {bucket}/{name}")
    return True
