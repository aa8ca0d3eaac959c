"""Files are whole or not there, whatever happens on the way."""

import hashlib
import os
import platform
import signal
import subprocess
import sys

import pytest

from adde.errors import UserError, run_program
from adde.files import atomic_path, read_json, sha256_of_file, write_json, write_text


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


KILLED_ON_THE_WAY = """
import os, sys
from pathlib import Path
from adde.files import atomic_path

kill = lambda *_: os.kill(os.getpid(), 9)
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "half").write_text("half")
    if sys.argv[2] == "body":
        kill()
    rename = Path.rename
    def rename_or_die(self, to):
        return kill() if self == temporary else rename(self, to)
    Path.rename = rename_or_die  # the old folder stands aside, the new one is not yet there
"""


@pytest.mark.parametrize("moment", ["body", "between the renames"])
def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path, moment):
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("old")
    other = tmp_path / ".a.json.tmp"  # nobody's temporary
    other.touch()
    program = [sys.executable, "-c", KILLED_ON_THE_WAY, path, moment]
    assert subprocess.run(program).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".a.*-*.*"))) == (1 if moment == "body" else 2)
    with pytest.raises(KeyError), atomic_path(path):
        raise KeyError  # the next one fails: what was there before the kill is there again
    assert (path / "old").read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", other.name}
    assert [entry.name for entry in path.iterdir()] == ["new"]


def test_a_living_process_keeps_its_temporary(tmp_path):
    path = tmp_path / "a"
    theirs = tmp_path / f".a.{platform.node()}-{os.getppid()}.tmp"
    theirs.touch()
    write_text(path, "x")
    assert theirs.exists()


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
