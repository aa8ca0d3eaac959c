"""Building galleries: embedded once, in stored order, resumed after interruptions."""

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
from adde.serving import picture_location
from adde.serving.gallery import embedding, opening
from adde.serving.gallery.base import BusyError, read_picture
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.milvus import MilvusGallery
from adde.serving.gallery.opening import open_gallery, open_or_build
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

PROGRAM = Path(__file__).parents[3] / "serve_onnx" / "build_gallery.py"


class Counting(Session):
    """A session that counts pictures and fails after some."""

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


def test_an_interrupted_build_resumes_to_the_same_gallery(
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
    (out / "lost+found").mkdir(parents=True)  # as on a mount point, which cannot be renamed
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
        with pytest.raises(UserError, match=f"a new folder or a gallery .* found {found}; name"):
            build_gallery(bundle, blind, tiny_shards, tmp_path / name)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_another_split_does_not_resume_this_one(bundle, session, tiny_shards, tmp_path):
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


def test_another_split_bundle_or_index_is_embedded_again(
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
def test_a_damaged_cache_is_rebuilt(bundle, session, blind, tiny_shards, cache, name):
    open_or_build(bundle, session, tiny_shards, "val").close()
    (folder,) = cache.glob("gallery-*")
    os.truncate(folder / name, 30)
    assert len(open_or_build(bundle, session, tiny_shards, "val")) == 12
    open_or_build(bundle, blind, tiny_shards, "val")


def test_an_unwritable_cache_is_reported_and_not_needed(
    bundle, session, tiny_shards, cache, capsys
):
    cache.parent.write_text("a file where the folder should be")
    assert len(open_or_build(bundle, session, tiny_shards, "val")) == 12
    assert "warning: " in capsys.readouterr().err


def test_shards_of_another_schema_are_rejected(bundle, session, tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(shards)
    first, *rest = index.schema.attributes
    schema = Schema((replace(first, values=(*first.values, "teal")), *rest))
    replace(index, schema=schema).write()
    with pytest.raises(UserError, match=r"different schemas: \w+ and \w+; .*'colour'.*teal"):
        build_gallery(bundle, session, shards, tmp_path / "g")


def test_a_duplicate_item_is_rejected(bundle, session, tiny_shards, tmp_path):
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


def test_the_program_builds_an_index(tiny_bundle, tiny_shards, bundle, tmp_path):
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--exact-items", "50"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"rows": 96' in done.stdout
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert gallery.index.count == 96


def test_ray_builds_the_same_gallery_and_resumes(
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


def test_one_process_embeds_and_others_wait(bundle, session, tiny_shards, cache):
    users = [Counting(session) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        opened = [pool.submit(open_or_build, bundle, user, tiny_shards) for user in users]
        for each in opened:
            with closing(each.result()) as gallery:
                assert len(gallery) == 96
    assert sorted(user.pictures for user in users) == [0, 0, 0, 96]


def test_the_least_recently_used_galleries_are_evicted(
    bundle, session, tiny_shards, cache, monkeypatch
):
    monkeypatch.setattr(opening, "MAX_CACHED", 2)
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


def test_a_replaced_collection_is_dropped_when_its_successor_is_replaced(
    bundle, session, tiny_shards, tmp_path
):
    engines = MilvusGallery.creator(str(tmp_path / "milvus.db")), MilvusGallery
    names = []
    for _ in range(3):
        build_gallery(bundle, session, tiny_shards, tmp_path / "g", "val", *engines)
        names.append(read_json(tmp_path / "g" / "gallery.json")["extra"]["collection"])
    with pytest.raises(KeyboardInterrupt):  # started, but of no use to the next build
        build_gallery(
            bundle, Counting(session, most=0), tiny_shards, tmp_path / "g", "test", *engines
        )
    build_gallery(bundle, session, tiny_shards, tmp_path / "g", "val", *engines)
    names.append(read_json(tmp_path / "g" / "gallery.json")["extra"]["collection"])
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    assert set(client.list_collections()) == set(names[-2:])
    client.close()


def test_a_gallery_with_another_writer_is_not_replaced(
    bundle, session, blind, tiny_shards, random_items, tmp_path
):
    out = tmp_path / "g"
    build_gallery(bundle, session, tiny_shards, out, "val")
    command = [sys.executable, PROGRAM, "--bundle", bundle.path, "--catalogue", tiny_shards]
    command += ["--out", out, "--split", "val"]
    with closing(open_gallery(out, bundle, writable=True)) as gallery:
        gallery.upsert(random_items(3, prefix="new"))
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: {out}: another process writes")
        with pytest.raises(BusyError):
            build_gallery(bundle, blind, tiny_shards, out)  # before any work
        other = EmbeddedGallery(out)
        with closing(other), pytest.raises(BusyError):
            other.snapshot(out)
        with pytest.raises(BusyError):
            gallery.snapshot(out)
    with closing(open_gallery(out, bundle)) as gallery:
        assert len(gallery) == 15


def test_nobody_writes_a_gallery_that_is_being_replaced(
    bundle, session, tiny_shards, random_items, tmp_path
):
    out, refused = tmp_path / "g", []
    build_gallery(bundle, session, tiny_shards, out, "val")

    class Meanwhile(Counting):
        def encode(self, images):
            with pytest.raises(BusyError):
                open_gallery(out, bundle, writable=True)
            with pytest.raises(BusyError):  # of another split: the unfinished build is kept
                build_gallery(bundle, self.session, tiny_shards, out.with_name("other"), "test")
            refused.append(True)
            return super().encode(images)

    other = out.with_name("other")
    with pytest.raises(KeyboardInterrupt):
        build_gallery(bundle, Counting(session, most=64), tiny_shards, other)
    begun = open_gallery(other.with_name(".other.building"), bundle, writable=True)
    with closing(begun):
        build_gallery(bundle, Meanwhile(session), tiny_shards, out, "test")
        assert refused and len(begun) == 64


def test_a_rebuild_keeps_items_that_do_not_come_from_shards(
    bundle, session, tiny_shards, random_items, tmp_path, capsys
):
    out = tmp_path / "g"
    build_gallery(bundle, session, tiny_shards, out, "val")
    put = random_items(1500, prefix="new", price=list(range(1500)))
    with closing(open_gallery(out, bundle, writable=True)) as gallery:
        taken = gallery.get("val-000000-003")
        gallery.upsert([*put, replace(put[0], item_id="test-000000-001")])
        gallery.upsert([replace(taken, fields={"price": 3})])
        gallery.delete(["new-7", "val-000000-004"])
    with pytest.raises(KeyboardInterrupt):
        build_gallery(bundle, Counting(session, most=64), tiny_shards, out)
    build_gallery(bundle, session, tiny_shards, out)
    assert "kept 1499 items that do not come from shards" in capsys.readouterr().err
    with closing(open_gallery(out, bundle)) as gallery:
        assert len(gallery) == 96 + 1499
        found = gallery.get("new-1499")
        assert found.fields == {"price": 1499} and found.norm == put[1499].norm
        assert np.array_equal(found.vector, put[1499].vector)
        # Items of the shards come from the shards.
        assert gallery.get("test-000000-001").place is not None
        assert gallery.get("val-000000-003").fields == {}
        assert gallery.get("val-000000-004").place is not None


def test_items_of_another_bundle_are_neither_dropped_nor_kept(
    bundle, session, blind, tiny_bundle, tiny_shards, random_items, tmp_path
):
    out = tmp_path / "g"
    other = replace(bundle, path=shutil.copytree(tiny_bundle, tmp_path / "b"))
    replace(other, details={**other.details, "source": {"run": "another"}}).write()
    other = Bundle.read(other.path)
    build_gallery(other, session, tiny_shards, out, "val")
    build_gallery(bundle, session, tiny_shards, out, "val")  # nothing is lost
    with closing(open_gallery(out, bundle, writable=True)) as gallery:
        gallery.upsert(random_items(1, prefix="new"))
    with pytest.raises(UserError, match=r"'new-0', embedded by another bundle"):
        build_gallery(other, blind, tiny_shards, out, "val")


def test_a_gallery_that_is_moved_with_its_shards_has_its_pictures(
    bundle, session, tiny_shards, tmp_path
):
    shop = tmp_path / "here" / "shop"
    shutil.copytree(tiny_shards, shop / "data")
    (shop / "current").symlink_to("galleries")
    (shop / "galleries").mkdir()
    build_gallery(bundle, session, shop / "data", shop / "current" / "g", "val")
    assert read_json(shop / "galleries" / "g" / "gallery.json")["pictures"] == "../../data"
    moved = shop.rename(tmp_path / "there")
    with closing(open_gallery(moved / "galleries" / "g", bundle)) as gallery:
        item = gallery.get("val-000000-003")
        assert read_picture(gallery.header, item)
        gallery.snapshot(tmp_path / "snapshot")
    assert read_json(tmp_path / "snapshot" / "gallery.json")["pictures"] == "../there/data"
    with closing(open_gallery(tmp_path / "snapshot", bundle)) as gallery:
        assert read_picture(gallery.header, item)


@pytest.mark.parametrize("lie", ["https://cdn.example/{item_id}.png", "elsewhere"])
def test_the_build_sets_the_picture_location(
    tiny_bundle, bundle, tiny_shards, tmp_path, monkeypatch, lie
):
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--split", "val", "--pictures", lie]
    with pytest.raises(KeyboardInterrupt):  # also when it resumes
        build_gallery(bundle, Counting(Session(bundle), most=0), tiny_shards, tmp_path / "g", "val")
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    stored = read_json(tmp_path / "g" / "gallery.json")["pictures"]
    assert stored == (lie if "://" in lie else "../elsewhere")


@pytest.mark.parametrize(
    "wrong",
    ["nowhere", "https://cdn.example/x.jpg", "ftp://x/{item_id}", "https://a;b/{item_id}",
     "https:///{item_id}", "https://a/{item_id}\r\nx: y", "s3://bucket/{item_id}"],
)  # fmt: skip
def test_malformed_picture_locations_are_reported(wrong):
    with pytest.raises(UserError, match="--pictures: expected the folder of the shards, or"):
        picture_location.parse_option(wrong)
