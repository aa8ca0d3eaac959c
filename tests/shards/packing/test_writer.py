"""Compare written tars with `webdataset`, with the reader and with their catalogue."""

import gc
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from adde.errors import UserError
from adde.schema import UNKNOWN, Attribute, Schema
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.writer import write_tars
from adde.shards.reader import iterate

EXTENSIONS = ("png", "jpg", "webp")
SCHEMA = Schema((Attribute("colour", ("red", "größe", "blue")), Attribute("fit", ("slim", "wide"))))


def toy(items=150, broken=(), source=None):
    """Items of noise in three formats; row r is unreadable if r is in `broken`."""
    rng = np.random.default_rng(items)
    return Catalogue(
        "toy",
        SCHEMA,
        tuple(f"toy/ü {row}" for row in range(items)),
        rng.integers(UNKNOWN, [3, 2], (items, 2)),
        tuple(rng.choice(["train", "val", "test"], items, p=[0.6, 0.2, 0.2]).tolist()),
        source or (lambda row: Noise(row, row in broken)),
    )


@dataclass(frozen=True)
class Noise(PictureSource):
    row: int
    broken: bool = False

    def read(self):
        row = self.row
        if self.broken:
            raise UserError(f"photo-{row}.jpg: expected a picture")
        noise = np.random.default_rng(row).integers(0, 256, (9 + row % 5, 8, 3)).astype(np.uint8)
        extension = EXTENSIONS[row % 3]
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(extension, extension))
        return buffer.getvalue(), extension


class Exit(Noise):
    """Kills its reader, as the kernel does when memory runs out."""

    def read(self):
        os._exit(9)


def write(catalogue, folder, workers=1, **options):
    folder.mkdir()
    written = write_tars(catalogue, folder, engine("processes", workers), **options)
    written.index.write()
    return written


def named(catalogue, row):
    return {
        attribute.name: None if label == UNKNOWN else attribute.values[label]
        for attribute, label in zip(catalogue.schema.attributes, catalogue.labels[row])
    }


# webdataset leaves it to the garbage collector to close its files.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_and_reader_agree_with_the_catalogue(tmp_path):
    import webdataset  # imported here, because workers import this module, and it imports torch

    catalogue = toy()
    written = write(catalogue, tmp_path / "shards", items_per_shard=30)
    index = ShardIndex.read(tmp_path / "shards")
    assert index.schema == catalogue.schema
    keys, rows = set(), []
    for split in ("train", "val", "test"):
        urls = [str(index.root / shard.name) for shard in index.split(split)]
        theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        ours = list(iterate(index, split))
        assert len(theirs) == len(ours) == index.count(split) == catalogue.splits.count(split)
        for decoded, sample in zip(theirs, ours):
            row = catalogue.item_ids.index(sample.item_id)
            content, extension = catalogue.source(row).read()
            assert catalogue.splits[row] == split
            assert sample.picture == content
            np.testing.assert_array_equal(sample.labels, catalogue.labels[row])
            record = {"item_id": catalogue.item_ids[row], "labels": named(catalogue, row)}
            assert decoded["json"] == record
            assert extension in decoded
            keys.add(decoded["__key__"])
            rows.append(row)
    assert len(keys) == 150  # keys are unique across shards
    assert rows == [row for group in written.groups for row in group]
    gc.collect()


def test_same_bytes_whatever_the_workers(tmp_path):
    catalogue = toy(items=200)  # chunks for all
    for workers in (1, 3):
        write(catalogue, tmp_path / str(workers), workers, items_per_shard=50)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "3").iterdir())
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_the_index_matches_the_tars(tmp_path):
    index = write(toy(), tmp_path / "shards", items_per_shard=20).index
    assert len(index.split("train")) >= 4
    for shard in index.shards:
        path = index.root / shard.name
        content = path.read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert sum(shard.groups) == shard.samples == len(shard.members)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            found = [content[m.offset_data : m.offset_data + m.size] for m in members]
            assert found == [tar.extractfile(member).read() for member in members]
            flat = [place for m in shard.members.tolist() for place in (m[:2], m[2:4])]
            assert flat == [(member.offset_data, member.size) for member in members]
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {
                (0, 0, 0, "", "")
            }


def test_shards_have_similar_sizes_and_whole_groups(tmp_path):
    catalogue = toy(items=400)
    limit = (
        catalogue.splits.count("train") - 1
    ) // 3  # three full shards would leave one or two items
    written = write(catalogue, tmp_path / "shards", items_per_shard=limit)
    samples = [shard.samples for shard in written.index.split("train")]
    assert len(samples) == 4
    assert max(samples) - min(samples) <= 2 * 16  # up to a group at either end
    stored = [size for shard in written.index.shards for size in shard.groups]
    assert stored == [len(group) for group in written.groups]
    # The seed decides on the order of the groups.
    other = write(catalogue, tmp_path / "other", items_per_shard=limit, seed=1)
    assert other.groups != written.groups


