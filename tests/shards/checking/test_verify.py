"""shards/verify.py reports nothing for intact shards, and names each kind of damage."""

import dataclasses
import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image
from programs import run

from adde.files import read_json, sha256_of_file, write_json
from adde.shards.checking.verify import verify
from adde.shards.index import ShardIndex
from adde.shards.shard import member_rows

FIRST, SECOND = "train-000000.tar", "train-000001.tar"


@pytest.fixture
def shards(tiny_shards, tmp_path):
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


def differences(root, **options):
    return list(verify(ShardIndex.read(root, check_files=False), workers=1, **options))


def entry_of(root, name, **changes):
    """Change fields of one shard's entry in index.json."""
    content = read_json(root / "index.json")
    entry = next(entry for entry in content["shards"] if entry["name"] == name)
    entry.update(changes)
    write_json(root / "index.json", content)
    return entry


def put(root, name, **changes):
    """Change a shard in the index, including its members."""
    index = ShardIndex.read(root, check_files=False)
    changed = (dataclasses.replace(s, **changes) if s.name == name else s for s in index.shards)
    dataclasses.replace(index, shards=tuple(changed)).write()


def rewrite(root, name, change):
    """Rewrite a tar with `change(members)`, a list of (name, bytes), and update the index."""
    with tarfile.open(root / name) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(root / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in change(members):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = (root / name).read_bytes()
    with tarfile.open(root / name) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    samples = [[*a, *b] for a, b in zip(places[::2], places[1::2])]
    for sample in samples:
        spans = (content[at : at + size] for at, size in (sample[:2], sample[2:]))
        sample.append(zlib.crc32(b"".join(spans)))
    groups = [len(samples)] if len(samples) % 3 else [3] * (len(samples) // 3)
    put(
        root,
        name,
        bytes=(root / name).stat().st_size,
        sha256=sha256_of_file(root / name),
        samples=len(samples),
        members=member_rows(groups, samples),
    )


def replace(position, content):
    def change(members):
        members[position] = (members[position][0], content)
        return members

    return change


def test_intact_shards_have_no_differences(tiny_shards):
    assert differences(tiny_shards) == differences(tiny_shards, decode_pictures=True) == []


def test_a_flipped_byte(shards):
    content = bytearray((shards / FIRST).read_bytes())
    content[600] ^= 1  # in a picture, so the tar stays valid
    (shards / FIRST).write_bytes(content)
    whole, sample = differences(shards)
    assert whole.startswith(f"{FIRST}: sha256: expected ")
    assert sha256_of_file(shards / FIRST) in whole
    assert sample.startswith(f"{FIRST}, sample 0 (train-000000-000): expected place and crc32 ")


def test_a_shard_cut_short_and_one_gone(shards):
    (shards / FIRST).write_bytes((shards / FIRST).read_bytes()[:5000])
    (shards / SECOND).unlink()
    found = differences(shards)
    assert f"{SECOND}: expected a file, found none" in found
    for start in ("bytes: expected ", "sha256: expected ", "samples: expected 36, found "):
        assert any(line.startswith(f"{FIRST}: {start}") for line in found), start


def test_a_shard_missing_from_the_index(shards):
    shutil.copy(shards / FIRST, shards / "train-000009.tar")
    (found,) = differences(shards)
    assert found.startswith("train-000009.tar: expected a shard that index.json lists")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"split": "holdout"}, "split: expected ('train', 'val', 'test'), found holdout"),
    ],
)
def test_wrong_entries(shards, changes, start):
    entry_of(shards, FIRST, **changes)
    assert any(line.startswith(f"{FIRST}: {start}") for line in differences(shards))


def test_members_at_other_places(shards):
    members = ShardIndex.read(shards).shards[0].members
    members["image_at"][4] += 512
    put(shards, FIRST, members=members)
    (found,) = differences(shards)
    place = [*members[4].tolist()][:5]
    assert found.startswith(
        f"{FIRST}, sample 4 (train-000000-004): expected place and crc32 {place}"
    )


def test_groups_that_do_not_count_up(shards):
    members = ShardIndex.read(shards).shards[0].members
    members["group"][4] = 7
    put(shards, FIRST, members=members)
    assert differences(shards) == [
        f"{FIRST}: groups: expected numbers that count up from 0, found others"
    ]


def test_a_label_outside_the_schema(shards):
    record = {"item_id": "x", "labels": {"colour": "pink", "shape": None, "border": None}}
    rewrite(shards, FIRST, replace(5, json.dumps(record).encode()))
    (found,) = differences(shards)
    assert found.startswith(f"{FIRST}, sample 2 (")
    assert "unknown value 'pink'" in found


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"item_id": "x", "labels": {"colour": "red"}}, "no label for ['border', 'shape']"),
        ({"item_id": 3, "labels": dict.fromkeys(("colour", "shape", "border"))}, "item_id 3"),
        ({"labels": dict.fromkeys(("colour", "shape", "border"))}, "'item_id'"),
        ([1], "list indices"),
    ],
)
def test_incomplete_records(shards, record, reason):
    rewrite(shards, FIRST, replace(1, json.dumps(record).encode()))
    (found,) = differences(shards)
    assert found.startswith(f"{FIRST}, sample 0 (")
    assert reason in found


def test_the_same_item_in_two_shards(shards):
    with tarfile.open(shards / SECOND) as tar:
        other = tar.extractfile("train-000001-003.json").read()
    rewrite(shards, FIRST, replace(3, other))
    (found,) = differences(shards)
    assert found == f"{SECOND}: expected item id 'train-000001-003' once, found it in {FIRST} too"


def test_a_member_out_of_place(shards):
    rewrite(shards, FIRST, lambda members: [members[0], *members[2:]])
    found = differences(shards)
    assert any("where train-000000-000.json should be" in line for line in found)


def test_pictures_are_decoded_on_request(shards):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "png")
    rewrite(shards, FIRST, replace(0, buffer.getvalue()[:45]))
    assert differences(shards) == []
    (found,) = differences(shards, decode_pictures=True)
    assert found.startswith(f"{FIRST}, sample 0 (train-000000-000): expected a picture that dec")


def test_many_bad_samples_are_counted(shards):
    rewrite(
        shards, FIRST, lambda members: [(n, b"{}") if "json" in n else (n, c) for n, c in members]
    )
    found = differences(shards)
    assert len(found) == 21
    assert found[-1] == f"{FIRST}: and 16 more of its samples"


def test_the_program(shards):
    whole = run("verify.py", "--shards", shards, "--decode", "--workers", 2)
    assert whole.returncode == 0, whole.stderr
    assert "96 samples in 4 shards" in whole.stdout
    (shards / SECOND).unlink()
    damaged = run("verify.py", "--shards", shards)
    assert damaged.returncode == 1
    assert f"{SECOND}: expected a file, found none" in damaged.stdout
    assert "1 differences from its index" in damaged.stderr
    assert "Traceback" not in damaged.stderr
