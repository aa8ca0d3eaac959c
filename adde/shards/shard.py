"""One shard: its entry in index.json, and the places of its members in index.members.

index.members has one row of `MEMBER` per sample. The crc32 covers the picture's bytes and then the
JSON's; the sha256 of a shard covers the whole tar, which training never reads completely. The
samples of an edit group are consecutive and share a group number, unique within the shard.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
    """One tar: its file name, split, sample count, size, hash and members."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    members: Members = field(repr=False, compare=False)
    """(samples,) rows of MEMBER."""

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Lengths of the edit groups, in order."""
        group = self.members["group"]
        first = np.append(True, group[1:] != group[:-1])[: len(group)]
        return np.diff(np.flatnonzero(first), append=len(group))

    def to_json(self) -> dict[str, Any]:
        """Return all fields but the members."""
        return {name: value for name, value in vars(self).items() if name != "members"}

    def with_members(self) -> dict[str, Any]:
        """Return the entry of index.json in format 2, which includes the members."""
        members = [list(row)[:5] for row in self.members.tolist()]
        return {**self.to_json(), "groups": self.groups.tolist(), "members": members}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Read the result of `with_members`."""
        rest = {name: value for name, value in entry.items() if name not in ("groups", "members")}
        return cls(**rest, members=member_rows(entry["groups"], entry["members"]))


def member_rows(groups: Sequence[int], places: Sequence[Sequence[int]]) -> Members:
    """Return rows of MEMBER.

    Args:
        groups: Lengths of the groups.
        places: Per sample: offset and size of the picture, offset and size of the JSON, crc32.
    """
    rows = np.zeros(len(places), MEMBER)
    for name, column in zip(MEMBER.names or (), zip(*places)):
        rows[name] = column
    rows["group"] = np.repeat(np.arange(len(groups)), groups)
    return rows


def checksum(picture: bytes, record: bytes) -> int:
    """Return the crc32 of a sample, as in a row of MEMBER."""
    return zlib.crc32(record, zlib.crc32(picture))
