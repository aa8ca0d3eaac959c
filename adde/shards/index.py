"""index.json: what a folder of shards holds; index.members: where in each tar every member lies.

Layout of index.json::

    {"format": 3, "name": "wardrobe", "schema_hash": "...", "schema": {"attributes": [...]},
     "members": {"name": "index.members", "bytes": 640000, "sha256": "..."},
     "shards": [{"name": "train-000000.tar", "split": "train", "samples": 512, "bytes": 1048576,
                 "sha256": "..."}, ...],
     "factors": {"floor_hue": 10, ...}}

`factors` is there where labels are exact: see `ShardIndex.factors`.

index.members has one row of `MEMBER` for each sample, shard after shard as index.json lists them.
It is mapped into memory, not read: all processes of a machine share its pages, and only those that
are looked at are there.

A sample is addressed by (shard, position): position p of a shard is row p of its `members`. Its
crc32 is of the picture's bytes and then the JSON's: sha256 is for whole tars, which training does
not read whole. Samples of one edit group stand one after another and have its number in the shard.

Format 2 had `groups` (lengths) and `members` (lists of five numbers) in each shard's entry; it is
read into the memory of each process.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, did_you_mean
from adde.files import atomic_path, read_json, sha256_of_file, write_json
from adde.schema import Schema
from adde.shards.remote.sources import Remote, locate

INDEX_NAME = "index.json"
MEMBERS_NAME = "index.members"
FORMAT = 3
SPLITS = ("train", "val", "test")

MEMBER = np.dtype(
    [
        ("image_at", "<u8"),
        ("image_bytes", "<u4"),
        ("json_at", "<u8"),
        ("json_bytes", "<u4"),
        ("crc32", "<u4"),
        ("group", "<u4"),
    ]
)
"""A row of index.members, 32 bytes."""

Members = npt.NDArray[np.void]


@dataclass(frozen=True)
class Shard:
    """One tar: its name in the folder, split, sample count, size and content."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    members: Members = field(repr=False, compare=False)
    """(samples,) rows of MEMBER."""

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Lengths of the edit groups that stand one after another."""
        group = self.members["group"]
        first = np.append(True, group[1:] != group[:-1])[: len(group)]
        return np.diff(np.flatnonzero(first), append=len(group))

    def to_json(self) -> dict[str, Any]:
        """All but the members."""
        return {name: value for name, value in vars(self).items() if name != "members"}

    def with_members(self) -> dict[str, Any]:
        """As an entry of index.json in format 2."""
        members = [list(row)[:5] for row in self.members.tolist()]
        return {**self.to_json(), "groups": self.groups.tolist(), "members": members}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Reads what `with_members` gave."""
        rest = {name: value for name, value in entry.items() if name not in ("groups", "members")}
        return cls(**rest, members=member_rows(entry["groups"], entry["members"]))


def member_rows(groups: Sequence[int], places: Sequence[Sequence[int]]) -> Members:
    """Rows of MEMBER from the lengths of groups, and offset and size of each sample's picture,
    those of its JSON, and crc32.
    """
    rows = np.zeros(len(places), MEMBER)
    for name, column in zip(MEMBER.names or (), zip(*places)):
        rows[name] = column
    rows["group"] = np.repeat(np.arange(len(groups)), groups)
    return rows


@dataclass(frozen=True)
class _File:
    """index.members, as index.json vouches for it."""

    name: str
    bytes: int
    sha256: str


def checksum(picture: bytes, record: bytes) -> int:
    """The crc32 that a row of `members` ends with."""
    return zlib.crc32(record, zlib.crc32(picture))


