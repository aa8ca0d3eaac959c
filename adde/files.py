"""Files that are either whole or not there."""

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

from adde.errors import UserError, foreign

LOST_AND_FOUND = "lost+found"
"""In the root of a volume; the file system's own, so neither ours nor a stranger's."""

_ESCAPES = {ord(char): f"\\{ord(char):03o}" for char in "\\ \t\n"}
"""As /proc/self/mountinfo writes them."""

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
def atomic_path(path: Path, last: str = "") -> Generator[Path]:
    """Yields a temporary path that becomes `path` on success and is removed on failure.

    What the body makes there may be a file or a folder. What a writer of `path` that was killed
    has left is cleared away first.

    Args:
        path: of what is made.
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
    """This process by the name that `temporary_sibling` gives to what it writes."""
    # Where several machines or containers share a disk, process ids alone are not unique.
    return f"{os.getpid()}@{os.uname().nodename}"


def temporary_sibling(path: Path, writer: str, end: str = "tmp") -> Path:
    """Where `writer` makes what becomes `path`; `remove_leftovers` knows such names."""
    return path.with_name(f".{path.name}.{writer}.{end}")


def workplace(path: Path, end: str) -> Path:
    """Where to make what becomes `path`: `.<its name>.<end>` beside it.

    Within it where it is a folder that cannot be renamed: a mount point, as volumes of containers
    are, the root of a disk, or a folder whose parent is read-only.
    """
    path = path.absolute()  # "." has a name only then
    name = f".{path.name}.{end}"
    return path / name if _is_fixed(path) else path.with_name(name)


def require_writable(out: Path) -> None:
    """Refuses a folder that can be neither written nor made, before there is work to be lost.

    Raises:
        UserError: names the folder in which nothing can be made, and the reason.
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


def strangers(folder: Path, ours: Callable[[str], bool]) -> list[str]:
    """Sorted names in a folder, if it is there, that are none of `ours` nor what was left of work
    within it; what is to replace the folder would delete them.
    """
    if not folder.is_dir():
        return []
    work = f".{folder.absolute().name}."
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != LOST_AND_FOUND)
    return [name for name in names if not (ours(name) or name.startswith(work))]


def put_in_place(made: Path, path: Path, last: str = "") -> None:
    """Has a file or folder take the place of `path`, beside or within which it lies.

    A folder that is replaced stands aside until the new one is in its place. One that cannot be
    renamed is filled entry by entry.

    Args:
        made: whose files are synced.
        path: where it goes.
        last: file of the folder that says what it holds. Of a folder that is filled, it goes
            first and comes last: whoever reads meanwhile finds none instead of a mixture.
    """
    sync(made)
    if made.parent == path.absolute():
        _fill(path, made, last)
        return
    aside = temporary_sibling(path, this_process(), "old")
    try:
        if made.is_dir() and path.exists():
            try:
                path.rename(aside)
            except OSError:  # for another reason, as for a folder of a container's image
                _fill(path, made, last)
                return
        made.replace(path)
        sync(path.parent)
    finally:
        _settle(path, aside)


def _is_fixed(path: Path) -> bool:
    """Whether a folder that is there cannot be renamed."""
    if not path.is_dir():
        return False
    real = path.resolve()
    if (path / LOST_AND_FOUND).exists() or not os.access(real.parent, os.W_OK):
        return True
    try:
        # Of a folder bound from the same file system `os.path.ismount` does not know.
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return path.is_mount()
    return str(real).translate(_ESCAPES) in {line.split(" ")[4] for line in mounts}


def _fill(folder: Path, made: Path, last: str) -> None:
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


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes `value` as JSON, atomically."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # A name of a file that is no UTF-8 has half characters; JSON escapes them as Python does.
    write_text(path, text, "backslashreplace")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is missing or is not JSON; names the file and the line.
    """
    text = read_text(path)
    with foreign(path, "JSON"):
        return json.loads(text)


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Generator[TextIO]:
    """Opens a text file that people hand over: UTF-8 with or without the byte order mark that
    editors of Windows begin it with, or UTF-16 with one. There is no other way to read such files.

    Args:
        path: of the file.
        newline: as of `open`.

    Raises:
        UserError: the file cannot be opened, or has other bytes, also where the body meets them;
            names the first line that has.
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
    """The whole of a file as `open_text` reads it."""
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
    return f"{path}: expected UTF-8; save it as such"


def cache_folder() -> Path:
    """What can be made again is kept there: $XDG_CACHE_HOME/adde, else ~/.cache/adde.

    A user without a home, as containers have them, has a folder below the temporary ones.

    Raises:
        UserError: that folder is another user's, who could put anything there.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "adde"
    try:
        return Path.home() / ".cache" / "adde"
    except RuntimeError:  # no HOME, and no entry in the list of users
        folder = Path(tempfile.gettempdir()) / f"adde-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{folder}: expected a folder that is this user's alone, found another; set HOME or "
            "XDG_CACHE_HOME"
        )
    return folder


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


def sync_files(folder: Path) -> None:
    """Has the disk hold the files directly in a folder; nothing of anything else."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_file():
            sync(entry)


def sync(path: Path) -> None:
    """Has the disk hold a file's content, or the names in a folder; not what these lead to, which
    may be other processes' files that are gone a moment later.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
