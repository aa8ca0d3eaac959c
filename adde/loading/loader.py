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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adde.errors import UserError
from adde.shards.batches import Batches, Companions

READ_AHEAD = 4
"""Batches that each worker process holds ready, or as many as a step takes; fewer where their
pictures take more than ROOM."""

ROOM = 4 << 30
"""Bytes of pictures that the workers of a rank may hold. A batch more for each worker, and those
that are LENT, there are in any case."""

QUEUE = 2
"""Batches that a thread holds ready."""

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


def join(batches: Iterator[Batch], count: int) -> Batch:
    """The next `count` batches as one, all of one length; each is let go of once it is copied."""
    batch: Batch | None = next(batches)
    if count == 1:
        return batch
    size = len(batch.labels)
    images, labels = (
        tensor.new_empty(count * size, *tensor.shape[1:]) for tensor in (batch.images, batch.labels)
    )
    whole = Batch(images, labels, [])
    for number in range(count):
        batch = batch or next(batches)
        rows = slice(number * size, (number + 1) * size)
        images[rows], labels[rows] = batch.images, batch.labels
        whole.item_ids += batch.item_ids
        whole.faults += batch.faults
        whole.stood_in += [number * size + row for row in batch.stood_in]
        batch = None
    return whole


class BatchStream(Iterator[Batch]):
    """Batches of the given numbers in order, read ahead; close it when it is left early.

    Args:
        batches: where they come from.
        numbers: which, one after another.
        workers: processes that read; 0 reads in a thread of this one.
        device: where they are brought; to a GPU while the batch before is worked on.
        timeout: seconds without a batch after which this gives up; 0 waits for ever.
        rank: named in errors.
        together: batches that are taken at a time.

    Raises:
        UserError: no batch came in time, a worker died, or as the batch says; names the rank,
            and the shard and position that were being read. Or pictures are to be decoded on the
            device, and torchcodec is not there.
    """

    def __init__(
        self,
        batches: Batches,
        numbers: range,
        workers: int,
        device: torch.device | None = None,
        timeout: float = 0.0,
        rank: int = 0,
        together: int = 1,
    ) -> None:
        self._batches, self._timeout, self._rank = batches, timeout, rank
        self._device = device or torch.device("cpu")
        self._decode_into = _device_decoder() if batches.leaves else None
        # Of each worker: its process, and the batch and row that it reads.
        self._reading = _shared((max(1, workers), 3), np.int64)
        self._reading[:] = NOBODY
        if not numbers:
            self._source: Generator[Batch] = (batch for batch in ())
        elif workers and self._device.type == "cpu" and not batches.leaves:
            self._source = self._from_workers(numbers, workers, together)
        else:
            self._source = self._from_a_thread(numbers, workers, together)

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

    def _from_workers(self, numbers: range, workers: int, together: int) -> Generator[Batch]:
        yield from self._arriving(*self._start_workers(numbers, workers, together))

    def _start_workers(
        self, numbers: range, workers: int, together: int
    ) -> "tuple[_Slots, Iterator[tuple[int, int, Companions]]]":
        shape = self._batches.shape(numbers[0])
        ahead = ahead_of_each(workers, together, int(np.prod(shape)))
        slots = _Slots(workers * ahead + 1 + LENT, shape)
        loader: DataLoader[tuple[int, int, Companions]] = DataLoader(
            _IntoSlots(self._batches, slots.pictures, self._reading),
            batch_size=None,
            sampler=slots.claim(numbers),
            num_workers=workers,
            prefetch_factor=ahead,
            timeout=self._timeout,
            multiprocessing_context="fork",  # shares the slots
            worker_init_fn=_heed_the_parent,
        )
        with _stops_held_back():
            return slots, iter(loader)  # forks

    def _arriving(
        self, slots: "_Slots", places: Iterator[tuple[int, int, Companions]]
    ) -> Generator[Batch]:
        """Batches as the workers finish them: for a CPU where they lie, for a device there."""
        try:
            for number, slot, found in places:
                count = len(found.item_ids)
                if self._device.type == "cpu" and not found.encoded:
                    yield Batch.of(slots.lend(slot, count), found)
                else:
                    yield self._bring(number, torch.from_numpy(slots.pictures[slot][:count]), found)
                    slots.give_back(slot)
        finally:
            self._end_workers()

    def _read_here(self, numbers: range) -> Generator[Batch]:
        """Batches that this process reads."""
        for number in numbers:
            images = _room(self._batches.shape(number), self._device.type == "cuda")
            found = self._batches.read(number, images.numpy(), self._say)
            self._say(NOBODY, NOBODY)
            yield self._bring(number, images, found)

    def _bring(self, number: int, pictures: Tensor, found: Companions) -> Batch:
        """The batch on the device, where what was left encoded is decoded."""
        device = self._device
        if not found.encoded:
            return Batch.of(_pinned(pictures, device), found).to(device)
        assert self._decode_into is not None
        images = torch.empty(pictures.shape, dtype=torch.uint8, device=device)
        if rows := [row for row in range(len(pictures)) if row not in found.encoded]:
            images[rows] = _pinned(pictures[rows], device).to(device, non_blocking=True)
        names = {row: self._batches.where(number, row) for row in found.encoded}
        self._decode_into(images, found.encoded, names, self._batches.fit)
        return Batch.of(images, found).to(device)

    def _from_a_thread(self, numbers: range, workers: int, together: int) -> Generator[Batch]:
        """Batches that a thread reads, decodes and copies ahead, on a GPU in a stream of its own.

        A read or a decoder that takes long holds up nobody but the thread.
        """
        if workers:
            source = self._arriving(*self._start_workers(numbers, workers, together))
        else:
            source = self._read_here(numbers)
        ready: queue.Queue[tuple[Batch, Any] | BaseException | None] = queue.Queue(maxsize=QUEUE)
        closed = threading.Event()
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

        def put(item: tuple[Batch, Any] | BaseException | None) -> None:
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        def read() -> None:
            try:
                with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                    for batch in source:
                        put((batch, stream and stream.record_event()))
                        del batch  # while the next one is read
                        if closed.is_set():
                            return
                put(None)
            except BaseException as error:
                put(error)
            finally:
                source.close()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while (item := ready.get(timeout=self._timeout or None)) is not None:
                if isinstance(item, BaseException):
                    raise item
                if stream:
                    _await(*item, self._device)
                yield item[0]
                del item
        finally:
            closed.set()
            self._end_workers()  # of which the thread may wait for one
            thread.join(LAST_READ)

    def _say(self, number: int, item: int) -> None:
        self._reading[0] = os.getpid(), number, item


