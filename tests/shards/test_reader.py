"""Compare the index and the reader with fully read tars; check damaged files."""

import hashlib
import json
import shutil
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.shards import reader
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader, iterate


@pytest.fixture
def copied(tiny_shards, tmp_path):
    """A copy of the tiny shards that a test may damage."""
    return shutil.copytree(tiny_shards, tmp_path / "shards")


def edit_index(root, **changes):
    content = json.loads((root / "index.json").read_text())
    content.update(changes)
    (root / "index.json").write_text(json.dumps(content))


def edit_bytes(root, offset, replacement, name="val-000000.tar"):
    with (root / name).open("r+b") as file:
        file.seek(offset)
        file.write(replacement)


@pytest.mark.parametrize("handles", [1, 64])
def test_samples_are_those_of_the_tar(tiny_shards, monkeypatch, handles):
    monkeypatch.setattr(reader, "OPEN_SHARDS", handles)
    index = ShardIndex.read(tiny_shards)
    shards = index.split("train")
    expected = []
    for shard in shards:
        with tarfile.open(tiny_shards / shard.name) as tar:
            contents = [tar.extractfile(member).read() for member in tar]
        expected.append(list(zip(contents[::2], map(json.loads, contents[1::2]))))
    samples = ShardReader(index)
    places = [(s, p) for s, shard in enumerate(shards) for p in range(shard.samples)]
    np.random.default_rng(0).shuffle(places)
    for s, p in places:
        sample = samples.read(shards[s], p)
        picture, record = expected[s][p]
        assert (sample.picture, sample.item_id) == (picture, record["item_id"])
        assert index.schema.decode(sample.labels) == record["labels"]
    samples.close()
    in_order = [sample.item_id for sample in iterate(index, "train")]
    assert in_order == [record["item_id"] for shard in expected for _, record in shard]


