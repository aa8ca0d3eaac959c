"""index.json, which describes a folder of shards, and index.members, the offsets of their samples.

Layout of index.json::

    {"format": 3, "name": "wardrobe", "schema_hash": "...", "schema": {"attributes": [...]},
     "members": {"name": "index.members", "bytes": 640000, "sha256": "..."},
     "shards": [{"name": "train-000000.tar", "split": "train", "samples": 512, "bytes": 1048576,
                 "sha256": "..."}, ...],
     "factors": {"floor_hue": 10, ...}, "most_pictures": 4}

`factors` exists only for exact labels, and `most_pictures` only if an item has several pictures;
see `ShardIndex`.

index.members has one row of `adde.shards.shard.MEMBER` per sample, in the order of the shards in
index.json. It is memory-mapped: all processes of a machine share its pages, and only used pages are
loaded. A sample's address is (shard, position); position p of a shard is row p of its `members`.

In format 2 each shard's entry had `groups` (lengths) and `members` (lists of five numbers). It can
still be read, into the memory of each process.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError, did_you_mean
from adde.files import atomic_path, read_json, sha256_of_file, write_json
from adde.schema import Schema
from adde.shards.remote.sources import Remote, locate
from adde.shards.shard import MEMBER, Members, Shard

INDEX_NAME = "index.json"
MEMBERS_NAME = "index.members"
FORMAT = 3
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _File:
    """The entry of index.members in index.json."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """A local or remote folder of shards of one catalogue and one schema."""

    root: Path | Remote
    name: str
    schema: Schema
    shards: tuple[Shard, ...]
    factors: Mapping[str, int] = field(default_factory=dict[str, int])
    """Attributes that are exact factors, with their numbers of values; in a grid of all
    combinations the last changes fastest. Empty if the labels are not exact."""
    most_pictures: int = 1
    """Most pictures of an item. Above 1 every sample names its item."""

    @cached_property
    def splits(self) -> Mapping[str, tuple[Shard, ...]]:
        """The shards of each non-empty split."""
        return {
            split: found
            for split in SPLITS
            if (found := tuple(shard for shard in self.shards if shard.split == split))
        }

    @property
    def folder(self) -> Path:
        """The root, if it is a local folder. Raises UserError if it is an address."""
        if not isinstance(self.root, Path):
            raise UserError(f"{self.root}: expected a folder of this machine, found an address")
        return self.root

    def split(self, name: str) -> tuple[Shard, ...]:
        """Return the shards of a split. Raises UserError if it is empty or unknown."""
        if name not in self.splits:
            raise UserError(
                f"{self.root}: expected shards of split {name!r}, found none; "
                f"{did_you_mean(name, self.splits)}"
            )
        return self.splits[name]

    def count(self, split: str) -> int:
        """Return the number of samples of a split, 0 if it does not exist."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    def fingerprint(self, split: str) -> str:
        """Return a sha256 of all that decides a split's sample order: shards and groups."""
        digest = hashlib.sha256()
        for number, shard in enumerate(self.split(split)):
            part = json.dumps([shard.sha256, shard.groups.tolist()])
            digest.update(f"{', ' if number else '['}{part}".encode())
        digest.update(b"]")
        return digest.hexdigest()

    def write(self) -> None:
        """Write index.members and then index.json into `root`, a local folder, each atomically."""
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
            **({"most_pictures": self.most_pictures} if self.most_pictures > 1 else {}),
        }
        write_json(self.root / INDEX_NAME, content, indent=None)

    @classmethod
    def read(cls, root: Path | str, check_files: bool = True) -> "ShardIndex":
        """Read the index of a local folder, or of an address (see `adde.shards.remote.sources`).

        Args:
            root: The folder or the address.
            check_files: Reject a local folder with shards that are missing or of another size.

        Raises:
            UserError: There is no index, it has another format or lacks a field, the schema does
                not match its hash, or index.members or a local shard is missing or has another
                size.
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
                f"{path}: expected schema_hash {schema.hash} for its schema, "
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
        most = int(content.get("most_pictures", 1))
        return cls(root, content["name"], schema, tuple(shards), factors, most)

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
    """Map the members of a folder, from its file or from the copy in the cache."""
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
        # Copy-on-write: changes stay in this process.
        return np.memmap(opened, MEMBER, mode="c").view(np.ndarray)


def _is_file_name(name: str) -> bool:
    """Whether a name is valid for a file in the folder itself, on any disk."""
    length = len(name.encode(errors="surrogateescape"))
    return 0 < length <= 255 and not {"/", "\0"} & set(name) and name not in (".", "..")
