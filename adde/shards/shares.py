"""Which samples a rank reads: its share of each global batch, or a contiguous part of a split."""

from dataclasses import dataclass

import numpy as np

from adde.shards.order import Addresses, SampleOrder


@dataclass(frozen=True)
class RankShare:
    """The micro-batches of one rank; micro-batch m belongs to global batch m // accumulation.

    A global batch is divided into micro-batches and these among the ranks. With `whole` it is
    divided among the ranks and each share into micro-batches.
    """

    order: SampleOrder
    rank: int
    ranks: int
    accumulation: int
    whole: bool = False

    def __call__(self, micro_batch: int) -> Addresses:
        """Return the addresses of one of this rank's micro-batches."""
        step, part = divmod(micro_batch, self.accumulation)
        size = self.order.batch_size // (self.accumulation * self.ranks)
        if self.whole:
            start = (self.rank * self.accumulation + part) * size
        else:
            start = (part * self.ranks + self.rank) * size
        return self.order.share(step, start, start + size)


@dataclass(frozen=True)
class StoredOrder:
    """A split in stored order; each rank reads a contiguous part."""

    samples: tuple[int, ...]
    batch_size: int
    rank: int = 0
    ranks: int = 1

    @property
    def bounds(self) -> tuple[int, int]:
        """Start and end position of this rank's part."""
        total = sum(self.samples)
        return total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks

    def __len__(self) -> int:
        start, stop = self.bounds
        return -(-(stop - start) // self.batch_size)

    def __call__(self, number: int) -> Addresses:
        """Return the addresses of batch `number` of this rank; the last may be short."""
        start, stop = self.bounds
        first = start + number * self.batch_size
        positions = np.arange(first, min(first + self.batch_size, stop))
        sizes = np.asarray(self.samples, dtype=np.int64)
        ends = np.cumsum(sizes)
        shards = np.searchsorted(ends, positions, side="right")
        return np.stack([shards, positions - (ends - sizes)[shards]], axis=1)