def test_unreadable_pictures_stop_the_writing(tmp_path):
    with pytest.raises(UserError, match=r"^2 pictures cannot be read.*--skip-unreadable") as error:
        write(toy(broken=(5, 77)), tmp_path / "two")
    assert {"photo-5.jpg", "photo-77.jpg"} <= set(str(error.value).replace(":", "").split())
    with pytest.raises(UserError, match="20 or more pictures cannot be read") as error:
        write(toy(broken=range(100)), tmp_path / "many")
    assert str(error.value).count("photo-") == 20


def test_unreadable_pictures_may_be_left_out(tmp_path):
    broken = {5, 6, 7, 77, 149}
    catalogue = toy(broken=broken)
    written = write(catalogue, tmp_path / "shards", items_per_shard=10, skip_unreadable=True)
    index = ShardIndex.read(tmp_path / "shards")
    assert len(written.unreadable) == len(broken)
    rows = [row for group in written.groups for row in group]
    assert sorted(rows) == sorted(set(range(150)) - broken)
    ids = [sample.item_id for split in index.splits for sample in iterate(index, split)]
    assert ids == [catalogue.item_ids[row] for row in rows]
    assert all(sum(shard.groups) == shard.samples for shard in index.shards)


def test_shards_without_a_readable_picture(tmp_path):
    catalogue = toy(items=40)
    write(catalogue, tmp_path / "whole", items_per_shard=8)
    whole = ShardIndex.read(tmp_path / "whole")
    gone = [sample.item_id for sample in iterate(whole, "train")][: whole.split("train")[0].samples]
    broken = {catalogue.item_ids.index(item) for item in gone}
    write(toy(40, broken), tmp_path / "rest", items_per_shard=8, skip_unreadable=True)
    rest = ShardIndex.read(tmp_path / "rest")
    assert len(rest.split("train")) == len(whole.split("train")) - 1
    assert len(list((tmp_path / "rest").glob("*.tar"))) == len(rest.shards)
    broken = {row for row, split in enumerate(catalogue.splits) if split == "val"}
    with pytest.raises(UserError, match="split 'val': expected pictures that can be read"):
        write(toy(40, broken), tmp_path / "none", skip_unreadable=True)


def test_duplicates_are_found(tmp_path):
    assert write(toy(), tmp_path / "none").duplicates == []
    (found,) = write(
        toy(source=lambda row: Noise(1 if row in (4, 7) else row)), tmp_path / "twins"
    ).duplicates
    assert sorted(found) == [1, 4, 7]


def test_a_killed_worker_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --workers than 2"):
        write(toy(source=Exit), tmp_path / "shards", workers=2)


def test_finished_shards_are_not_written_again(tmp_path):
    first = write(toy(items=100), tmp_path / "shards", items_per_shard=10)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    cut, gone, other = (shard.name for shard in first.index.split("train")[1:4])
    (tmp_path / "shards" / cut).write_bytes(b"cut short")
    (tmp_path / "shards" / gone).unlink()
    (tmp_path / "shards" / f"{other}.receipt").write_text('{"job": "of another"}')
    again = write_tars(
        toy(items=100), tmp_path / "shards", engine("processes", 1), items_per_shard=10
    )
    assert again == first
    changed = {
        path.name
        for path in (tmp_path / "shards").glob("*.tar")
        if path.stat().st_mtime_ns != times[path.name]
    }
    assert changed == {cut, gone, other}


def test_a_repaired_picture_rebuilds_only_its_shard(tmp_path):
    folder = tmp_path / "shards"
    with pytest.raises(UserError, match="1 pictures cannot be read"):
        write(toy(broken=(5,)), folder, items_per_shard=10)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    write_tars(toy(), folder, engine("processes", 1), items_per_shard=10)
    changed = [n for n, t in times.items() if (folder / n).stat().st_mtime_ns != t]
    assert len(changed) == 1
    # A receipt from a build that skips pictures is not valid for one that does not.
    write(toy(broken=(5,)), tmp_path / "skipped", items_per_shard=10, skip_unreadable=True)
    with pytest.raises(UserError, match="1 pictures cannot be read"):
        write_tars(
            toy(broken=(5,)), tmp_path / "skipped", engine("processes", 1), items_per_shard=10
        )


def test_invalid_requests(tmp_path):
    with pytest.raises(UserError, match="--items-per-shard: expected at least 1, found 0"):
        write(toy(), tmp_path / "a", items_per_shard=0)
