"""Mirror a run's checkpoints to a remote address, for machines whose disks do not outlive them.

A thread on rank 0 mirrors the checkpoints that the run's folder keeps, and best.json. state.json is
uploaded last and marks a complete checkpoint. Failed uploads are retried, then logged and counted;
they never end the training.
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
"""Upper bound of the first pause in seconds; pauses are random, and the bound doubles each time."""

Result = TypeVar("Result")


class Bucket:
    """Checkpoints at an address of any kind that fsspec can write to.

    Raises:
        UserError: the kind is unknown, or its package is missing.
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
        """Return the names of the checkpoints, complete or not, newest first."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted((name for name in names if name.startswith("step-")), reverse=True)

    def read(self, name: str) -> bytes | None:
        """Read a small file; None if there is none."""
        try:
            return self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def put(self, file: Path, name: str) -> None:
        """Upload one file."""
        self._system.put_file(str(file), f"{self._root}/{name}")

    def upload(self, path: Path) -> None:
        """Upload a checkpoint, replacing one of the same name.

        A checkpoint may be replaced during the upload: a stage's last and the next stage's first
        have the same step. It is then uploaded again, so that state.json and the parts match.
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
        """Delete a checkpoint, state.json first so that a partly deleted one does not count."""
        self._system.invalidate_cache()
        state = f"{self._root}/{name}/{STATE_NAME}"
        if self._system.exists(state):
            self._system.rm(state)
        if self._system.exists(f"{self._root}/{name}"):
            self._system.rm(f"{self._root}/{name}", recursive=True)

    def download(self, name: str, path: Path) -> None:
        """Download a checkpoint to `path`.

        Raises:
            UserError: a file is missing or does not match its hash; names it.
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
        """Return an error's text without the address's credentials."""
        return f"{type(error).__name__}: {error}".replace(self._address, self.name)


class Uploads:
    """Mirrors the run's checkpoints to an address, in a thread.

    Args:
        bucket: the address.
        run: folder of the run.
        keep: number of newest checkpoints to keep, besides the best.

    Attributes:
        failures: number of mirrorings that failed after all tries.
    """

    def __init__(self, bucket: Bucket, run: Path, keep: int) -> None:
        self.failures = 0
        self._bucket, self._run, self._keep = bucket, run, keep
        self._work, self._close = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="upload", daemon=True)
        self._deleting = threading.Lock()
        self._busy: str | None = None
        self._thread.start()

    def request(self) -> None:
        """Delete checkpoints that are no longer kept, and mirror the others soon."""
        self._delete_old()
        self._work.set()

    def close(self, seconds: float) -> None:
        """Wait until uploads have ended, at most `seconds`."""
        self._close.set()
        self._work.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"uploads are incomplete after {seconds:g} s")

    def _loop(self) -> None:
        while not self._close.is_set() or self._work.is_set():
            self._work.wait()
            self._work.clear()
            try:
                retry(self._mirror)
            except Exception as error:  # of any library that fsspec uses
                self.failures += 1
                found = self._bucket.explain(error)
                self._warn(f"checkpoints not uploaded in {TRIES} tries: {found}")

    def _mirror(self) -> None:
        here = folders(self._run)
        for path in here:
            with self._deleting:
                self._busy = path.name
            if path.exists() and not self._is_uploaded(path):
                self._bucket.upload(path)
        self._busy = None
        self._delete_old()
        best = self._run / "checkpoints" / BEST_NAME
        if best.exists():
            self._bucket.put(best, BEST_NAME)
        kept = {path.name for path in folders(self._run)} | {path.name for path in here}
        for name in self._bucket.folders():
            if name not in kept:
                self._bucket.delete(name)

    def _delete_old(self) -> None:
        """Delete local checkpoints that are no longer kept, except one that is being uploaded."""
        with self._deleting:
            delete_old(self._run, self._keep, self._busy)

    def _is_uploaded(self, path: Path) -> bool:
        return self._bucket.read(f"{path.name}/{STATE_NAME}") == (path / STATE_NAME).read_bytes()

    def _warn(self, text: str) -> None:
        print(f"warning: {self._bucket}: {text}; training continues", file=sys.stderr)


def fetch(bucket: Bucket, run: Path) -> None:
    """Download the newest complete checkpoint if it is newer than the folder's, and the best.

    Raises:
        UserError: the address cannot be read, or all checkpoints there are damaged.
    """
    here = folders(run)
    there = _request(bucket, bucket.folders)
    complete = [n for n in there if _request(bucket, lambda n=n: bucket.read(f"{n}/{STATE_NAME}"))]
    newer = [name for name in complete if not here or name > here[0].name]
    if newer and not any(_download(bucket, run, name) for name in newer):
        raise UserError(f"{bucket}: expected an intact checkpoint, found all {len(newer)} damaged")
    best = run / "checkpoints" / BEST_NAME
    content = None if best.exists() else _request(bucket, lambda: bucket.read(BEST_NAME))
    if content:
        with atomic_path(best) as temporary:
            temporary.write_bytes(content)
        name = read_json(best)["checkpoint"]
        if not (run / "checkpoints" / name).exists() and not _download(bucket, run, name):
            best.unlink()


def require_empty(bucket: Bucket) -> None:
    """Raise UserError if there are checkpoints: a new run's uploads would delete them."""
    if found := _request(bucket, bucket.folders):
        raise UserError(
            f"checkpoints.upload: {bucket}: expected no checkpoints, found {found[0]} of another "
            "run; continue that run with --resume, or name another address"
        )


def retry(job: Callable[[], Result]) -> Result:
    """Return a job's result, after up to `TRIES` tries; raise what the last one raised."""
    for attempt in range(TRIES - 1):
        try:
            return job()
        except UserError:
            raise
        except Exception:
            threading.Event().wait(BACKOFF * 2**attempt * random.random())
    return job()


def _request(bucket: Bucket, job: Callable[[], Result]) -> Result:
    try:
        return retry(job)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoints.upload: {bucket}: expected to list checkpoints, found "
            f"{bucket.explain(error)} ({TRIES} tries); check the address and the access to it"
        ) from None


def _download(bucket: Bucket, run: Path, name: str) -> bool:
    path = run / "checkpoints" / name
    try:
        _request(bucket, lambda: bucket.download(name, path))
    except UserError as error:
        print(f"warning: {error}; trying the previous one", file=sys.stderr)
        return False
    print(f"fetched {bucket}/{name}")
    return True
