"""Which samples a rank reads: its share of each global batch, or one run of a split."""

from dataclasses import dataclass

import numpy as np

from adde.shards.order import Places, SampleOrder


@dataclass(frozen=True)
class RankShare:
    """The micro-batches of one rank: number m is part of global batch m // accumulation.

    They follow one another in the global batch, ranks inside a micro-batch; `whole`, a rank's
    micro-batches inside its share.
    """

    order: SampleOrder
    rank: int
    ranks: int
    accumulation: int
    whole: bool = False

    def __call__(self, micro_batch: int) -> Places:
        """Places of this rank's micro-batch."""
        step, part = divmod(micro_batch, self.accumulation)
        size = self.order.batch_size // (self.accumulation * self.ranks)
        if self.whole:
            start = (self.rank * self.accumulation + part) * size
        else:
            start = (part * self.ranks + self.rank) * size
        return self.order.share(step, start, start + size)


@dataclass(frozen=True)
class StoredOrder:
    """Consecutive samples of a split, each of `ranks` taking one run of them."""

    samples: tuple[int, ...]
    batch_size: int
    rank: int = 0
    ranks: int = 1

    @property
    def bounds(self) -> tuple[int, int]:
        """First position of this rank's run, and the one after its last."""
        total = sum(self.samples)
        return total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks

    def __len__(self) -> int:
        start, stop = self.bounds
        return -(-(stop - start) // self.batch_size)

    def __call__(self, number: int) -> Places:
        """Places of this rank's batch `number`; the last may be short."""
        start, stop = self.bounds
        first = start + number * self.batch_size
        positions = np.arange(first, min(first + self.batch_size, stop))
        sizes = np.asarray(self.samples, dtype=np.int64)
        ends = np.cumsum(sizes)
        shards = np.searchsorted(ends, positions, side="right")
        return np.stack([shards, positions - (ends - sizes)[shards]], axis=1)
