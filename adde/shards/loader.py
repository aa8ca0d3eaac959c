# pyright: standard
"""Torch glue: whole batches of a rank's share, decoded in worker processes (layer 1)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adde.preprocess import Preprocess
from adde.shards.index import ShardIndex
from adde.shards.order import Places, SampleOrder
from adde.shards.reader import ShardReader


@dataclass
class Batch:
    """b items: images (b, S, S, 3) uint8, labels (b, A) int64, and their ids."""

    images: Tensor
    labels: Tensor
    item_ids: list[str]

    def pin_memory(self) -> "Batch":
        """Page-locked copy; DataLoader calls this where a GPU is used."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.item_ids)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.item_ids,
        )


class Batches(Dataset[Batch]):
    """Batch number i holds the samples at `places(i)`; reads and decodes when asked."""

    def __init__(
        self,
        index: ShardIndex,
        split: str,
        preprocess: Preprocess,
        places: Callable[[int], Places],
    ) -> None:
        self._index, self._shards = index, index.split(split)
        self._preprocess, self._places = preprocess, places
        self._reader: ShardReader | None = None

    def __getitem__(self, number: int) -> Batch:
        # Made on first use, so that each worker process has file handles of its own.
        self._reader = self._reader or ShardReader(self._index)
        samples = [
            self._reader.read(self._shards[shard], position)
            for shard, position in self._places(number).tolist()
        ]
        load = self._preprocess.load
        return Batch(
            torch.from_numpy(np.stack([load(s.picture, s.where) for s in samples])),
            torch.from_numpy(np.stack([s.labels for s in samples])),
            [s.item_id for s in samples],
        )


@dataclass(frozen=True)
class RankShare:
    """The micro-batches of one rank: number m is part of global batch m // accumulation."""

    order: SampleOrder
    rank: int
    ranks: int
    accumulation: int

    def __call__(self, micro_batch: int) -> Places:
        """Micro-batches follow one another in the global batch, ranks inside a micro-batch."""
        step, part = divmod(micro_batch, self.accumulation)
        size = self.order.batch_size // (self.accumulation * self.ranks)
        start = (part * self.ranks + self.rank) * size
        return self.order.batch(step)[start : start + size]


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


def load_batches(
    batches: Batches, numbers: range, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches of the given numbers in order, `workers` processes reading ahead."""
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)
