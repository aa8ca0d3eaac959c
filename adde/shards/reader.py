"""Samples read from plain WebDataset tars by offset: no scan, no unpacking."""

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adde.errors import UserError
from adde.schema import Labels, Schema
from adde.shards.index import Shard, ShardIndex, checksum
from adde.shards.remote.sources import Prefetcher, Remote

OPEN_SHARDS = 64
"""File handles a reader keeps; more shards than this are opened again when needed."""


@dataclass(frozen=True)
class Sample:
    """One catalogue item as stored: picture bytes (jpg, png or webp), labels (A,) int64."""

    item_id: str
    picture: bytes
    labels: Labels
    where: str
    """Shard and position, for messages."""


class ShardReader:
    """Reads samples of one index by (shard, position); one reader per process."""

    def __init__(self, index: ShardIndex) -> None:
        self._root = index.root
        self._schema: Schema = index.schema
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._prefetcher = Prefetcher(index.root) if isinstance(index.root, Remote) else None

    def read(self, shard: Shard, position: int) -> Sample:
        """Reads one sample.

        Raises:
            UserError: the bytes at the indexed place are cut short, are not those that were
                packed, or are not the labels of this schema; names shard and position. Or the
                shard cannot be fetched.
        """
        row = shard.members[position].tolist()
        image_at, image_bytes, json_at, json_bytes, expected, _ = row
        where = f"{self._root}/{shard.name}, sample {position}"
        picture = self._bytes(shard, image_at, image_bytes, where)
        content = self._bytes(shard, json_at, json_bytes, where)
        if (found := checksum(picture, content)) != expected:
            raise UserError(
                f"{where}: expected bytes with crc32 {expected:08x}, found {found:08x}; they were "
                "changed after they were packed, build the shards again"
            )
        try:
            record = json.loads(content)
            labels = self._schema.encode(record["labels"])
            return Sample(record["item_id"], picture, labels, where)
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
                "the shard is cut short, build it again"
            )
        return found

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Names the shards to be read next, for those that must be fetched first."""
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
        """Closes the file handles, and fetches no more."""
        self.prefetch(())
        while self._handles:
            os.close(self._handles.popitem()[1])


def iterate(index: ShardIndex, split: str) -> Iterator[Sample]:
    """All samples of a split in stored order."""
    shards = index.split(split)
    reader = ShardReader(index)
    try:
        for number, shard in enumerate(shards):
            reader.prefetch(shards[number + 1 : number + 3])
            for position in range(shard.samples):
                yield reader.read(shard, position)
    finally:
        reader.close()
