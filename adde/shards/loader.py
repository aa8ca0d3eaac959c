# pyright: standard
"""Torch glue: batches read ahead, in worker processes or a thread, and brought to the device."""

import contextlib
import mmap
import multiprocessing
import os
import queue
import signal
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adde.errors import UserError
from adde.shards.batches import Batches, Companions
from adde.shards.gpu_decode import decode_into

READ_AHEAD = 4
"""Batches that each worker process holds ready."""

LENT = 2
"""Batches whose pictures lie in the workers' memory while they are used; those beyond are copied.
One is trained on while the next is taken."""

LAST_READ = 5.0
"""Seconds that the thread which reads may take to end with its stream. Within torch's code at the
interpreter's end it would abort the process."""

NOBODY = -1

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Signals to stop, which launchers and schedulers send to all processes of a rank."""


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

    @classmethod
    def of(cls, images: Tensor, found: Companions) -> "Batch":
        """The batch of pictures and what came with them."""
        labels = torch.from_numpy(found.labels)
        return cls(images, labels, found.item_ids, found.faults, found.stood_in)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def only(self, rows: Tensor) -> "Batch":
        """The items that a (b,) bool mask keeps, none of which stands in for another."""
        ids = [item for item, kept in zip(self.item_ids, rows.tolist()) if kept]
        return Batch(self.images[rows], self.labels[rows], ids)


class BatchStream(Iterator[Batch]):
    """Batches of the given numbers in order, read ahead; close it when it is left early.

    Args:
        batches: where they come from.
        numbers: which, one after another.
        workers: processes that read; 0 reads in a thread of this one.
        device: where they are brought; to a GPU while the batch before is worked on.
        timeout: seconds without a batch after which this gives up; 0 waits for ever.
        rank: named in errors.

    Raises:
        UserError: no batch came in time, a worker died, or as the batch says; names the rank,
            and the shard and position that were being read.
    """

    def __init__(
        self,
        batches: Batches,
        numbers: range,
        workers: int,
        device: torch.device | None = None,
        timeout: float = 0.0,
        rank: int = 0,
    ) -> None:
        self._batches, self._timeout, self._rank = batches, timeout, rank
        self._device = device or torch.device("cpu")
        # Of each worker: its process, and the batch and row that it reads.
        self._reading = _shared((max(1, workers), 3), np.int64)
        self._reading[:] = NOBODY
        if not numbers:
            source: Generator[Batch] = (batch for batch in ())
        elif workers:
            source = self._from_workers(numbers, workers)
        else:
            source = self._from_a_thread(numbers)
        if self._device.type == "cuda":
            source = _to_gpu(source, self._device)
        self._source = source

    def __next__(self) -> Batch:
        try:
            return next(self._source)
        except UserError as error:
            # A worker's error arrives with its traceback before the message.
            message = str(error).rpartition("adde.errors.UserError: ")[2].strip()
            raise UserError(f"rank {self._rank}: {message}") from None
        except (RuntimeError, queue.Empty) as error:
            raise self.explain(error) from None

    def close(self) -> None:
        """Ends what reads ahead."""
        self._source.close()

    def explain(self, error: Exception) -> Exception:
        """A UserError that says what was being read, if workers that died or dawdled are what the
        error is about; else the error itself.

        Of a worker that was killed torch tells wherever the main thread is.
        """
        message = str(error)
        if isinstance(error, queue.Empty) or "DataLoader timed out after" in message:
            message = f"no batch came for {self._timeout:g} seconds (data.timeout)"
        elif "DataLoader worker" not in message:
            return error
        reading = "; ".join(self._being_read()) or "no worker says what it reads"
        return UserError(f"rank {self._rank}: {message.splitlines()[0]}; {reading}")

    def _being_read(self) -> list[str]:
        return [
            f"worker {worker} reads {self._batches.where(number, item)}"
            for worker, (_, number, item) in enumerate(self._reading.tolist())
            if number != NOBODY
        ]

    def _end_workers(self) -> None:
        """Ends the worker processes at once, whatever they are at.

        DataLoader would wait five seconds for each. To a SIGTERM from their parent they exit as
        if they were done (`_heed_the_parent`), and no handler takes them for killed.
        """
        for child in multiprocessing.active_children():
            if child.pid in self._reading[:, 0]:
                child.terminate()

    def _from_workers(self, numbers: range, workers: int) -> Generator[Batch]:
        slots = _Slots(workers * READ_AHEAD + 1 + LENT, self._batches.shape(numbers[0]))
        loader: DataLoader[tuple[int, int, Companions]] = DataLoader(
            _IntoSlots(self._batches, slots.pictures, self._reading),
            batch_size=None,
            sampler=slots.claim(numbers),
            num_workers=workers,
            prefetch_factor=READ_AHEAD,
            timeout=self._timeout,
            multiprocessing_context="fork",  # shares the slots
            worker_init_fn=_heed_the_parent,
        )
        try:
            with _stops_held_back():
                places = iter(loader)  # forks
            for number, slot, found in places:
                if self._device.type == "cuda":
                    images = slots.copy(slot, len(found.item_ids), pinned=True)
                else:
                    images = slots.lend(slot, len(found.item_ids))
                yield self._batch(number, images, found)
                del images  # while the caller works on the next
        finally:
            self._end_workers()

    def _batch(self, number: int, images: Tensor, found: Companions) -> Batch:
        """The batch, with what was left encoded decoded on the device."""
        batch = Batch.of(images, found)
        if found.encoded:
            batch = batch.to(self._device)
            names = {row: self._batches.where(number, row) for row in found.encoded}
            decode_into(batch.images, found.encoded, names)
        return batch

    def _from_a_thread(self, numbers: range) -> Generator[Batch]:
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
                    images = _room(self._batches.shape(number), self._device.type == "cuda")
                    found = self._batches.read(number, images.numpy(), self._say)
                    self._say(NOBODY, NOBODY)
                    put(self._batch(number, images, found))
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while (item := ready.get(timeout=self._timeout or None)) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join(LAST_READ)

    def _say(self, number: int, item: int) -> None:
        self._reading[0] = os.getpid(), number, item


class _Slots:
    """Room for the pictures of some batches, in memory shared with worker processes."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.pictures = _shared((count, *shape), np.uint8)
        self._free = deque(range(count))

    def claim(self, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Each number with a slot that nobody writes or reads, when DataLoader sends it off."""
        for number in numbers:
            yield number, self._free.popleft()

    def copy(self, slot: int, rows: int, pinned: bool = False) -> Tensor:
        """The first rows of a slot, page-locked for a GPU; the slot is free again."""
        pictures = torch.from_numpy(self.pictures[slot][:rows])
        copied = _room(pictures.shape, pinned).copy_(pictures)
        self._free.append(slot)
        return copied

    def lend(self, slot: int, rows: int) -> Tensor:
        """The first rows of a slot as they lie there; it is free again when they are used no
        more. A copy where LENT are out already, and no slot is left to claim.
        """
        if not self._free:
            return self.copy(slot, rows)
        pictures = self.pictures[slot][:rows]
        # The tensor and its views hold the array, and may be let go of in any thread.
        weakref.finalize(pictures, self._free.append, slot).atexit = False
        return torch.from_numpy(pictures)


class _IntoSlots(Dataset[tuple[int, int, Companions]]):
    """Batches whose pictures are written into memory that is shared, what comes with them given.

    Tensors handed over by DataLoader would each be new shared memory, whose pages cost more to
    map than to fill.
    """

    def __init__(self, batches: Batches, slots: np.ndarray, reading: np.ndarray) -> None:
        self._batches, self._slots, self._reading = batches, slots, reading

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, Companions]:
        info = get_worker_info()
        assert info is not None

        def say(number: int, item: int) -> None:
            self._reading[info.id] = os.getpid(), number, item

        number, slot = place
        found = self._batches.read(number, self._slots[slot], say)
        say(NOBODY, NOBODY)
        return number, slot, found


@contextlib.contextmanager
def _stops_held_back() -> Generator[None]:
    """`STOPS` wait until the body is done; processes forked in it have them blocked for good."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _heed_the_parent(worker: int) -> None:
    """Has this worker end at its parent's SIGTERM, or when the parent is gone, at no other stop.

    A rank that is told to stop finishes its step and saves, for which it needs its workers; but
    torch's agent signals a rank's whole process group, Slurm all processes of a job's step.
    DataLoader's own watchdog would wait for ever for a parent that is gone to read what it was
    given last.
    """
    rank = multiprocessing.parent_process()
    assert rank is not None

    def wait() -> None:
        while os.getppid() == rank.pid:
            told = signal.sigtimedwait(STOPS, 1.0)
            if told and (told.si_signo, told.si_pid) == (signal.SIGTERM, rank.pid):
                os._exit(0)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _room(shape: Sequence[int], pinned: bool) -> Tensor:
    """Memory for pictures, page-locked for a GPU."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that this process shares with those forked from it.

    Anonymous memory: /dev/shm, where torch has its own, is 64 MB in many a container.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def _to_gpu(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """Copies the next batch on a stream of its own while the one before is worked on."""
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, Any] | None = None

    def arrived() -> Batch:
        assert ahead is not None
        batch, event = ahead
        working = torch.cuda.current_stream(device)
        working.wait_event(event)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(working)  # else its memory is given to the next copy too early
        return batch

    with contextlib.closing(batches):
        while True:
            with torch.cuda.stream(copies):  # on which pictures are decoded, too
                batch = next(batches, None)
                sent = None if batch is None else (batch.to(device), copies.record_event())
            if ahead is not None:
                yield arrived()
            if sent is None:
                return
            ahead = sent
