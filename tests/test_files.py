"""Files are whole or not there, whatever happens on the way."""

import contextlib
import errno
import hashlib
import inspect
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adde.errors import UserError, run_program
from adde.files import (
    atomic_path,
    cache_folder,
    open_text,
    read_json,
    read_text,
    remove_leftovers,
    require_writable,
    sha256_of_file,
    unexpected_entries,
    write_json,
    write_text,
)


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
        assert temporary.parent == path.parent  # so that the rename is within one file system
        assert not path.exists()
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path, failure, there_before, folder):
    path = tmp_path / "a"
    if there_before:
        path.mkdir()
        (path / "old").write_text("old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        if folder:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / "file").write_text("x")
        else:
            temporary.write_text("x")
        raise failure
    assert list(tmp_path.iterdir()) == ([path] if there_before else [])
    assert not there_before or (path / "old").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "shards"
    for names in (("a", "b"), ("c",)):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name)
            assert {entry.name for entry in path.iterdir()} == {"a", "b"} if path.exists() else True
    assert [entry.name for entry in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]


def leftover(path, pid=None, host=None, end="tmp"):
    return path.with_name(f".{path.name}.{pid or ended()}@{host or os.uname().nodename}.{end}")


def ended():
    """The id of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_what_the_dead_left_of_this_file_is_cleared(tmp_path):
    path = tmp_path / "a"
    cleared = [leftover(path), leftover(path, os.getpid())]
    alive, elsewhere = leftover(path, os.getppid()), leftover(path, host="elsewhere.example")
    others = [alive, elsewhere, leftover(tmp_path / "b"), tmp_path / ".a.tmp", tmp_path / ".a"]
    for left in (*cleared, *others):
        left.mkdir()
        (left / "half").write_text("half")
    with atomic_path(path) as temporary:
        assert not temporary.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])
    remove_leftovers(tmp_path, of_any_machine=True)
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / ".a.tmp", tmp_path / ".a"])
    remove_leftovers(tmp_path / "none")


WRITER = """
import os, sys
from pathlib import Path
from adde.files import atomic_path

path, number, how, kind, text = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

def stop(event, _):
    global number
    if event.partition(".")[0] in ("open", "os", "shutil") and event != "os.kill":
        number -= 1
        if number == -1:  # just before it happens
            if how == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), 9)

sys.addaudithook(stop)
write(path, kind, text)
"""


def write(path, kind, text):
    with atomic_path(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
            (temporary / "one").write_text(text)
            (temporary / "two").write_text(text)
        else:
            temporary.write_text(text)


def write_until(moment, how, *what):
    """Writes in a process that is stopped before the n-th thing it does to the disk.

    Returns whether it came to its end.
    """
    path, kind, text = what
    program = WRITER.replace("\nsys.add", f"\n{inspect.getsource(write)}\nsys.add")
    words = [sys.executable, "-c", program, path, str(moment), how, kind, text]
    return not subprocess.run(words, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_stopped_at_any_moment(tmp_path, kind, how):
    path = tmp_path / "a"

    def content():
        files = sorted(path.iterdir()) if kind == "folder" else [path]
        assert len(files) == (2 if kind == "folder" else 1)
        (text,) = {file.read_text() for file in files}
        return text

    moments = 0
    found = set()
    while True:
        write(path, kind, "old")
        finished = write_until(moments, how, path, kind, "new")
        if path.exists():
            found.add(content())
        else:
            # Between two renames; what stood aside is there again when anyone writes.
            assert how == "kill"
            remove_leftovers(tmp_path)
            assert content() == "old"
        if finished:
            break
        write(path, kind, "next")
        assert content() == "next"
        assert list(tmp_path.iterdir()) == [path]
        moments += 1
    assert found == {"old", "new"}
    assert moments > 5


def volume(path, *names):
    """A folder as the root of a disk is: not to be renamed, with what the file system put there."""
    for name in ("lost+found", *names):
        (path / name).mkdir(parents=True)
        (path / name / "old").write_text("old")
    return path


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_a_volume_is_filled(tmp_path, failure):
    out = volume(tmp_path / "out", "a", "gone")
    (out / "index").write_text("of old")
    with contextlib.suppress(KeyboardInterrupt), atomic_path(out, "index") as temporary:
        temporary.mkdir()
        assert temporary.parent == out
        for name in ("a", "index", "z"):
            (temporary / name).write_text("new")
        assert (out / "index").read_text() == "of old"
        if failure:
            raise failure
    texts = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert texts == ({"index": "of old"} if failure else dict.fromkeys(("a", "index", "z"), "new"))
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"lost+found", *(("a", "gone") if failure else ())}
    assert (out / "lost+found" / "old").exists()


def test_who_reads_a_volume_while_it_is_filled_finds_no_mixture(tmp_path, monkeypatch):
    out = volume(tmp_path / "out")
    for name in ("index", "part"):
        (out / name).write_text("old")
    seen = []
    rename = Path.rename

    def look_and_rename(path, target):
        seen.append({p.name for p in out.iterdir() if p.is_file()})
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look_and_rename)
    with atomic_path(out, "index") as temporary:
        temporary.mkdir()
        for name in ("another", "index", "part"):
            (temporary / name).write_text("new")
    assert [len(names) for names in seen] == [0, 1, 2]
    assert "index" not in set().union(*seen)


MOUNTED = """
from pathlib import Path
from adde.files import atomic_path, unexpected_entries
out = Path("out")
with atomic_path(out, "a") as temporary:
    temporary.mkdir()
    (temporary / "a").write_text("new")
