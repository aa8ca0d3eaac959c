"""index.json: what a folder of shards holds, and where in each tar every member lies.

Layout::

    {"format": 2, "name": "wardrobe", "schema_hash": "...", "schema": {"attributes": [...]},
     "shards": [{"name": "train-000000.tar", "split": "train", "samples": 512, "bytes": 1048576,
                 "sha256": "...", "groups": [3, 5, ...],
                 "members": [[image_offset, image_bytes, json_offset, json_bytes, crc32], ...]
                }, ...]}

A sample is addressed by (shard, position): position p of a shard is row p of its `members`. Its
crc32 is of the picture's bytes and then the JSON's: sha256 is for whole tars, which training does
not read whole.
`groups` are the lengths of the edit groups that stand one after another in the shard.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adde.errors import UserError, did_you_mean
from adde.files import read_json, write_json
from adde.schema import Schema
from adde.shards.sources import Remote, locate

INDEX_NAME = "index.json"
FORMAT = 2
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Shard:
    """One tar: its name in the folder, split, sample count, size and content."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    groups: Sequence[int]
    members: Sequence[Sequence[int]]


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
        content = [[shard.sha256, list(shard.groups)] for shard in self.split(split)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write(self) -> None:
        """Writes index.json atomically into `root`, a local folder."""
        assert isinstance(self.root, Path)
        content = {
            "format": FORMAT,
            "name": self.name,
            "schema_hash": self.schema.hash,
            "schema": self.schema.to_json(),
            "shards": [vars(shard) for shard in self.shards],  # no copy of a list for every sample
        }
        write_json(self.root / INDEX_NAME, content, indent=None)

    @classmethod
    def read(cls, root: Path | str, check_files: bool = True) -> "ShardIndex":
        """Reads index.json of a local folder, or of an address (`adde.shards.sources`).

        Args:
            root: of the shards.
            check_files: refuse a local folder whose shards are missing or of another size.

        Raises:
            UserError: no index, another format, a field missing, a schema that does not have
                the hash written beside it, or a local shard file missing or of another size.
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
        if content["format"] != FORMAT:
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
        shards = tuple(Shard(**shard) for shard in content["shards"])
        return cls(root, content["name"], schema, shards)

    def _check_files(self, folder: Path) -> None:
        for shard in self.shards:
            path = folder / shard.name
            found = path.stat().st_size if path.exists() else None
            if found != shard.bytes:
                raise UserError(
                    f"{path}: expected {shard.bytes} bytes, found "
                    f"{'no file' if found is None else found}; build the shards again"
                )
