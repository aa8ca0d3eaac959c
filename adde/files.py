"""Atomic writes: a file or folder is complete or absent. Reading of text files."""

import codecs
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from adde.errors import UserError, untrusted

LOST_AND_FOUND = "lost+found"
"""Created by the file system in the root of a volume; always ignored."""

_ESCAPES = {ord(char): f"\\{ord(char):03o}" for char in "\\ \t\n"}
"""Escapes of /proc/self/mountinfo."""

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[^@]+)\.(?P<end>tmp|old)")


def sha256_of_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Add `path` to an OSError that names no file, such as one from a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path, last: str = "") -> Generator[Path]:
    """Yield a temporary path that becomes `path` on success and is removed on failure.

    The body may create a file or a folder there. Leftovers of writers of `path` that were killed
    are removed first.

    Args:
        path: final path.
        last: see `put_in_place`.
    """
    temporary = workplace(path, f"{this_process()}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(temporary.parent, path.name)
    try:
        with naming(path):
            yield temporary
            sync_files(temporary)
            put_in_place(temporary, path, last)
    finally:
        _remove(temporary)


def this_process() -> str:
    """Return the name of this process in temporary paths: `pid@host`."""
    # Process ids are not unique if several machines or containers share a disk.
    return f"{os.getpid()}@{os.uname().nodename}"


def temporary_sibling(path: Path, writer: str, end: str = "tmp") -> Path:
    """Return the temporary path beside `path` for `writer`; `remove_leftovers` recognises it."""
    return path.with_name(f".{path.name}.{writer}.{end}")


def workplace(path: Path, end: str) -> Path:
    """Return the staging path for `path`: `.<name>.<end>` beside it.

    It is inside `path` if that is a folder that cannot be renamed: a mount point such as a
    container's volume, the root of a disk, or a folder whose parent is read-only.
    """
    path = path.absolute()  # "." has no name
    name = f".{path.name}.{end}"
    return path / name if _is_fixed(path) else path.with_name(name)


def require_writable(out: Path) -> None:
    """Check early that the folder `out` can be created and written to.

    Raises:
        UserError: names the folder that is not writable, and the reason.
    """
    folder = workplace(out, "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{out}: expected to write in {folder}, found: {error.strerror or error}; name "
            "another folder, or make this one writable"
        ) from None


def unexpected_entries(folder: Path, ours: Callable[[str], bool]) -> list[str]:
    """List, sorted, the entries of a folder that replacing it would delete unexpectedly.

    These are all entries that are neither `ours` nor temporary files. A missing folder has none.
    """
    if not folder.is_dir():
        return []
    work = f".{folder.absolute().name}."
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != LOST_AND_FOUND)
    return [name for name in names if not (ours(name) or name.startswith(work))]


def put_in_place(made: Path, path: Path, last: str = "") -> None:
    """Move a finished file or folder to `path`, which it is beside or inside.

    A folder at `path` is renamed until the new one is in place. If it cannot be renamed, its
    entries are replaced one by one.

    Args:
        made: the finished file or folder, with synced files.
        path: final path.
        last: the folder's manifest. When entries are replaced one by one, the old manifest is
            removed first and the new one moved last, so a concurrent reader finds none instead of
            a mixture.
    """
    sync(made)
    if made.parent == path.absolute():
        _replace_entries(path, made, last)
        return
    aside = temporary_sibling(path, this_process(), "old")
    try:
        if made.is_dir() and path.exists():
            try:
                path.rename(aside)
            except OSError:  # such as a folder of a container's image
                _replace_entries(path, made, last)
                return
        made.replace(path)
        sync(path.parent)
    finally:
        _restore_or_remove(path, aside)


def _is_fixed(path: Path) -> bool:
    """Return whether `path` is an existing folder that cannot be renamed."""
    if not path.is_dir():
        return False
    real = path.resolve()
    if (path / LOST_AND_FOUND).exists() or not os.access(real.parent, os.W_OK):
        return True
    try:
        # `os.path.ismount` misses bind mounts from the same file system.
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return path.is_mount()
    return str(real).translate(_ESCAPES) in {line.split(" ")[4] for line in mounts}


def _replace_entries(folder: Path, made: Path, last: str) -> None:
    names = sorted((entry.name for entry in made.iterdir()), key=lambda name: name == last)
    if last:
        (folder / last).unlink(missing_ok=True)
        sync(folder)
    for entry in folder.iterdir():
        if entry.name not in (made.name, LOST_AND_FOUND):
            _remove(entry)
    for name in names:
        (made / name).rename(folder / name)
    made.rmdir()
    sync(folder)


def remove_leftovers(
    folder: Path, name: str | None = None, *, of_any_machine: bool = False
) -> None:
    """Remove temporary files of `atomic_path` whose process was killed.

    Args:
        folder: may be missing.
        name: only those for this entry; None: all.
        of_any_machine: include those of other machines and of running processes.
    """
    for left in sorted(folder.glob(".*")):
        match = _LEFTOVER.fullmatch(left.name)
        if match is None or name not in (None, match["name"]):
            continue
        here = match["host"] == os.uname().nodename
        if not of_any_machine and not (here and _has_ended(int(match["pid"]))):
            continue
        if match["end"] == "old":
            _restore_or_remove(folder / match["name"], left)
        else:
            _remove(left)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 has lone surrogates; they are written as JSON escapes.
    write_text(path, text, "backslashreplace")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON; names the file and the line.
    """
    text = read_text(path)
    with untrusted(path, "JSON"):
        return json.loads(text)


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Generator[TextIO]:
    """Open a user's text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    All text files from users are read this way.

    Args:
        path: of the file.
        newline: as in `open`.

    Raises:
        UserError: the file cannot be opened, or is not valid (also if the body finds out); names
            the first invalid line.
    """
    try:
        with path.open("rb") as file:
            utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with path.open(encoding="utf-16" if utf16 else "utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeError:
        raise UserError(_no_text(path)) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected a file to read, found: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Read a whole file as `open_text` does."""
    with open_text(path) as file:
        return file.read()


def _no_text(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"{line[error.start]:#04x}"
                return f"{path}, line {number}: expected UTF-8, found byte {byte}; save it as UTF-8"
    return f"{path}: expected UTF-8, found other bytes; save it as UTF-8"


def cache_folder() -> Path:
    """Return the cache folder: $XDG_CACHE_HOME/adde, else ~/.cache/adde.

    A user without a home, as in some containers, gets a folder in the temporary directory.

    Raises:
        UserError: the temporary folder is writable by other users.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "adde"
    try:
        return Path.home() / ".cache" / "adde"
    except RuntimeError:  # neither HOME nor an entry in the user database
        folder = Path(tempfile.gettempdir()) / f"adde-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{folder}: expected a folder that only this user can write, found another; set HOME "
            "or XDG_CACHE_HOME"
        )
    return folder


def _restore_or_remove(path: Path, aside: Path) -> None:
    """Restore the replaced folder if nothing took its place, else remove it."""
    if aside.exists() and not path.exists():
        aside.rename(path)
    _remove(aside)


def _has_ended(pid: int) -> bool:
    """Return whether a process of this machine has ended, or its id is now ours."""
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


def sync_files(folder: Path) -> None:
    """Call fsync on the files directly in a folder, without subfolders."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_file():
            sync(entry)


def sync(path: Path) -> None:
    """Call fsync on a file, or on a directory's entries but not the files they name.

    Those may belong to other processes and disappear at any moment.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
