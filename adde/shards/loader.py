# pyright: standard
"""Torch glue: whole batches of a rank's share, decoded in worker processes (layer 1)."""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adde.errors import UserError
from adde.preprocess import Preprocess
from adde.schema import Labels
from adde.shards.index import ShardIndex
from adde.shards.order import Places, SampleOrder
from adde.shards.reader import ShardReader
from adde.shards.sources import Remote

OnFault = Literal["raise", "skip"]

READ_AHEAD = 4
"""Batches that each worker process holds ready."""


@dataclass
class Batch:
    """b items: images (b, S, S, 3) uint8, labels (b, A) int64, and their ids."""

    images: Tensor
    labels: Tensor
    item_ids: list[str]
    faults: list[str] = field(default_factory=list)
    """What could not be read, each with shard, position and reason; an item of the same batch
    stands in its place."""
    stood_in: list[int] = field(default_factory=list)
    """Rows of the items that could not be read."""

    def pin_memory(self) -> "Batch":
        """Page-locked copy; DataLoader calls this where a GPU is used."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def only(self, rows: Tensor) -> "Batch":
        """The items that a (b,) bool mask keeps, none of which stands in for another."""
        ids = [item for item, kept in zip(self.item_ids, rows.tolist()) if kept]
        return Batch(self.images[rows], self.labels[rows], ids)


Decoded = tuple[npt.NDArray[np.uint8], Labels, str]


class Batches(Dataset[Batch]):
    """Batch number i holds the samples at `places(i)`; reads and decodes when asked.

    Args:
        index: of the shards.
        split: whose samples.
        preprocess: makes the pictures.
        places: of each batch.
        on_fault: what an unreadable sample does: `raise`, or `skip`, which puts the next readable
            one of the same batch in its place, so that ranks stay in step.
    """

    def __init__(
        self,
        index: ShardIndex,
        split: str,
        preprocess: Preprocess,
        places: Callable[[int], Places],
        on_fault: OnFault = "raise",
    ) -> None:
        self._index, self._shards = index, index.split(split)
        self._preprocess, self._places, self._on_fault = preprocess, places, on_fault
        self._reader: ShardReader | None = None
        self._reading: Tensor | None = None

    def watch(self, workers: int, timeout: float) -> None:
        """Has each of `workers` processes say in shared memory who it is and what it reads."""
        self._timeout = timeout
        self._reading = torch.full((max(1, workers), 3), -1).share_memory_()

    def explain(self, error: Exception, rank: int) -> Exception:
        """A UserError that says what was being read, if workers that died or dawdled are what the
        error is about; else the error itself. Torch raises it wherever the main thread is.
        """
        message = str(error)
        if isinstance(error, queue.Empty) or "DataLoader timed out after" in message:
            message = f"no batch came for {self._timeout:g} seconds (data.timeout)"
        elif "DataLoader worker" not in message:
            return error
        reading = "; ".join(self._being_read()) or "no worker says what it reads"
        return UserError(f"rank {rank}: {message.splitlines()[0]}; {reading}")

    def _being_read(self) -> list[str]:
        assert self._reading is not None
        return [
            f"worker {worker} reads {self._where(*self._places(number)[item].tolist())}"
            for worker, (_, number, item) in enumerate(self._reading.tolist())
            if number >= 0
        ]

    def end_workers(self) -> None:
        """Ends the worker processes at once, whatever they are at.

        DataLoader would wait five seconds for each. To a SIGTERM from their parent they exit as
        if they were done, and no handler takes them for killed.
        """
        assert self._reading is not None
        for process in self._reading[:, 0].tolist():
            if process not in (-1, os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)

    def __getitem__(self, number: int) -> Batch:
        # Made on first use, so that each worker process has file handles of its own.
        self._reader = self._reader or ShardReader(self._index)
        places: list[list[int]] = self._places(number).tolist()
        if isinstance(self._index.root, Remote):
            following = self._places(number + 1).tolist()
            shards = dict.fromkeys(shard for shard, _ in [*places, *following])
            self._reader.prefetch(self._shards[shard] for shard in shards)
        samples: list[Decoded | None] = []
        faults: list[str] = []
        for item, (shard, position) in enumerate(places):
            self._say(number, item)
            try:
                samples.append(self._decode(self._reader, shard, position))
            except (UserError, OSError) as error:
                fault = self._name_place(error, shard, position)
                if self._on_fault == "raise":
                    raise UserError(
                        f"{fault}; mend it, or go on without it: data.on_fault = 'skip'"
                    ) from None
                samples.append(None)
                faults.append(fault)
        self._say(-1, -1)
        images, labels, ids = zip(*_fill_gaps(samples, faults))
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(labels)),
            [*ids],
            faults,
            [item for item, sample in enumerate(samples) if sample is None],
        )

    def _decode(self, reader: ShardReader, shard: int, position: int) -> Decoded:
        sample = reader.read(self._shards[shard], position)
        picture = self._preprocess.load(sample.picture, sample.where)
        return picture, sample.labels, sample.item_id

    def _name_place(self, error: Exception, shard: int, position: int) -> str:
        where = self._where(shard, position)
        return str(error) if str(error).startswith(where) else f"{where}: {error}"

    def _where(self, shard: int, position: int) -> str:
        return f"{self._index.root}/{self._shards[shard].name}, sample {position}"

    def _say(self, number: int, item: int) -> None:
        if self._reading is not None:
            info = get_worker_info()
            self._reading[info.id if info else 0] = torch.tensor((os.getpid(), number, item))


def _fill_gaps(samples: list[Decoded | None], faults: list[str]) -> list[Decoded]:
    """Each gap takes the next sample there is, going round."""
    filled: list[Decoded] = []
    for item in range(len(samples)):
        following = (samples[(item + further) % len(samples)] for further in range(len(samples)))
        found = next((sample for sample in following if sample is not None), None)
        if found is None:
            raise UserError(f"no sample of a batch can be read; the first: {faults[0]}")
        filled.append(found)
    return filled


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
    batches: Batches,
    numbers: range,
    workers: int,
    pin_memory: bool = False,
    timeout: float = 0.0,
    rank: int = 0,
) -> Iterator[Batch]:
    """Batches of the given numbers in order, read ahead.

    Args:
        batches: where they come from.
        numbers: which.
        workers: processes that read; 0 reads in a thread of this one.
        pin_memory: for a GPU.
        timeout: seconds without a batch after which this gives up; 0 waits for ever.
        rank: named in errors.

    Raises:
        UserError: no batch came in time, a worker died, or as the batch says; names the rank,
            and the shard and position that were being read.
    """
    batches.watch(workers, timeout)
    if workers:
        loader: DataLoader[Batch] = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=READ_AHEAD,
            timeout=timeout,
        )
        stream = iter(loader)
    else:
        stream = _in_a_thread(batches, numbers, timeout)
    try:
        yield from stream
    except UserError as error:
        batches.end_workers()
        # A worker's error arrives with its traceback before the message.
        message = str(error).rpartition("adde.errors.UserError: ")[2].strip()
        raise UserError(f"rank {rank}: {message}") from None
    except (RuntimeError, queue.Empty) as error:
        explained = batches.explain(error, rank)
        batches.end_workers()
        raise explained from None


def _in_a_thread(batches: Batches, numbers: range, timeout: float) -> Iterator[Batch]:
    """Reads one batch ahead; a read that never ends holds up nobody but its thread."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for number in numbers:
                if closed.is_set():
                    return
                put(batches[number])
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (item := ready.get(timeout=timeout or None)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