assert unexpected_entries(out, {"a"}.__contains__) == [], list(out.iterdir())
"""


@pytest.mark.parametrize("mount", ["mount --bind b 'out'", "mount -t tmpfs none 'out'"])
def test_a_mount_point_is_filled(tmp_path, mount):
    for name in ("out", "b"):
        (tmp_path / name).mkdir()
    script = f'{mount} || exit 77; "{sys.executable}" -c "$0" && cat out/a'
    words = ["unshare", "--mount", "--map-root-user", "bash", "-c", script, MOUNTED]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "new"), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "out"]


def test_a_folder_that_turns_out_not_to_be_renamed_is_filled(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    rename = Path.rename

    def refuse(path, target):  # as overlayfs does for a folder of the image below
        if path == out:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with atomic_path(out) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_where_nothing_can_be_written_is_told_before_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out: expected to write in .*file, found: (Not|File)"):
        require_writable(tmp_path / "file" / "out")
    require_writable(tmp_path / "new" / "out")
    assert not (tmp_path / "new" / "out").exists()


def test_what_is_strange_in_a_folder(tmp_path):
    out = volume(tmp_path / "out", ".out.partial", "b", "c", "a")
    assert unexpected_entries(out, lambda name: name == "b") == ["a", "c"]
    assert unexpected_entries(tmp_path / "none", lambda name: False) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_people_is_read_with_any_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("größe\r\n红\n".encode(encoding))
    assert read_text(path) == "größe\n红\n"
    with open_text(path, newline="") as file:
        assert file.readline() == "größe\r\n"
        file.seek(0)
        assert file.read() == "größe\r\n红\n"


def test_text_that_is_none_is_told_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\nb\nm\xe4nnlich\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt, line 3: expected UTF-8, found byte 0xe4; save"):
        read_text(path)
    path.write_bytes("ab".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"a\.txt, line 1: expected UTF-8"):
        read_text(path)
    with pytest.raises(UserError, match="expected a file to read, found: Is a directory"):
        read_text(tmp_path)


def test_a_name_that_is_no_text_goes_through_json(tmp_path):
    name = os.fsdecode(b"photos/\xff.jpg")
    write_json(tmp_path / "a.json", {name: "größe"})
    assert read_json(tmp_path / "a.json") == {name: "größe"}


def test_nesting_without_end_is_no_json(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json: expected JSON, found: RecursionError"):
        read_json(tmp_path / "a.json")


def test_without_a_home_the_cache_is_a_folder_of_ones_own(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder
    folder.chmod(0o777)  # anyone could have put anything there
    with pytest.raises(UserError, match="only this user can write"):
        cache_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="only this user can write"):
        cache_folder()


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_letters_that_the_output_has_not_are_escaped(encoding):
    program = (
        "import os; from adde.errors import UserError, run_program\n"
        "def main():\n"
        "    print('grün 红', os.fsdecode(b'\\xff.jpg'))\n"
        "    raise UserError('红')\n"
        "run_program(main)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert done.returncode == 1
    expected = ["grün 红 \udcff.jpg\n", "error: 红\n"]
    found = [done.stdout, done.stderr]
    assert found == [text.encode(encoding, "backslashreplace") for text in expected]


def test_a_body_that_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_text_and_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"größe": [1, None]})
    assert "größe" in path.read_text(encoding="utf-8")
    assert read_json(path) == {"größe": [1, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"größe": [1, None]}
    write_text(path, '{\n "a": 1,\n}')
    with pytest.raises(UserError, match=r"a\.json: expected JSON, found: .*line 3"):
        read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(UserError, match=r"a\.json, line 1: expected UTF-8, found byte 0xff"):
        read_json(path)
    with pytest.raises(UserError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()


def test_programs_end_with_one_line(capsys, tmp_path):
    def refuse():
        raise UserError("--size: expected at least 1, found 0")

    def fill_the_disk():
        raise OSError(28, "No space left on device", str(tmp_path / "x.tar"))

    for main, line in (
        (refuse, "error: --size: expected at least 1, found 0\n"),
        (fill_the_disk, f"error: {tmp_path / 'x.tar'}: No space left on device\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_program(main)
        assert stop.value.code == 1
        assert capsys.readouterr().err == line
    run_program(lambda: print("done"))
    assert capsys.readouterr().out == "done\n"
    # A defect is not dressed up as bad input.
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)


def test_writers_in_one_folder_do_not_mind_each_other(tmp_path):
    def write(writer):
        for number in range(150):
            write_json(tmp_path / f"{writer}-{number % 3}.json", number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(list(tmp_path.iterdir())) == 12
