"""Shards are written next to a folder, or inside it if it cannot be renamed."""

import errno
from pathlib import Path

import pytest
from test_writer import toy

from adde.errors import UserError
from adde.shards.index import ShardIndex
from adde.shards.packing import work_folder
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import iterate

FEW = PackOptions(items_per_shard=10)


def packed(out, items=60):
    return pack(toy(items), out, FEW, engine("processes", 1))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def volume(tmp_path):
    """A folder that cannot be renamed, like the root of a disk."""
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    return tmp_path / "volume"


def test_a_volume_holds_the_same_bytes_and_is_packed_anew(tmp_path, volume):
    for items in (60, 90):  # the second build has more shards and replaces the first
        packed(tmp_path / f"{items}", items)
        assert packed(volume, items) is not None
        assert files(volume) == files(tmp_path / f"{items}")
        assert packed(volume, items) is None  # up to date
    assert (volume / "lost+found").is_dir()
    assert not list(tmp_path.glob(".*"))
    assert (
        sum(
            1 for split in ("train", "val", "test") for _ in iterate(ShardIndex.read(volume), split)
        )
        == 90
    )


@pytest.mark.parametrize("place", ["folder", "volume"])
def test_finished_shards_survive_a_folder_that_cannot_be_put_in_place(
    tmp_path, volume, monkeypatch, place
):
    out = volume if place == "volume" else tmp_path / "folder"

    def refuse(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(work_folder, "put_in_place", refuse)
        with pytest.raises(OSError, match="busy"):
            packed(out)
    kept = (volume if place == "volume" else tmp_path) / f".{out.name}.partial"
    made = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.tar")}
    assert len(made) > 3
    packed(out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == made
    assert not list(out.glob("*.receipt"))
    assert not kept.exists()


@pytest.mark.parametrize("name", ["photo.jpg", ".other.partial"])
def test_a_volume_of_anything_else_is_refused(volume, name):
    (volume / name).mkdir()
    with pytest.raises(UserError, match=f"found '{name}' in it; name another folder"):
        packed(volume)


def test_a_folder_that_cannot_be_made_is_refused_before_a_picture_is_read(tmp_path):
    (tmp_path / "file").touch()
    blind = toy(20, broken=range(20))
    with pytest.raises(UserError, match=r"out: expected to write in .*file, found: "):
        pack(blind, Path(tmp_path / "file" / "out"), FEW, engine("processes", 1))
