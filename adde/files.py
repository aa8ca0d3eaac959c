"""Files that are either whole or not there."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adde.errors import UserError


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yields a temporary sibling of `path`, renamed to `path` on success and removed on failure.

    What the body makes there may be a file or a folder. A folder that is replaced stands aside
    under a temporary name until the new one is in its place. What a killed process left is cleared
    by whoever writes `path` next; a folder it had put aside comes back if nothing took its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_dead(path)
    temporary = _sibling(path, "tmp")
    try:
        yield temporary
        _sync(temporary)
        if temporary.is_dir() and path.exists():
            aside = _sibling(path, "old")
            path.rename(aside)
            temporary.rename(path)
            _remove(aside)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        _remove(temporary)


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


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.{kind}")


def _clear_dead(path: Path) -> None:
    """Removes siblings of processes of this machine that are no more, or were this one's."""
    owner = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(platform.node())}-(\d+)\.(tmp|old)")
    for entry in path.parent.iterdir():
        found = owner.fullmatch(entry.name)
        if found and (int(found[1]) == os.getpid() or not _lives(int(found[1]))):
            if found[2] == "old" and not path.exists():
                entry.rename(path)
            else:
                _remove(entry)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Has the disk hold what `path` (file, or folder with its files) says before a rename."""
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.is_file():
            _sync(entry)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
