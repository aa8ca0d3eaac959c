"""Read samples from plain WebDataset tars by offset, without scanning or unpacking them."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from adde.errors import UserError
from adde.schema import Labels, Schema
from adde.shards.index import ShardIndex
from adde.shards.remote.sources import Prefetcher, Remote
from adde.shards.shard import Shard, checksum

OPEN_SHARDS = 64
"""Most file handles of a reader; it closes the least recently used one and reopens on demand."""


@dataclass(frozen=True)
class Sample:
    """One stored item: picture bytes (jpg, png or webp) and labels (A,) int64."""

    item_id: str
    picture: bytes
    labels: Labels
    where: str
    """Shard and position, for messages."""
    item: str
    """The item that the picture shows: `item_id`, unless items have several pictures."""

    @property
    def item_number(self) -> int:
        """A number from 0 to 2^62 - 1 that pictures of one item share: a hash of `item`."""
        return int.from_bytes(hashlib.sha256(self.item.encode()).digest()[:8], "big") >> 2


class ShardReader:
    """Reads samples of an index by shard and position. Every process needs its own reader."""

    def __init__(self, index: ShardIndex) -> None:
        self._root = index.root
        self._schema: Schema = index.schema
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._prefetcher = Prefetcher(index.root) if isinstance(index.root, Remote) else None

    def read(self, shard: Shard, position: int) -> Sample:
        """Read one sample.

        Raises:
            UserError: The shard is truncated or cannot be fetched, the bytes have changed since
                packing, or the labels do not fit the schema; names shard and position.
        """
        row = shard.members[position].tolist()
        image_at, image_bytes, json_at, json_bytes, expected, _ = row
        where = f"{self._root}/{shard.name}, sample {position}"
        picture = self._bytes(shard, image_at, image_bytes, where)
        content = self._bytes(shard, json_at, json_bytes, where)
        if (found := checksum(picture, content)) != expected:
            raise UserError(
                f"{where}: expected bytes with crc32 {expected:08x}, found {found:08x}; they were "
                "changed after packing, build the shards again"
            )
        item_id, labels, item = self._record(content, where)
        return Sample(item_id, picture, labels, where, item)

    def labels(self, shard: Shard, position: int) -> Labels:
        """Read the labels (A,) int64 of one sample without its picture, and so without its crc32.

        Raises:
            UserError: As `read`.
        """
        row = shard.members[position]
        where = f"{self._root}/{shard.name}, sample {position}"
        content = self._bytes(shard, int(row["json_at"]), int(row["json_bytes"]), where)
        return self._record(content, where)[1]

    def _record(self, content: bytes, where: str) -> tuple[str, Labels, str]:
        """Parse the id, the labels and the item of a sample."""
        try:
            record = json.loads(content)
            item_id = record["item_id"]
            return item_id, self._schema.encode(record["labels"]), record.get("item", item_id)
        except Exception as error:
            raise UserError(
                f"{where}: expected JSON with item_id and labels of the schema, found: {error}; "
                "build the shards again"
            ) from None

    def _bytes(self, shard: Shard, offset: int, size: int, where: str) -> bytes:
        found = os.pread(self._handle(shard), size, offset)
        if len(found) != size:
            raise UserError(
                f"{where}: expected {size} bytes at offset {offset}, found {len(found)}; "
                "the shard is truncated, build it again"
            )
        return found

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Start to fetch the shards that are read next, if they are remote."""
        if self._prefetcher:
            self._prefetcher.prefetch(shards)

    def _handle(self, shard: Shard) -> int:
        name, root = shard.name, self._root
        if name in self._handles:
            self._handles.move_to_end(name)
            return self._handles[name]
        if len(self._handles) >= OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])
        is_remote = isinstance(root, Remote)
        self._handles[name] = root.open(shard) if is_remote else os.open(root / name, os.O_RDONLY)
        return self._handles[name]

    def close(self) -> None:
        """Close the file handles and stop fetching."""
        self.prefetch(())
        while self._handles:
            os.close(self._handles.popitem()[1])


def iterate(index: ShardIndex, split: str) -> Iterator[Sample]:
    """Yield all samples of a split in stored order."""
    shards = index.split(split)
    reader = ShardReader(index)
    try:
        for number, shard in enumerate(shards):
            reader.prefetch(shards[number + 1 : number + 3])
            for position in range(shard.samples):
                yield reader.read(shard, position)
    finally:
        reader.close()


def split_labels(index: ShardIndex, split: str) -> list[Labels]:
    """Read all labels of a split without pictures: (samples, A) int64 for each of its shards.

    Shards behind an address are fetched.
    """
    shards = index.split(split)
    reader = ShardReader(index)
    found: list[Labels] = []
    try:
        for number, shard in enumerate(shards):
            reader.prefetch(shards[number + 1 : number + 3])
            found.append(np.stack([reader.labels(shard, p) for p in range(shard.samples)]))
    finally:
        reader.close()
    return found
