"""Compare a folder of shards with its index.json: hash every byte, count and read every sample."""

import json
import tarfile
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adde.errors import UserError, reason
from adde.files import sha256_of_file
from adde.preprocess import decode
from adde.schema import Schema
from adde.shards.catalogues.pictures import EXTENSIONS
from adde.shards.index import INDEX_NAME, SPLITS, ShardIndex
from adde.shards.packing.workers import in_order
from adde.shards.shard import Shard, checksum

MAX_NAMED = 20
"""Differences of one shard's samples that are named; the others are counted."""


@dataclass(frozen=True)
class ShardCheck:
    """A tar to compare with its entry in the index; picklable."""

    root: Path
    schema: Schema
    shard: Shard
    decode: bool


@dataclass(frozen=True)
class Found:
    """The content of a shard, and its differences from the index."""

    name: str
    samples: int = 0
    item_ids: list[str] = field(default_factory=list[str])
    keys: list[str] = field(default_factory=list[str])
    differences: list[str] = field(default_factory=list[str])


def verify(
    index: ShardIndex, decode_pictures: bool = False, workers: int | None = None
) -> Generator[str, None, None]:
    """Yield each difference between an index and its tars.

    This compares the existing tars with the index, and each tar's bytes, sha256, samples, members
    with their places, groups, item ids and labels. Ids and keys must be unique across shards.

    Args:
        index: Read it without `check_files`, so that missing shards are reported.
        decode_pictures: Decode every picture, instead of only hashing its bytes.
        workers: Number of processes; one per core if None.
    """
    yield from _listing(index)
    jobs = [ShardCheck(index.folder, index.schema, s, decode_pictures) for s in index.shards]
    ids: dict[str, str] = {}
    keys: dict[str, str] = {}
    total = sum(shard.samples for shard in index.shards)
    with (
        closing(in_order(check_shard, jobs, workers)) as found,
        tqdm(total=total, desc="verify", unit="sample", disable=None) as bar,
    ):
        for shard in found:
            yield from shard.differences
            yield from _repeated(shard, "item id", shard.item_ids, ids)
            yield from _repeated(shard, "key", shard.keys, keys)
            bar.update(shard.samples)


def _listing(index: ShardIndex) -> Generator[str, None, None]:
    """Yield repeated entries of the index, and tars that it does not list."""
    names = Counter(shard.name for shard in index.shards)
    for name, times in names.items():
        if times > 1:
            yield f"{INDEX_NAME}: expected {name} once, found it {times} times"
    for path in sorted(index.folder.glob("*.tar")):
        if path.name not in names:
            yield f"{path.name}: expected a shard that {INDEX_NAME} lists, found none of this name"


def _repeated(
    shard: Found, what: str, names: list[str], seen: dict[str, str]
) -> Generator[str, None, None]:
    for name in names:
        if name in seen:
            yield f"{shard.name}: expected {what} {name!r} once, found it in {seen[name]} too"
        seen[name] = shard.name


def check_shard(check: ShardCheck) -> Found:
    """Compare one tar with its entry in the index."""
    shard, path = check.shard, check.root / check.shard.name
    found = Found(shard.name, shard.samples)
    if not path.is_file():
        found.differences.append(f"{shard.name}: expected a file, found none")
        return found
    if shard.split not in SPLITS:
        _differ(found, "split", SPLITS, shard.split)
    _compare(found, "bytes", shard.bytes, path.stat().st_size)
    _compare(found, "sha256", shard.sha256, sha256_of_file(path))
    _compare(found, "members in the index", shard.samples, len(shard.members))
    numbers = np.repeat(np.arange(len(shard.groups)), shard.groups)
    if not np.array_equal(numbers, shard.members["group"]):
        _differ(found, "groups", "numbers that count up from 0", "others")
    wrong: list[str] = []
    try:
        for position, sample in enumerate(_samples(path)):
            wrong += _compare_sample(check, position, sample, found)
    except Exception as error:  # tarfile lets decompressors' errors through
        _differ(found, "content", "a tar of pictures and their JSON", reason(error))
    _compare(found, "samples", shard.samples, len(found.keys))
    found.differences.extend(wrong[:MAX_NAMED])
    if len(wrong) > MAX_NAMED:
        found.differences.append(f"{shard.name}: and {len(wrong) - MAX_NAMED} more of its samples")
    return found


def _compare(found: Found, what: str, expected: object, seen: object) -> None:
    if expected != seen:
        _differ(found, what, expected, seen)


def _differ(found: Found, what: str, expected: object, seen: object) -> None:
    found.differences.append(f"{found.name}: {what}: expected {expected}, found {seen}")


@dataclass(frozen=True)
class _Sample:
    """A picture and its JSON in a tar."""

    key: str
    place: list[int]
    """Offset and size of the picture, then of the JSON, and the checksum of both."""
    picture: bytes
    record: bytes


def _samples(path: Path) -> Generator[_Sample, None, None]:
    """Read a tar sequentially, as any reader of WebDataset does."""
    with tarfile.open(path) as tar:
        members = iter(tar)
        for picture in members:
            key, _, extension = picture.name.rpartition(".")
            if extension not in EXTENSIONS.values():
                raise UserError(f"member {picture.name!r} where a picture should be")
            record = next(members, None)
            if record is None or record.name != f"{key}.json":
                seen = record.name if record else "the end of the tar"
                raise UserError(f"{seen!r} after {picture.name!r}, where {key}.json should be")
            contents = _content(tar, picture), _content(tar, record)
            place = [picture.offset_data, picture.size, record.offset_data, record.size]
            yield _Sample(key, [*place, checksum(*contents)], *contents)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise UserError(f"member {member.name!r} is not a plain file")
    return file.read()


def _compare_sample(
    check: ShardCheck, position: int, sample: _Sample, found: Found
) -> Generator[str, None, None]:
    found.keys.append(sample.key)
    where = f"{check.shard.name}, sample {position} ({sample.key})"
    for listed in check.shard.members[position : position + 1]:
        if (place := list(listed.tolist())[:5]) != sample.place:
            yield f"{where}: expected place and crc32 {place}, found {sample.place}"
    try:
        found.item_ids.append(_item_id(sample.record, check.schema))
    except Exception as error:
        yield f"{where}: expected JSON with item_id and labels of the schema, found: {error}"
    if check.decode:
        try:
            decode(sample.picture, where)
        except UserError as error:
            yield str(error)


def _item_id(record: bytes, schema: Schema) -> str:
    content: Any = json.loads(record)
    labels = content["labels"]
    schema.encode(labels)
    if missing := set(schema.names) - set(labels):
        raise UserError(f"no label for {sorted(missing)}, not even null")
    if not isinstance(content["item_id"], str):
        raise UserError(f"item_id {content['item_id']!r}, which is not text")
    return content["item_id"]
