"""The folder that shards are written to until all are there."""

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
    """Yields a folder beside `out` that takes its place when the body is done, or one within it
    where it cannot be renamed.

    Where the body is not done, or its process is killed, the folder stays with the shards that
    are finished (those with a receipt), and the next body finds them; with none it is removed.
    In `out` nobody needs receipts, and they are deleted.

    Raises:
        UserError: another process is at work on the same `out`.
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
    """A descriptor that holds the folder's lock; the system lets go of it with the process."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have finished, and moved the folder away, before the lock was had.
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
        f"{len(finished)} finished shards are kept in {folder}; the same command goes on from them",
        file=sys.stderr,
    )
