"""Files that are either whole or not there."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adde.errors import UserError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[^@]+)\.(?P<end>tmp|old)")


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def naming(path: Path) -> Generator[None]:
    """An OSError of the body that names no file, as of a write to a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yields a temporary sibling of `path`, renamed to `path` on success and removed on failure.

    What the body makes there may be a file or a folder. What a writer of `path` that was killed
    has left is cleared away first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = temporary_sibling(path, this_process())
    try:
        with naming(path):
            yield temporary
            inside = temporary.iterdir() if temporary.is_dir() else ()
            for made in filter(Path.is_file, inside):
                sync(made)
            put_in_place(temporary, path)
    finally:
        _remove(temporary)


def this_process() -> str:
    """This process by the name that `temporary_sibling` gives to what it writes."""
    # Where several machines or containers share a disk, process ids alone are not unique.
    return f"{os.getpid()}@{os.uname().nodename}"


def temporary_sibling(path: Path, writer: str, end: str = "tmp") -> Path:
    """Where `writer` makes what becomes `path`; `remove_leftovers` knows such names."""
    return path.with_name(f".{path.name}.{writer}.{end}")


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames a sibling, file or folder, to `path`; the files in a folder are synced before.

    A folder that is replaced stands aside until the new one is in its place.
    """
    aside = temporary_sibling(path, this_process(), "old")
    try:
        sync(temporary)
        if temporary.is_dir() and path.exists():
            path.rename(aside)
        temporary.replace(path)
        sync(path.parent)
    finally:
        _settle(path, aside)


def remove_leftovers(
    folder: Path, name: str | None = None, *, of_any_machine: bool = False
) -> None:
    """Clears away what `atomic_path` left in a folder when its process was killed.

    Args:
        folder: that is there or not.
        name: only what was to become this entry; None: everything.
        of_any_machine: whoever wrote it; else only processes of this machine that have ended.
    """
    for left in sorted(folder.glob(".*")):
        match = _LEFTOVER.fullmatch(left.name)
        if match is None or name not in (None, match["name"]):
            continue
        here = match["host"] == os.uname().nodename
        if not of_any_machine and not (here and _has_ended(int(match["pid"]))):
            continue
        if match["end"] == "old":
            _settle(folder / match["name"], left)
        else:
            _remove(left)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is missing or is not JSON; names the file and the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected JSON, found: {error}") from None


def cache_folder() -> Path:
    """What can be made again is kept there: $XDG_CACHE_HOME/adde, else ~/.cache/adde."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adde"


def _settle(path: Path, aside: Path) -> None:
    """What stood aside goes back where nothing took its place, and away otherwise."""
    if aside.exists() and not path.exists():
        aside.rename(path)
    _remove(aside)


def _has_ended(pid: int) -> bool:
    """Whether a process of this machine is gone; its id may since have become ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    return pid == os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the disk hold a file's content, or the names in a folder; not what these lead to, which
    may be other processes' files that are gone a moment later.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
