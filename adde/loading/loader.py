"""Streams of batches: read ahead in worker processes or a thread, and copied to the device."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adde.errors import UserError
from adde.loading.batch import Batch
from adde.loading.workers import (
    NOBODY,
    Arrival,
    SharedSlots,
    end_workers,
    shared_zeros,
    start_workers,
)
from adde.shards.batches import Batches, BatchMetadata

QUEUE = 2
"""Batches that a thread reads ahead."""

JOIN_TIMEOUT = 5.0
"""Seconds to wait for the reading thread when its stream closes. A thread inside torch's code when
the interpreter exits would abort the process."""


class BatchStream(Iterator[Batch]):
    """Batches of the given numbers in order, read ahead. Close it if you leave it early.

    Args:
        batches: Reads the batches.
        numbers: Numbers of the batches.
        workers: Processes that read; 0 reads in a thread of this process.
        device: Where batches are copied to; on a GPU the copy overlaps with computing.
        timeout: Seconds without a batch after which the stream raises; 0 waits for ever.
        rank: Named in errors.
        together: Batches that the caller takes at a time.

    Raises:
        UserError: No batch came in time, a worker died, or see `Batches.read`; names the rank, and
            the shard and position that were being read. Or pictures are to be decoded on the
            device, and torchcodec is missing.
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
        # Per worker: its process, and the batch and row that it reads.
        self._reading = shared_zeros((max(1, workers), 3), np.int64)
        self._reading[:] = NOBODY
        self._source: Generator[Batch]
        if not numbers:
            self._source = (batch for batch in ())
        elif workers and self._device.type == "cpu" and not batches.leaves:
            self._source = self._read_in_workers(numbers, workers, together)
        else:
            self._source = self._read_in_a_thread(numbers, workers, together)

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
        """Stop reading ahead."""
        self._source.close()

    def explain(self, error: Exception) -> Exception:
        """Return a UserError that says what was being read if workers died or were too slow.

        Any other error is returned unchanged. torch reports a killed worker by raising in the main
        thread, wherever that is.
        """
        message = str(error)
        if isinstance(error, queue.Empty) or "DataLoader timed out after" in message:
            message = f"no batch came for {self._timeout:g} seconds (data.timeout)"
        elif "DataLoader worker" not in message:
            return error
        reading = "; ".join(
            f"worker {worker} reads {self._batches.where(number, item)}"
            for worker, (_, number, item) in enumerate(self._reading.tolist())
            if number != NOBODY
        )
        reading = reading or "no worker reports what it reads"
        return UserError(f"rank {self._rank}: {message.splitlines()[0]}; {reading}")

    def _read_in_workers(self, numbers: range, workers: int, together: int) -> Generator[Batch]:
        yield from self._arriving(*self._start(numbers, workers, together))

    def _start(
        self, numbers: range, workers: int, together: int
    ) -> tuple[SharedSlots, Iterator[Arrival]]:
        return start_workers(
            self._batches, numbers, workers, together, self._timeout, self._reading
        )

    def _arriving(self, slots: SharedSlots, arrivals: Iterator[Arrival]) -> Generator[Batch]:
        """Yield batches as workers finish them: on a CPU without a copy, else on the device."""
        try:
            for number, slot, metadata in arrivals:
                count = len(metadata.item_ids)
                if self._device.type == "cpu" and not metadata.encoded:
                    yield Batch.of(slots.lend(slot, count), metadata)
                else:
                    pictures = torch.from_numpy(slots.pictures[slot][:count])
                    yield self._bring(number, pictures, metadata)
                    slots.give_back(slot)
        finally:
            end_workers(self._reading)

    def _read_here(self, numbers: range) -> Generator[Batch]:
        """Yield batches that this process reads."""

        def report(number: int, item: int) -> None:
            self._reading[0] = os.getpid(), number, item

        for number in numbers:
            images = _empty(self._batches.shape(number), self._device.type == "cuda")
            metadata = self._batches.read(number, images.numpy(), report)
            report(NOBODY, NOBODY)
            yield self._bring(number, images, metadata)

    def _bring(self, number: int, pictures: Tensor, metadata: BatchMetadata) -> Batch:
        """Copy a batch to the device, and decode there what is still encoded."""
        device = self._device
        if not metadata.encoded:
            return Batch.of(_pinned(pictures, device), metadata).to(device)
        assert self._decode_into is not None
        images = torch.empty(pictures.shape, dtype=torch.uint8, device=device)
        if rows := [row for row in range(len(pictures)) if row not in metadata.encoded]:
            images[rows] = _pinned(pictures[rows], device).to(device, non_blocking=True)
        names = {row: self._batches.where(number, row) for row in metadata.encoded}
        self._decode_into(images, metadata.encoded, names, self._batches.fit)
        return Batch.of(images, metadata).to(device)

    def _read_in_a_thread(self, numbers: range, workers: int, together: int) -> Generator[Batch]:
        """Yield batches that a thread reads, decodes and copies ahead, on a GPU in its own stream.

        A slow read or decoder delays only the thread.
        """
        if workers:
            source = self._arriving(*self._start(numbers, workers, together))  # forks here
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
                        del batch  # free it while the next one is read
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
            end_workers(self._reading)  # the thread may be waiting for one
            thread.join(JOIN_TIMEOUT)


def _device_decoder() -> Callable[..., None]:
    """Return the decoder on the device. Raises UserError if torchcodec cannot be imported."""
    try:
        from adde.loading.gpu_decode import decode_into
    except (ImportError, OSError, RuntimeError) as error:  # one of its libraries is missing
        raise UserError(
            "data.decode = 'device': expected torchcodec, which does not import here "
            f"({str(error).strip().splitlines()[0]}); install it, or set data.decode = 'cpu'"
        ) from None
    return decode_into


def _empty(shape: Sequence[int], pinned: bool) -> Tensor:
    """Allocate memory for pictures, page-locked for a GPU."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def _pinned(pictures: Tensor, device: torch.device) -> Tensor:
    """Return pictures in page-locked memory if the device is a GPU; no copy for a CPU."""
    if device.type != "cuda" or pictures.is_pinned():
        return pictures
    return _empty(pictures.shape, pinned=True).copy_(pictures)


def _await(batch: Batch, event: Any, device: torch.device) -> None:
    """Make this thread's stream wait for a batch that another stream copies."""
    working = torch.cuda.current_stream(device)
    working.wait_event(event)
    for tensor in (batch.images, batch.labels):
        tensor.record_stream(working)  # otherwise the next copy would reuse its memory too early
