"""Files are whole or not there, whatever happens on the way."""

import hashlib
import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from adde.errors import UserError, run_program
from adde.files import (
    atomic_path,
    read_json,
    remove_leftovers,
    sha256_of_file,
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
    with pytest.raises(UserError, match=r"a\.json: expected JSON"):
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
