"""This rank's batches: their order, their random numbers, and samples that cannot be read."""

import json
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from adde.distributed import rank, world_size
from adde.errors import UserError
from adde.loading.batch import Batch, join
from adde.loading.loader import BatchStream
from adde.loading.resize import load_for_training
from adde.preprocess import Preprocess
from adde.shards.batches import Batches, load_nothing
from adde.shards.index import ShardIndex
from adde.shards.jpeg import is_plain
from adde.shards.order import SampleOrder
from adde.shards.shares import RankShare
from adde.training.config import Config
from adde.training.watching.profiling import part

FAULTS_NAME = "faults.jsonl"


class TrainingBatches:
    """Read this rank's share of each global batch, stage by stage."""

    def __init__(
        self,
        config: Config,
        index: ShardIndex,
        order: SampleOrder,
        device: torch.device,
        pictures: bool = True,
    ) -> None:
        self._config, self._index, self._order = config, index, order
        self._load = load_for_training if pictures else load_nothing
        self._device = device
        self._skipped = 0.0
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
            self._load,
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
        for fault in batch.faults:
            tqdm.write(f"rank {rank()}, step {step}: skipped {fault}")
            with (self._config.run / FAULTS_NAME).open("a", encoding="utf-8") as lines:
                record = {"step": step, "rank": rank(), "fault": fault}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        number = next(self._numbers)
        torch.manual_seed(seed_of(seed, number, rank()))  # dropout
        return batch, torch.Generator().manual_seed(seed_of(seed, number))

    def require_few_skipped(self, share: float) -> None:
        """Count a step's share of skipped samples, which is equal on all ranks.

        Raises:
            UserError: more than `data.max_faults` of an epoch were skipped since this start.
        """
        data, path = self._config.data, self._config.run / FAULTS_NAME
        self._skipped += share * data.batch_size
        allowed = data.max_faults * self._order.steps_per_epoch * data.batch_size
        if self._skipped > allowed:
            raise UserError(
                f"expected at most {allowed:g} samples that cannot be read (data.max_faults = "
                f"{data.max_faults:g} of an epoch), found {self._skipped:.0f}; see {path}"
            )

    def close(self) -> None:
        """End the processes that read ahead."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def seed_of(*key: int) -> int:
    """Return the seed of what is drawn for a batch, given the run's seed and the batch's number."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