def ahead_of_each(workers: int, together: int, size: int) -> int:
    """Batches that each worker may hold ready: enough for `together` of them, within ROOM.

    Args:
        workers: processes.
        together: batches that are taken at a time.
        size: bytes of a batch's pictures.
    """
    wanted = max(READ_AHEAD, -(-together // workers))
    return max(1, min(wanted, (ROOM // size - 1 - LENT) // workers))


def _device_decoder() -> Callable[..., None]:
    """What decodes on the device. Raises UserError where torchcodec cannot be imported."""
    try:
        from adde.loading.gpu_decode import decode_into
    except (ImportError, OSError, RuntimeError) as error:  # one of its libraries is not there
        raise UserError(
            "data.decode = 'device': expected torchcodec, which does not import here "
            f"({str(error).strip().splitlines()[0]}); install it, or set data.decode = 'cpu'"
        ) from None
    return decode_into


class _Slots:
    """Room for the pictures of some batches, in memory shared with worker processes."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.pictures = _shared((count, *shape), np.uint8)
        self._free = deque(range(count))

    def claim(self, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Each number with a slot that nobody writes or reads, when DataLoader sends it off."""
        for number in numbers:
            yield number, self._free.popleft()

    def give_back(self, slot: int) -> None:
        """The slot is free again."""
        self._free.append(slot)

    def lend(self, slot: int, rows: int) -> Tensor:
        """The first rows of a slot as they lie there; it is free again when they are used no
        more. A copy where LENT are out already, and no slot is left to claim.
        """
        pictures = self.pictures[slot][:rows]
        if not self._free:
            copied = torch.from_numpy(pictures).clone()
            self.give_back(slot)
            return copied
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


def _pinned(pictures: Tensor, device: torch.device) -> Tensor:
    """Pictures from where they can be copied to a GPU without waiting; no copy for a CPU."""
    if device.type != "cuda" or pictures.is_pinned():
        return pictures
    return _room(pictures.shape, pinned=True).copy_(pictures)


def _await(batch: Batch, event: Any, device: torch.device) -> None:
    """Has this thread's stream wait for a batch that another one brings."""
    working = torch.cuda.current_stream(device)
    working.wait_event(event)
    for tensor in (batch.images, batch.labels):
        tensor.record_stream(working)  # else its memory is given to the next copy too early
