"""The folder in which shards are written until all are complete."""

import fcntl
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from adde.errors import UserError
from adde.files import put_in_place, sync_files, workplace
from adde.shards.index import INDEX_NAME
from adde.shards.packing.tar import RECEIPT


@contextmanager
def work_folder(out: Path) -> Generator[Path, None, None]:
    """Yield a folder next to `out` that replaces it when the body is done.

    If `out` cannot be renamed, the folder is inside it. If the body fails or its process is killed,
    the finished shards (those with a receipt) stay in the folder, and the next call finds them;
    without any, the folder is removed. Receipts are deleted once the folder is in place.

    Raises:
        UserError: Another process is packing into `out`.
    """
    folder = workplace(out, "partial")
    lock = _locked(folder, out)
    try:
        yield folder
        sync_files(folder)
        put_in_place(folder, out, INDEX_NAME)
        for receipt in out.glob(f"*{RECEIPT}"):
            receipt.unlink(missing_ok=True)
    except BaseException:
        _keep_finished(folder)
        raise
    finally:
        os.close(lock)


def _locked(folder: Path, out: Path) -> int:
    """Return a descriptor that holds the folder's lock; the system releases it with the process."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have finished and moved the folder before the lock was acquired.
            if folder.exists() and os.fstat(lock).st_ino == folder.stat().st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"{out}: another process is packing into it; wait for it") from None
        os.close(lock)


def _keep_finished(folder: Path) -> None:
    if not folder.exists():
        return
    finished = [entry.name for entry in folder.iterdir() if entry.name.endswith(RECEIPT)]
    if not finished:
        shutil.rmtree(folder)
        return
    whole = {*finished, *(name.removesuffix(RECEIPT) for name in finished)}
    for entry in folder.iterdir():
        if entry.name not in whole:
            entry.unlink(missing_ok=True)
    print(
        f"{len(finished)} finished shards are kept in {folder}; run the same command to continue",
        file=sys.stderr,
    )
