"""Worker processes that read batches into memory shared with their parent."""

import contextlib
import mmap
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adde.shards.batches import Batches, BatchMetadata

READ_AHEAD = 4
"""Batches that each worker process reads ahead, or as many as a step takes, within
READ_AHEAD_BYTES."""

READ_AHEAD_BYTES = 4 << 30
"""Most bytes of pictures that the workers of a rank read ahead. One batch per worker and LENT
batches always exist, whatever their size."""

LENT = 2
"""Batches whose pictures stay in the workers' memory while they are used; others are copied. One
is trained on while the next is fetched."""

NOBODY = -1

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Signals to stop, which launchers and schedulers send to all processes of a rank."""

Arrival = tuple[int, int, BatchMetadata]
"""Number of a batch, slot of its pictures, and its metadata."""


def start_workers(
    batches: Batches,
    numbers: range,
    workers: int,
    together: int,
    timeout: float,
    reading: np.ndarray,
) -> "tuple[SharedSlots, Iterator[Arrival]]":
    """Fork workers that read the batches `numbers` in order.

    Args:
        batches: Reads the batches.
        numbers: Numbers of the batches.
        workers: Number of processes, at least 1.
        together: Batches that the caller takes at a time.
        timeout: Seconds without a batch after which DataLoader raises; 0 disables it.
        reading: (workers, 3) int64, shared: each worker's process, and the batch and row it reads.
    """
    shape = batches.shape(numbers[0])
    ahead = batches_ahead(workers, together, int(np.prod(shape)))
    slots = SharedSlots(workers * ahead + 1 + LENT, shape)
    loader: DataLoader[Arrival] = DataLoader(
        _ReadIntoSlots(batches, slots.pictures, reading),
        batch_size=None,
        sampler=slots.claim(numbers),
        num_workers=workers,
        prefetch_factor=ahead,
        timeout=timeout,
        multiprocessing_context="fork",  # shares the slots
        worker_init_fn=_exit_with_parent,
    )
    with _stop_signals_blocked():
        return slots, iter(loader)  # forks


def end_workers(reading: np.ndarray) -> None:
    """Terminate the worker processes at once, whatever they are doing.

    DataLoader would wait five seconds for each. On SIGTERM from their parent workers exit with
    status 0 (see `_exit_with_parent`), so no handler takes them for killed.
    """
    for child in multiprocessing.active_children():
        if child.pid in reading[:, 0]:
            child.terminate()


def batches_ahead(workers: int, together: int, size: int) -> int:
    """Return the batches that each worker reads ahead: enough for a step, within the byte limit.

    Args:
        workers: Number of processes.
        together: Batches that are taken at a time.
        size: Bytes of a batch's pictures.
    """
    wanted = max(READ_AHEAD, -(-together // workers))
    return max(1, min(wanted, (READ_AHEAD_BYTES // size - 1 - LENT) // workers))


class SharedSlots:
    """A ring of memory for the pictures of some batches, shared with worker processes."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.pictures = shared_zeros((count, *shape), np.uint8)
        self._free = deque(range(count))

    def claim(self, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield each number with a free slot, when DataLoader dispatches it."""
        for number in numbers:
            yield number, self._free.popleft()

    def give_back(self, slot: int) -> None:
        """Mark a slot as free."""
        self._free.append(slot)

    def lend(self, slot: int, rows: int) -> Tensor:
        """Return the first rows of a slot without a copy; it becomes free when they are deleted.

        If no other slot is free, LENT are lent already, and the rows are copied.
        """
        pictures = self.pictures[slot][:rows]
        if not self._free:
            copied = torch.from_numpy(pictures).clone()
            self.give_back(slot)
            return copied
        # The tensor and its views keep the array alive; any thread may delete them.
        weakref.finalize(pictures, self._free.append, slot).atexit = False
        return torch.from_numpy(pictures)


class _ReadIntoSlots(Dataset[Arrival]):
    """Writes pictures into shared slots and returns only the metadata.

    Tensors passed by DataLoader would each need new shared memory, and mapping its pages costs
    more than filling them.
    """

    def __init__(self, batches: Batches, slots: np.ndarray, reading: np.ndarray) -> None:
        self._batches, self._slots, self._reading = batches, slots, reading

    def __getitem__(self, place: tuple[int, int]) -> Arrival:
        info = get_worker_info()
        assert info is not None

        def report(number: int, item: int) -> None:
            self._reading[info.id] = os.getpid(), number, item

        number, slot = place
        metadata = self._batches.read(number, self._slots[slot], report)
        report(NOBODY, NOBODY)
        return number, slot, metadata


@contextlib.contextmanager
def _stop_signals_blocked() -> Generator[None]:
    """Delay STOP_SIGNALS until the body is done; processes forked in it block them for good."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exit_with_parent(worker: int) -> None:
    """Exit on the parent's SIGTERM or death; ignore all other stop signals.

    A rank that is told to stop finishes its step and saves, and needs its workers for that. But
    torch's agent signals a rank's whole process group, and Slurm all processes of a job step. When
    the parent dies, DataLoader's own watchdog would wait for ever for it to read the last result.
    """
    rank = multiprocessing.parent_process()
    assert rank is not None

    def wait() -> None:
        while os.getppid() == rank.pid:
            caught = signal.sigtimedwait(STOP_SIGNALS, 1.0)
            if caught and (caught.si_signo, caught.si_pid) == (signal.SIGTERM, rank.pid):
                os._exit(0)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def shared_zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return zeros that this process shares with processes it forks.

    The memory is anonymous, because /dev/shm, which torch uses, often has just 64 MB in containers.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)