def test_counts_and_splits(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    assert [index.count(split) for split in ("train", "val", "test", "no")] == [60, 12, 24, 0]
    only_train = replace(index, shards=index.split("train"))
    with pytest.raises(UserError, match=r"shards of split 'val', found none; valid: 'train'"):
        only_train.split("val")


def test_written_index_reads_back(tiny_shards, copied):
    index = ShardIndex.read(tiny_shards)
    replace(index, root=copied).write()
    again = ShardIndex.read(copied)
    assert (again.schema, again.name, again.shards) == (index.schema, index.name, index.shards)
    for one, other in zip(again.shards, index.shards):
        assert one.members.tolist() == other.members.tolist()
        assert one.groups.tolist() == [3] * (one.samples // 3)


def test_an_index_of_format_2_is_read(tiny_shards, copied):
    index = ShardIndex.read(tiny_shards)
    edit_index(copied, format=2, shards=[shard.with_members() for shard in index.shards])
    (copied / "index.members").unlink()
    before = ShardIndex.read(copied)
    assert before.fingerprint("train") == index.fingerprint("train")
    for one, other in zip(iterate(before, "train"), iterate(index, "train"), strict=True):
        assert (one.item_id, one.picture) == (other.item_id, other.picture)
    entry = index.shards[0].with_members()
    edit_index(copied, format=2, shards=[{**entry, "groups": [2]}])
    with pytest.raises(UserError, match=r"index.json: expected an index of shards, found"):
        ShardIndex.read(copied)


def test_the_fingerprint_is_that_of_format_2(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    entries = [shard.with_members() for shard in index.split("train")]
    content = json.dumps([[entry["sha256"], entry["groups"]] for entry in entries])
    assert index.fingerprint("train") == hashlib.sha256(content.encode()).hexdigest()


def test_members_that_are_missing_or_of_other_shards(copied):
    path = copied / "index.members"
    content = path.read_bytes()
    assert len(content) == 32 * 96
    path.write_bytes(content[:-32])
    with pytest.raises(UserError, match=r"index.members: expected 3072 bytes, found 3040; build"):
        ShardIndex.read(copied)
    path.unlink()
    with pytest.raises(UserError, match=r"index.members: expected 3072 bytes, found no file"):
        ShardIndex.read(copied)
    path.write_bytes(content)
    edit_index(copied, shards=json.loads((copied / "index.json").read_text())["shards"][1:])
    with pytest.raises(UserError, match=r"shards of \[60\] samples in all, and 96 members"):
        ShardIndex.read(copied)


def test_overwriting_an_index_does_not_affect_its_readers(copied):
    index = ShardIndex.read(copied)
    before = [shard.members.tolist() for shard in index.shards]
    replace(index, shards=index.shards[::-1]).write()
    assert [shard.members.tolist() for shard in index.shards] == before
    assert ShardIndex.read(copied).shards == index.shards[::-1]


def test_no_index(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder of shards with index.json, found none"):
        ShardIndex.read(tmp_path)


def test_damaged_index(copied):
    whole = json.loads((copied / "index.json").read_text())
    edit_index(copied, format=7)
    with pytest.raises(UserError, match=r"index.json: expected format 3, found 7"):
        ShardIndex.read(copied)
    edit_index(copied, format=3, schema_hash="abc")
    with pytest.raises(UserError, match=r"expected schema_hash .* found abc; build the shards"):
        ShardIndex.read(copied)
    (copied / "index.json").write_text('{"format": 2, "name": "tiny", "schema": null}')
    with pytest.raises(UserError, match=r"index.json: expected \{"):
        ShardIndex.read(copied)
    (copied / "index.json").write_text(json.dumps({**whole, "shards": None}))
    with pytest.raises(UserError, match=r"index.json: expected an index of shards, found: 'None"):
        ShardIndex.read(copied)
    del whole["shards"]
    (copied / "index.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"index.json: expected field 'shards', found none"):
        ShardIndex.read(copied)
    (copied / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json: expected JSON"):
        ShardIndex.read(copied)


def test_missing_and_shortened_shards(copied):
    path = copied / "val-000000.tar"
    size = path.stat().st_size
    edit_bytes(copied, size, b"more")
    with pytest.raises(
        UserError, match=rf"val-000000.tar: expected {size} bytes, found {size + 4}"
    ):
        ShardIndex.read(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"val-000000.tar: expected {size} bytes, found no file"):
        ShardIndex.read(copied)


def test_shard_cut_short_after_the_index_was_read(copied):
    index = ShardIndex.read(copied)
    path = copied / "val-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"val-000000.tar, sample 0: expected .* truncated"):
        next(iterate(index, "val"))


def test_labels_outside_the_schema(copied):
    index = ShardIndex.read(copied)
    other = Schema((Attribute("colour", ("mauve", "teal")), *index.schema.attributes[1:]))
    with pytest.raises(UserError, match=r"sample 0: .*'colour': unknown value .*build the shards"):
        next(iterate(replace(index, schema=other), "val"))


@pytest.mark.parametrize("junk", [b"[1]", b"{}", b"\xff\xff", b'{"item_id": "a", "labels": 3}'])
def test_damaged_records(copied, junk):
    index = ShardIndex.read(copied)
    (shard,) = index.split("val")
    picture_at, picture_size, offset, size, *_ = shard.members[5].tolist()
    edit_bytes(copied, offset, junk.ljust(size))
    content = (copied / shard.name).read_bytes()
    picture = content[picture_at : picture_at + picture_size]
    shard.members[5][4] = zlib.crc32(picture + junk.ljust(size))
    samples = ShardReader(index)
    samples.read(shard, 4)
    with pytest.raises(UserError, match=r"val-000000.tar, sample 5: expected JSON with item_id"):
        samples.read(shard, 5)
    samples.close()


@pytest.mark.parametrize("name", ["../train-000000.tar", "a/b.tar", "x" * 256, "", "..", "a\0b"])
def test_shard_names_outside_the_folder_are_rejected(tiny_shards, tmp_path, name):
    copy = shutil.copytree(tiny_shards, tmp_path / "shards")
    content = json.loads((copy / "index.json").read_text())
    content["shards"][0]["name"] = name
    (copy / "index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json: expected shards that are files of the same"):
        ShardIndex.read(copy)
