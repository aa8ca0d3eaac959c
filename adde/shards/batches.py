"""Read and decode batches of samples from shards."""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adde.errors import UserError
from adde.preprocess import Fit, Picture, Preprocess
from adde.schema import UNKNOWN, Labels
from adde.shards.index import ShardIndex
from adde.shards.order import Addresses
from adde.shards.reader import Sample, ShardReader
from adde.shards.remote.sources import Remote

OnFault = Literal["raise", "skip"]

Load = Callable[[Preprocess, bytes, str, Picture], None]
"""Writes the picture of a file's content into (S, S, 3) uint8; the name is for messages."""


def load_exactly(preprocess: Preprocess, source: bytes, name: str, into: Picture) -> None:
    """Load the picture exactly as evaluation and serving do."""
    into[:] = preprocess.load(source, name)


def load_nothing(preprocess: Preprocess, source: bytes, name: str, into: Picture) -> None:
    """No picture, for who needs only what comes with it."""
    into[:] = 0


@dataclass(frozen=True)
class BatchMetadata:
    """All of a batch of b items but its pictures."""

    labels: Labels
    """(b, A) int64."""
    item_ids: list[str]
    faults: list[str]
    """Shard, position and reason of each unreadable sample."""
    substituted_rows: list[int]
    """Rows of unreadable samples; they hold another item of the batch."""
    encoded: dict[int, bytes]
    """Files of the pictures that are not decoded yet, by row."""
    items: Labels | None = None
    """(b,) int64 numbers of the items, equal for pictures of one; None if each has one picture."""


class Batches:
    """Reads batches on request; batch i holds the samples at `addresses(i)`.

    Args:
        index: Index of the shards.
        split: Split of the samples.
        preprocess: The network's preprocessing.
        addresses: Maps a batch number to the addresses of its samples.
        on_fault: What to do about an unreadable sample: `raise`, or `skip`, which substitutes the
            next readable sample of the same batch, so that ranks stay in step.
        load: Decodes a picture.
        leave: Whether to return a file encoded, to be decoded on the device.
    """

    def __init__(
        self,
        index: ShardIndex,
        split: str,
        preprocess: Preprocess,
        addresses: Callable[[int], Addresses],
        on_fault: OnFault = "raise",
        load: Load = load_exactly,
        leave: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._index, self._shards = index, index.split(split)
        self._preprocess, self._load, self._leave = preprocess, load, leave
        self._addresses, self._on_fault = addresses, on_fault
        self._reader: ShardReader | None = None

    @property
    def fit(self) -> Fit:
        """How pictures are made square."""
        return self._preprocess.fit

    @property
    def leaves(self) -> bool:
        """Whether batches may contain encoded pictures."""
        return self._leave is not None

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Return the shape (b, S, S, 3) of a batch's pictures."""
        side = self._preprocess.size
        return len(self._addresses(number)), side, side, 3

    def read(
        self, number: int, images: Picture, report: Callable[[int, int], None]
    ) -> BatchMetadata:
        """Read a batch.

        Args:
            number: Number of the batch.
            images: (b, S, S, 3) uint8; the pictures are written here.
            report: Called with `number` and a row before the row is read.

        Raises:
            UserError: A sample cannot be read, or with `skip` none of the batch can.
        """
        # Created on first use, so that each worker process has its own file handles.
        reader = self._reader = self._reader or ShardReader(self._index)
        addresses: list[list[int]] = self._addresses(number).tolist()
        if isinstance(self._index.root, Remote):
            following = self._addresses(number + 1).tolist()
            shards = dict.fromkeys(shard for shard, _ in [*addresses, *following])
            reader.prefetch(self._shards[shard] for shard in shards)
        labels = np.full((len(addresses), len(self._index.schema.names)), UNKNOWN, np.int64)
        items = np.zeros(len(addresses), np.int64) if self._index.most_pictures > 1 else None
        metadata = BatchMetadata(labels, [""] * len(addresses), [], [], {}, items)
        samples: dict[int, Sample] = {}

        def fetch(row: int) -> None:
            shard, position = addresses[row]
            sample = samples[row] = reader.read(self._shards[shard], position)
            metadata.labels[row], metadata.item_ids[row] = sample.labels, sample.item_id
            if metadata.items is not None:
                metadata.items[row] = sample.item_number

        def decode(row: int) -> None:
            sample = samples[row]
            if self._leave is not None and self._leave(sample.picture):
                metadata.encoded[row] = sample.picture
            else:
                self._load(self._preprocess, sample.picture, sample.where, images[row])

        # First fetch all, then decode all: alternating would evict each other's code from the
        # processor's caches.
        for work in (fetch, decode):
            for row in sorted(set(range(len(addresses))) - set(metadata.substituted_rows)):
                report(number, row)
                try:
                    work(row)
                except (UserError, OSError) as error:
                    self._record(error, addresses[row], row, metadata)
        _fill_gaps(images, metadata)
        return metadata

    def _record(
        self, error: UserError | OSError, place: list[int], row: int, metadata: BatchMetadata
    ) -> None:
        """Record an unreadable row, or raise."""
        fault = self._name_place(error, *place)
        if self._on_fault == "raise":
            raise UserError(
                f"{fault}; repair it, or continue without it: data.on_fault = 'skip'"
            ) from None
        metadata.faults.append(fault)
        metadata.substituted_rows.append(row)

    def where(self, number: int, item: int) -> str:
        """Return the shard and position of a batch's item, for messages."""
        return self._where(*self._addresses(number)[item].tolist())

    def _name_place(self, error: Exception, shard: int, position: int) -> str:
        where = self._where(shard, position)
        return str(error) if str(error).startswith(where) else f"{where}: {error}"

    def _where(self, shard: int, position: int) -> str:
        return f"{self._index.root}/{self._shards[shard].name}, sample {position}"


def _fill_gaps(images: Picture, metadata: BatchMetadata) -> None:
    """Fill each unreadable row with the next readable one, cyclically."""
    readable = sorted(set(range(len(metadata.item_ids))) - set(metadata.substituted_rows))
    if not readable:
        raise UserError(f"no sample of a batch can be read; the first: {metadata.faults[0]}")
    for gap in metadata.substituted_rows:
        following = readable[bisect(readable, gap) % len(readable)]
        images[gap], metadata.labels[gap] = images[following], metadata.labels[following]
        metadata.item_ids[gap] = metadata.item_ids[following]
        if metadata.items is not None:
            metadata.items[gap] = metadata.items[following]
        if following in metadata.encoded:
            metadata.encoded[gap] = metadata.encoded[following]
