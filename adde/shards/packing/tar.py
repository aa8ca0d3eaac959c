"""One shard from its plan to a finished tar: what a worker does, here or on a cluster.

A sample is two members, `<key>.<jpg|png|webp>` and `<key>.json` with {"item_id": ..., "labels":
{attribute: value or null}}; every attribute is there, null where it is UNKNOWN. Beside a finished
tar stands its receipt, which says what it was made from: a tar with the receipt of the same job
is not made again, so that a build that was stopped goes on where it was.

Written with tarfile: importing `webdataset` imports torch, and who packs a catalogue need not have
it. The tests read the tars with `webdataset`.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adde.errors import UserError
from adde.files import atomic_path, read_json, sha256_of_file, write_json
from adde.shards.catalogues.catalogue import PictureSource
from adde.shards.index import Shard, checksum, member_rows

LISTED = 20
"""Unreadable pictures that an error names; no more are looked for."""

RECEIPT = ".receipt"
"""Ending of the name of a receipt, after that of its tar."""

DIGEST_BYTES = 16
"""Of a picture's sha256, kept to find pictures that several items have."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written. Picklable: all that a worker needs."""

    folder: Path
    name: str
    split: str
    first: int
    """Number of the first sample; keys count on from it."""
    groups: Sequence[int]
    """Lengths of the edit groups; what follows stands group by group."""
    sources: Sequence[PictureSource]
    records: Sequence[bytes]
    """JSON of each sample."""
    probe: str
    """Changes when the way that pictures are made does."""
    skip_unreadable: bool

    def digest(self) -> str:
        """sha256 of all that decides on the tar's content."""
        digest = hashlib.sha256(
            json.dumps([self.name, self.split, self.first, list(self.groups), self.probe]).encode()
        )
        for source, record in zip(self.sources, self.records):
            digest.update(json.dumps(source.stamp()).encode() + record)
        return digest.hexdigest()


@dataclass(frozen=True)
class Packed:
    """What became of a job."""

    shard: Shard | None
    """None where no picture of it could be read."""
    kept: list[int]
    """Positions in the job of the samples that were written."""
    unreadable: list[str]
    """A message for each sample left out; names the file."""
    pictures: str
    """DIGEST_BYTES of each picture written, in hex, one after another."""


def write_shard(job: ShardJob) -> Packed:
    """Writes the tar of a job, or finds it finished.

    Where pictures cannot be read and are not to be skipped, no receipt is left, and not more
    than LISTED of them are looked for.

    Raises:
        OSError: the disk refuses.
    """
    digest, receipt = job.digest(), job.folder / f"{job.name}{RECEIPT}"
    if (finished := _finished(job, digest, receipt)) is not None:
        return finished
    path = job.folder / job.name
    with atomic_path(path) as temporary:
        kept, unreadable, pictures = _write(job, temporary)
    if not kept:
        path.unlink()
    shard = _shard(job, path, kept) if kept else None
    packed = Packed(shard, kept, unreadable, pictures.hex())
    if job.skip_unreadable or not unreadable:
        written = {**vars(packed), "shard": shard and shard.with_members()}
        write_json(receipt, {"job": digest, **written}, indent=None)
    return packed


def _write(job: ShardJob, path: Path) -> tuple[list[int], list[str], bytes]:
    """Positions written, messages of those left out, and digests of the pictures written."""
    kept: list[int] = []
    unreadable: list[str] = []
    pictures = bytearray()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for position, (source, record) in enumerate(zip(job.sources, job.records)):
            try:
                content, extension = source.read()
            except UserError as error:
                unreadable.append(str(error))
                if not job.skip_unreadable and len(unreadable) == LISTED:
                    break
                continue
            key = f"{job.first + position:08d}"
            _add(tar, f"{key}.{extension}", content)
            _add(tar, f"{key}.json", record)
            kept.append(position)
            pictures += hashlib.sha256(content).digest()[:DIGEST_BYTES]
    return kept, unreadable, bytes(pictures)


def _finished(job: ShardJob, digest: str, receipt: Path) -> Packed | None:
    """What the receipt says, if it is of this job and its tar is there."""
    try:
        content: dict[str, Any] = read_json(receipt)
        if content.pop("job") != digest:
            return None
        shard = content.pop("shard")
        packed = Packed(Shard.from_json(shard) if shard else None, **content)
        if packed.shard and (job.folder / job.name).stat().st_size != packed.shard.bytes:
            return None
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None  # none, or cut short: made again
    return packed if job.skip_unreadable or not packed.unreadable else None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner stay zero: the same bytes every time
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _shard(job: ShardJob, path: Path, kept: Sequence[int]) -> Shard:
    rows = member_rows(kept_sizes(job.groups, kept), _places(path))
    size, sha256 = path.stat().st_size, sha256_of_file(path)
    return Shard(path.name, job.split, len(kept), size, sha256, rows)


def kept_sizes(groups: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Lengths of the groups that are left when only the positions `kept` are; none is 0."""
    there = set(kept)
    sizes: list[int] = []
    start = 0
    for group in groups:
        sizes.append(sum(1 for position in range(start, start + group) if position in there))
        start += group
    return [size for size in sizes if size]


def _places(path: Path) -> list[list[int]]:
    """Offset and size of each sample's picture and JSON, and the checksum of both, read back from
    the finished tar.
    """
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    members: list[list[int]] = []
    with path.open("rb") as file:
        for picture, record in zip(places[::2], places[1::2]):
            contents = [os.pread(file.fileno(), size, offset) for offset, size in (picture, record)]
            members.append([*picture, *record, checksum(*contents)])
    return members