@dataclass(frozen=True)
class ShardIndex:
    """A folder of shards of one catalogue and one schema, here or behind an address."""

    root: Path | Remote
    name: str
    schema: Schema
    shards: tuple[Shard, ...]
    factors: Mapping[str, int] = field(default_factory=dict[str, int])
    """Attributes that are exact factors, with their numbers of values, the last fastest in a grid
    of all combinations; empty where labels are somebody's judgement."""

    @cached_property
    def splits(self) -> Mapping[str, tuple[Shard, ...]]:
        """The shards of each split that has any, in name order."""
        return {
            split: found
            for split in SPLITS
            if (found := tuple(shard for shard in self.shards if shard.split == split))
        }

    @property
    def folder(self) -> Path:
        """The root, for what is done to folders only. Raises UserError where it is an address."""
        if not isinstance(self.root, Path):
            raise UserError(f"{self.root}: expected a folder of this machine, found an address")
        return self.root

    def split(self, name: str) -> tuple[Shard, ...]:
        """Shards of one split. Raises UserError where it is empty or unknown."""
        if name not in self.splits:
            raise UserError(
                f"{self.root}: expected shards of split {name!r}, found none; "
                f"{did_you_mean(name, self.splits)}"
            )
        return self.splits[name]

    def count(self, split: str) -> int:
        """Number of samples of a split; 0 where it has none."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    def fingerprint(self, split: str) -> str:
        """sha256 of what a split's sample order rests on: its shards, their content and groups."""
        digest = hashlib.sha256()
        for number, shard in enumerate(self.split(split)):
            part = json.dumps([shard.sha256, shard.groups.tolist()])
            digest.update(f"{', ' if number else '['}{part}".encode())
        digest.update(b"]")
        return digest.hexdigest()

    def write(self) -> None:
        """Writes index.members and then index.json into `root`, a local folder; each atomically."""
        assert isinstance(self.root, Path)
        path = self.root / MEMBERS_NAME
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for shard in self.shards:
                file.write(shard.members.tobytes())
        content = {
            "format": FORMAT,
            "name": self.name,
            "schema_hash": self.schema.hash,
            "schema": self.schema.to_json(),
            "members": vars(_File(path.name, path.stat().st_size, sha256_of_file(path))),
            "shards": [shard.to_json() for shard in self.shards],
            **({"factors": dict(self.factors)} if self.factors else {}),
        }
        write_json(self.root / INDEX_NAME, content, indent=None)

    @classmethod
    def read(cls, root: Path | str, check_files: bool = True) -> "ShardIndex":
        """Reads index.json of a local folder, or of an address (`adde.shards.remote.sources`).

        Args:
            root: of the shards.
            check_files: refuse a local folder whose shards are missing or of another size.

        Raises:
            UserError: no index, another format, a field missing, a schema that does not have
                the hash written beside it, or index.members or a local shard file missing or of
                another size.
        """
        source = locate(root)
        path = f"{source}/{INDEX_NAME}"
        if isinstance(source, Remote):
            content = source.read_json(INDEX_NAME)
        elif (source / INDEX_NAME).exists():
            content = read_json(source / INDEX_NAME)
        else:
            raise UserError(f"{root}: expected a folder of shards with {INDEX_NAME}, found none")
        try:
            index = cls._from_json(source, content)
        except KeyError as error:
            raise UserError(f"{path}: expected field {error}, found none") from None
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{path}: expected an index of shards, found: {error}; build the shards again"
            ) from None
        if check_files and isinstance(source, Path):
            index._check_files(source)
        return index

    @classmethod
    def _from_json(cls, root: Path | Remote, content: Any) -> "ShardIndex":
        path = f"{root}/{INDEX_NAME}"
        if content["format"] not in (2, FORMAT):
            raise UserError(
                f"{path}: expected format {FORMAT}, found {content['format']}; "
                "build the shards again"
            )
        schema = Schema.from_json(content["schema"], path)
        if schema.hash != content["schema_hash"]:
            raise UserError(
                f"{path}: expected schema_hash {schema.hash} of the schema written there, "
                f"found {content['schema_hash']}; build the shards again"
            )
        if content["format"] == 2:
            shards = [Shard.from_json(entry) for entry in content["shards"]]
        else:
            rows = _members(root, _File(**content["members"]))
            ends = np.cumsum([entry["samples"] for entry in content["shards"]]).tolist()
            if ends[-1:] != [len(rows)]:
                raise ValueError(f"shards of {ends[-1:]} samples in all, and {len(rows)} members")
            parts = np.split(rows, ends[:-1])
            shards = [Shard(**e, members=part) for e, part in zip(content["shards"], parts)]
        for shard in shards:
            if not _is_file_name(shard.name):
                raise UserError(
                    f"{path}: expected shards that are files of the same folder, found the name "
                    f"{shard.name[:100]!r}; build the shards again"
                )
        factors = dict(content.get("factors", {}))
        sizes = dict(zip(schema.names, schema.sizes))
        if not factors.items() <= sizes.items():
            raise UserError(
                f"{path}: expected factors among the attributes {sizes}, found {factors}; "
                "build the shards again"
            )
        return cls(root, content["name"], schema, tuple(shards), factors)

    def _check_files(self, folder: Path) -> None:
        for shard in self.shards:
            path = folder / shard.name
            found = path.stat().st_size if path.exists() else None
            if found != shard.bytes:
                raise UserError(
                    f"{path}: expected {shard.bytes} bytes, found "
                    f"{'no file' if found is None else found}; build the shards again"
                )


def _members(root: Path | Remote, file: _File) -> Members:
    """The rows of a folder's members, mapped from the file or from the cache's copy of it."""
    if isinstance(root, Remote):
        descriptor = root.open(file)
    else:
        path = root / file.name
        found = path.stat().st_size if path.exists() else "no file"
        if found != file.bytes:
            raise UserError(
                f"{path}: expected {file.bytes} bytes, found {found}; build the shards again, or "
                f"copy it from where {INDEX_NAME} came from"
            )
        descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as opened:
        # What a test or a repair writes into a row is this process's alone.
        return np.memmap(opened, MEMBER, mode="c").view(np.ndarray)


def _is_file_name(name: str) -> bool:
    """Whether a file of a folder can have the name: no path leads elsewhere, and disks take it."""
    length = len(name.encode(errors="surrogateescape"))
    return 0 < length <= 255 and not {"/", "\0"} & set(name) and name not in (".", "..")
