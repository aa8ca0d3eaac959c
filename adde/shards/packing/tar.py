"""Write one shard; this is what a worker does, here or on a cluster.

A sample has two members, `<key>.<jpg|png|webp>` and `<key>.json` with {"item_id": ..., "labels":
{attribute: value or null}}. Every attribute is present, with null for UNKNOWN. A finished tar has a
receipt next to it with a digest of its job. A tar whose receipt matches the job is not written
again, so an interrupted build continues where it stopped.

This module uses tarfile, because importing `webdataset` would import torch, which packing does not
need. The tests read the tars with `webdataset`.
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
from adde.shards.shard import Shard, checksum, member_rows

MAX_UNREADABLE = 20
"""Unreadable pictures after which a build stops; the error names them."""

RECEIPT = ".receipt"
"""Suffix of a receipt, added to the name of its tar."""

DIGEST_BYTES = 16
"""Leading bytes of a picture's sha256, used to find duplicates."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written. Picklable; a worker needs nothing else."""

    folder: Path
    name: str
    split: str
    first: int
    """Number of the first sample; keys count up from it."""
    groups: Sequence[int]
    """Lengths of the edit groups; sources and records are in group order."""
    sources: Sequence[PictureSource]
    records: Sequence[bytes]
    """JSON of each sample."""
    probe: str
    """Changes when pictures are encoded differently."""
    skip_unreadable: bool

    def digest(self) -> str:
        """Return a sha256 of all that determines the tar's content."""
        digest = hashlib.sha256(
            json.dumps([self.name, self.split, self.first, list(self.groups), self.probe]).encode()
        )
        for source, record in zip(self.sources, self.records):
            digest.update(json.dumps(source.stamp()).encode() + record)
        return digest.hexdigest()


@dataclass(frozen=True)
class Packed:
    """The result of a job."""

    shard: Shard | None
    """None if no picture could be read."""
    kept: list[int]
    """Positions in the job of the written samples."""
    unreadable: list[str]
    """A message for each omitted sample, naming the file."""
    pictures: str
    """Concatenated DIGEST_BYTES of each written picture, in hex."""


def write_shard(job: ShardJob) -> Packed:
    """Write the tar of a job, unless it is already finished.

    If pictures are unreadable and must not be skipped, no receipt is written, and the job stops
    after MAX_UNREADABLE of them.

    Raises:
        OSError: The disk rejects the file.
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
    """Return written positions, messages about omitted ones, and digests of written pictures."""
    kept: list[int] = []
    unreadable: list[str] = []
    pictures = bytearray()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for position, (source, record) in enumerate(zip(job.sources, job.records)):
            try:
                content, extension = source.read()
            except UserError as error:
                unreadable.append(str(error))
                if not job.skip_unreadable and len(unreadable) == MAX_UNREADABLE:
                    break
                continue
            key = f"{job.first + position:08d}"
            _add(tar, f"{key}.{extension}", content)
            _add(tar, f"{key}.json", record)
            kept.append(position)
            pictures += hashlib.sha256(content).digest()[:DIGEST_BYTES]
    return kept, unreadable, bytes(pictures)


def _finished(job: ShardJob, digest: str, receipt: Path) -> Packed | None:
    """Return the content of the receipt, if it belongs to this job and its tar exists."""
    try:
        content: dict[str, Any] = read_json(receipt)
        if content.pop("job") != digest:
            return None
        shard = content.pop("shard")
        packed = Packed(Shard.from_json(shard) if shard else None, **content)
        if packed.shard and (job.folder / job.name).stat().st_size != packed.shard.bytes:
            return None
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None  # missing or truncated
    return packed if job.skip_unreadable or not packed.unreadable else None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # zero time and owner, so that the bytes are reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _shard(job: ShardJob, path: Path, kept: Sequence[int]) -> Shard:
    rows = member_rows(kept_sizes(job.groups, kept), _places(path))
    size, sha256 = path.stat().st_size, sha256_of_file(path)
    return Shard(path.name, job.split, len(kept), size, sha256, rows)


def kept_sizes(groups: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Return the lengths of the groups after keeping only some positions, without empty groups."""
    positions = set(kept)
    sizes: list[int] = []
    start = 0
    for group in groups:
        sizes.append(sum(1 for position in range(start, start + group) if position in positions))
        start += group
    return [size for size in sizes if size]


def _places(path: Path) -> list[list[int]]:
    """Read a finished tar: offset and size of each sample's picture and JSON, and its checksum."""
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    members: list[list[int]] = []
    with path.open("rb") as file:
        for picture, record in zip(places[::2], places[1::2]):
            contents = [os.pread(file.fileno(), size, offset) for offset, size in (picture, record)]
            members.append([*picture, *record, checksum(*contents)])
    return members
