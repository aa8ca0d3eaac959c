"""Shards become a gallery once, in stored order, and from where it was interrupted."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pymilvus
import pytest

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import Schema
from adde.serving import build, embedding
from adde.serving.build import build_gallery, open_gallery, open_or_build
from adde.serving.embedded import EmbeddedGallery
from adde.serving.milvus import MilvusGallery
from adde.serving.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

PROGRAM = Path(__file__).parents[2] / "serve_onnx" / "build_gallery.py"


class Counting(Session):
    """A session that counts pictures, and fails after some."""

    def __init__(self, session, most=None):
        self.session, self.most, self.pictures = session, most, 0

    def encode(self, images):
        if self.most is not None and self.pictures + len(images) > self.most:
            raise KeyboardInterrupt
        self.pictures += len(images)
        return self.session.encode(images)


@pytest.fixture
def blind(session):
    """A session that must not be used."""
    return Counting(session, most=0)


def contents(folder, shards):
    with closing(EmbeddedGallery(folder)) as gallery:
        index = ShardIndex.read(shards)
        ids = [s.item_id for split in index.splits for s in iterate(index, split)]
        return [gallery.get(item_id) for item_id in ids]


def test_interrupted_it_goes_on_and_ends_as_if_it_had_not_been(
    bundle, session, tiny_shards, tiny_gallery, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "BATCH", 7)
    out = tmp_path / "g"
    with pytest.raises(KeyboardInterrupt):
        build_gallery(bundle, Counting(session, most=40), tiny_shards, out)
    assert not out.exists()
    rest = Counting(session)
    build_gallery(bundle, rest, tiny_shards, out)
    assert rest.pictures == 96 - 35
    assert [path.name for path in tmp_path.iterdir() if "g" in path.name] == ["g"]
    for one, two in zip(contents(out, tiny_shards), contents(tiny_gallery, tiny_shards)):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(two, name)), name


def test_a_volume_is_filled_and_a_gallery_there_replaced(
    bundle, session, tiny_shards, tiny_gallery, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "BATCH", 7)
    out = tmp_path / "volume"
    (out / "lost+found").mkdir(parents=True)  # as on a disk of its own, which cannot be renamed
    for seconds in range(2):
        with pytest.raises(KeyboardInterrupt):
            build_gallery(bundle, Counting(session, most=40), tiny_shards, out)
        assert (out / "gallery.json").exists() == bool(seconds)
        rest = Counting(session)
        build_gallery(bundle, rest, tiny_shards, out)
        assert rest.pictures == 96 - 35
        assert {p.name for p in out.iterdir()} == {
            "lost+found",
            *(p.name for p in tiny_gallery.iterdir()),
        }
        assert [item.item_id for item in contents(out, tiny_shards)] == [
            item.item_id for item in contents(tiny_gallery, tiny_shards)
        ]
    assert [path.name for path in tmp_path.iterdir() if "volume" in path.name] == ["volume"]


def test_nothing_but_a_gallery_is_replaced(bundle, blind, tiny_shards, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "file").touch()
    for name, found in (("photos", "'a.jpg'"), ("file", "a file")):
        with pytest.raises(UserError, match=f"a new folder or a gallery, .* found {found}; name"):
            build_gallery(bundle, blind, tiny_shards, tmp_path / name)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_another_split_does_not_go_on_from_this_one(bundle, session, tiny_shards, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_gallery(bundle, Counting(session, most=64), tiny_shards, tmp_path / "g")
    again = Counting(session)
    build_gallery(bundle, again, tiny_shards, tmp_path / "g", "test")
    assert again.pictures == 24
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert len(gallery) == 24


def test_shards_are_embedded_once(bundle, session, blind, tiny_shards, tiny_gallery, cache):
    first = open_or_build(bundle, session, tiny_shards, "test")
    again = open_or_build(bundle, blind, tiny_shards, "test")
    assert len(first) == len(again) == 24
    assert len(list(cache.glob("gallery-*"))) == 1
    assert len(open_or_build(bundle, blind, tiny_gallery)) == 96
    with pytest.raises(UserError, match=r"expected a gallery .* or a folder of shards"):
        open_or_build(bundle, blind, cache)


def test_another_split_bundle_or_index_is_embedded_anew(
    bundle, session, blind, tiny_shards, tiny_bundle, tmp_path
):
    open_or_build(bundle, session, tiny_shards, "test")
    with pytest.raises(KeyboardInterrupt):
        open_or_build(bundle, blind, tiny_shards, "val")
    other = replace(bundle, path=shutil.copytree(tiny_bundle, tmp_path / "b"))
    open_or_build(other, blind, tiny_shards, "test")  # the same bundle in another place
    replace(other, details={**other.details, "source": {"run": "another"}}).write()
    other = Bundle.read(other.path)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(other, blind, tiny_shards, "test")
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    write_json(shards / "index.json", {**read_json(shards / "index.json"), "name": "renamed"})
    with pytest.raises(KeyboardInterrupt):
        open_or_build(bundle, blind, shards, "test")


@pytest.mark.parametrize("name", ["items.sqlite", "vectors.f32", "gallery.json"])
def test_a_damaged_cache_is_made_again(bundle, session, blind, tiny_shards, cache, name):
    open_or_build(bundle, session, tiny_shards, "val").close()
    (folder,) = cache.glob("gallery-*")
    os.truncate(folder / name, 30)
    assert len(open_or_build(bundle, session, tiny_shards, "val")) == 12
    open_or_build(bundle, blind, tiny_shards, "val")


def test_a_cache_that_cannot_be_written_is_told_and_not_needed(
    bundle, session, tiny_shards, cache, capsys
):
    cache.parent.write_text("a file where the folder should be")
    assert len(open_or_build(bundle, session, tiny_shards, "val")) == 12
    assert "warning: " in capsys.readouterr().err


def test_shards_of_another_schema_are_refused(bundle, session, tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(shards)
    first, *rest = index.schema.attributes
    schema = Schema((replace(first, values=(*first.values, "teal")), *rest))
    replace(index, schema=schema).write()
    with pytest.raises(UserError, match=r"different schemas: \w+ and \w+; .*'colour'.*teal"):
        build_gallery(bundle, session, shards, tmp_path / "g")


def test_an_item_that_is_there_twice_is_refused(bundle, session, tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(shards)
    replace(index, shards=(*index.shards, index.shards[0])).write()
    with pytest.raises(UserError, match=r"expected every item id once, found .*'train-"):
        build_gallery(bundle, session, shards, tmp_path / "g")


@pytest.mark.parametrize("engine", ["embedded", "milvus"])
def test_the_program(tiny_bundle, tiny_shards, bundle, tmp_path, engine):
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--split", "val", "--engine", engine]
    if engine == "milvus":
        command += ["--uri", tmp_path / "milvus.db"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'g'}: 12 items, engine {engine}\n"
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert len(gallery) == 12
    done = subprocess.run(
        [*map(str, command), "--uri", "x", "--engine", "embedded"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr[:7]) == (1, "error: ")


def test_the_program_indexes_what_it_is_asked_to(tiny_bundle, tiny_shards, bundle, tmp_path):
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--exact-items", "50"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"rows": 96' in done.stdout
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert gallery.index.count == 96


def test_ray_makes_the_same_gallery_and_goes_on_where_it_was(
    tiny_bundle, tiny_shards, tiny_gallery, bundle, session, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'adde[ray]'")
    monkeypatch.setattr(embedding, "BATCH", 5)
    with pytest.raises(KeyboardInterrupt):
        build_gallery(bundle, Counting(session, most=20), tiny_shards, tmp_path / "g")
    (tmp_path / ".g.building" / "begun").touch()
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--engine-embed", "ray"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'g'}: 96 items, engine embedded\n"
    assert (tmp_path / "g" / "begun").exists()
    for one, two in zip(contents(tmp_path / "g", tiny_shards), contents(tiny_gallery, tiny_shards)):
        assert (one.item_id, one.place, one.fields) == (two.item_id, two.place, two.fields)
        assert np.array_equal(one.labels, two.labels)
        assert np.array_equal(one.predicted, two.predicted)
        assert np.abs(one.vector - two.vector).max() <= 1e-6
        assert one.norm == pytest.approx(two.norm, rel=1e-6)


def test_of_several_first_users_one_embeds_and_the_others_wait(bundle, session, tiny_shards, cache):
    users = [Counting(session) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        opened = [pool.submit(open_or_build, bundle, user, tiny_shards) for user in users]
        for each in opened:
            with closing(each.result()) as gallery:
                assert len(gallery) == 96
    assert sorted(user.pictures for user in users) == [0, 0, 0, 96]


def test_of_kept_galleries_those_not_opened_for_longest_go(
    bundle, session, tiny_shards, cache, monkeypatch
):
    monkeypatch.setattr(build, "KEPT", 2)
    for split in ("val", "test"):
        open_or_build(bundle, session, tiny_shards, split).close()
    for at, folder in enumerate(
        sorted(cache.glob("gallery-*"), key=lambda folder: folder.stat().st_mtime)
    ):
        os.utime(folder, (at, at))
    open_or_build(bundle, Counting(session, most=0), tiny_shards, "val").close()
    old = open_or_build(bundle, Counting(session, most=0), tiny_shards, "test")
    open_or_build(bundle, Counting(session, most=0), tiny_shards, "val").close()
    open_or_build(bundle, session, tiny_shards, "train").close()
    assert len(old.nearest(old.get("test-000000-003").vector, np.ones(3, np.float32), 3, {})) > 2
    old.close()
    open_or_build(bundle, Counting(session, most=0), tiny_shards, "val").close()
    assert len(list(cache.glob("gallery-*"))) == 2


def test_a_replaced_collection_goes_when_its_successor_is_replaced(
    bundle, session, tiny_shards, tmp_path
):
    engines = MilvusGallery.creator(str(tmp_path / "milvus.db")), MilvusGallery.open
    names = []
    for _ in range(3):
        build_gallery(bundle, session, tiny_shards, tmp_path / "g", "val", *engines)
        names.append(read_json(tmp_path / "g" / "gallery.json")["extra"]["collection"])
    with pytest.raises(KeyboardInterrupt):  # begun, and of no use to the next
        build_gallery(
            bundle, Counting(session, most=0), tiny_shards, tmp_path / "g", "test", *engines
        )
    build_gallery(bundle, session, tiny_shards, tmp_path / "g", "val", *engines)
    names.append(read_json(tmp_path / "g" / "gallery.json")["extra"]["collection"])
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    assert set(client.list_collections()) == set(names[-2:])
    client.close()
