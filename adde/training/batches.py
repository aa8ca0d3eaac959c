"""The batches of this rank in a run: their order, random numbers and unreadable samples."""

from collections.abc import Iterator

import numpy as np
import torch

from adde.distributed import rank, world_size
from adde.loading.loader import Batch, BatchStream, join
from adde.loading.resize import load_for_training
from adde.preprocess import Preprocess
from adde.shards.batches import Batches
from adde.shards.index import ShardIndex
from adde.shards.jpeg import is_plain
from adde.shards.order import SampleOrder
from adde.shards.shares import RankShare
from adde.training.config import Config
from adde.training.resilience.skipped_samples import SkippedSamples
from adde.training.watching.profiling import part


class TrainingBatches:
    """Read this rank's share of each global batch, stage by stage."""

    def __init__(
        self, config: Config, index: ShardIndex, order: SampleOrder, device: torch.device
    ) -> None:
        self._config, self._index, self._order = config, index, order
        self._device = device
        self._skipped = SkippedSamples(config.run, rank())
        self._numbers: Iterator[int] = iter(())
        self.stream: BatchStream | None = None
        """Reads ahead; None outside a stage."""

    def open(self, preprocess: Preprocess, first: int, steps: int) -> None:
        """Start to read ahead for `steps` steps of the run, from step `first` (from 0)."""
        data = self._config.data
        parts, loads = data.accumulation, data.batches_per_step
        batches = Batches(
            self._index,
            "train",
            preprocess,
            RankShare(self._order, rank(), world_size(), parts, whole=data.cached),
            data.on_fault,
            load_for_training,
            is_plain if data.decode == "device" else None,
        )
        # Micro-batches are read one by one even if they are joined: the memory of one is enough.
        self.stream = BatchStream(
            batches,
            range(first * parts, (first + steps) * parts),
            data.workers,
            self._device,
            data.timeout,
            rank(),
            together=parts // loads,
        )
        self._numbers = iter(range(first * loads, (first + steps) * loads))

    @part("loading")
    def next(self, step: int) -> tuple[Batch, torch.Generator]:
        """Return the next batch, and the generator for everything that is drawn for it.

        Both depend only on the batch's number, so a resumed run draws the same numbers as an
        uninterrupted one. `step` is the number of steps done, for messages.
        """
        assert self.stream is not None
        data, seed = self._config.data, self._config.seed
        batch = join(self.stream, data.accumulation // data.batches_per_step)
        self._skipped.report(batch.faults, step)
        number = next(self._numbers)
        torch.manual_seed(_seed(seed, number, rank()))  # dropout
        return batch, torch.Generator().manual_seed(_seed(seed, number))

    def require_few_skipped(self, share: float) -> None:
        """Count a step's share of skipped samples. Raise UserError beyond `data.max_faults`."""
        self._skipped.require_below_limit(share, self._config.data, self._order.steps_per_epoch)

    def close(self) -> None:
        """End the processes that read ahead."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
