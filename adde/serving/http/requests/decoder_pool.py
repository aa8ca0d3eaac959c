"""A bounded pool of processes that decode pictures and can be killed.

A thread cannot be killed, and a JPEG with a thousand scans takes minutes to decode within any limit
on bytes and pixels. A process is killed when it takes too long, and a crashing decoder takes only
itself down. It returns bytes, never a pickle. A compromised decoder still has the rights of the
server's user, such as reading keys; restrict the container for stronger isolation.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from adde.preprocess import Picture, Preprocess
from adde.serving.http.requests.picture_decoder import (
    BROKEN,
    GOOD,
    HEAD,
    NoDecoderError,
    PictureError,
    run,
)

WALL_CLOCK_FACTOR = 10
"""Wall-clock limit as a multiple of the CPU limit: on a busy machine a decoder waits for the CPU.
"""

TICKS = os.sysconf("SC_CLK_TCK")

log = logging.getLogger(__name__)


class Decoders:
    """A pool of decoding processes; `load` may be called from several threads.

    Args:
        count: number of processes.
        seconds: CPU seconds per picture.
        max_pixels: maximum pixels of a picture according to its header.

    Raises:
        NoDecoderError: a process cannot be started.
    """

    def __init__(self, count: int, seconds: float, max_pixels: int) -> None:
        self._seconds, self._max_pixels = seconds, max_pixels
        self.threads = ThreadPoolExecutor(count, "decode")
        """Threads for calling `load`, as many as processes."""
        self._all = [_Decoder() for _ in range(count)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            decoder.wait_until_up()
            self._idle.put(decoder)

    def load(self, content: bytes, preprocess: Preprocess) -> Picture:
        """Decode a picture file's content to (size, size, 3) uint8.

        Raises:
            PictureError: the picture is rejected.
            NoDecoderError: no decoder was available; the picture is not at fault.
        """
        decoder, size = self._idle.get(), preprocess.size
        try:
            head = HEAD.pack(size, self._max_pixels, preprocess.fit.encode())
            reply = decoder.ask(head + content, self._seconds)
        finally:
            self._idle.put(decoder)
        if reply[0] != GOOD:
            raise PictureError(reply[0], reply[1:].decode())
        return np.frombuffer(reply, np.uint8, offset=1).reshape(size, size, 3)

    def close(self) -> None:
        """Finish running pictures and end the processes."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.end()


class _Decoder:
    """A decoding process, restarted after it had to be killed."""

    def __init__(self) -> None:
        self._running: tuple[BaseProcess, Any] | None = None
        self._start()

    def _start(self) -> None:
        # Spawn, because a fork would inherit locks of the server's threads and its sockets.
        context = multiprocessing.get_context("spawn")
        try:
            connection, other = context.Pipe()
            with other:
                process = context.Process(target=run, args=(other,), daemon=True)
                try:
                    process.start()
                except BaseException:
                    connection.close()
                    raise
        except OSError as error:  # too many processes or open files
            raise _unavailable(f"a decoding process cannot be started: {error}") from None
        self._running = process, connection

    def wait_until_up(self) -> None:
        """Wait for the process to start, so that this does not count as decoding time. Raises
        NoDecoderError.
        """
        assert self._running is not None
        try:
            self._running[1].recv_bytes()
        except (EOFError, OSError):
            self.end()
            raise _unavailable(
                "a decoding process ended at its start; see what it printed"
            ) from None

    def ask(self, message: bytes, seconds: float) -> bytes:
        """Return the process's reply, or a rejection in its place. Raises NoDecoderError."""
        if self._running is None:
            self._start_again()
        assert self._running is not None
        process, connection = self._running
        try:
            connection.send_bytes(message)
            if _replies_in_time(process, connection, seconds):
                return connection.recv_bytes()
            reason = f"image: expected one that decodes in {seconds:g} s of CPU, found a slower one"
        except (EOFError, OSError):
            reason = "image: expected one that decodes, found one on which its decoder fails"
        except NoDecoderError:
            self.end()
            raise
        self.end()
        with contextlib.suppress(NoDecoderError):  # the next picture tries again
            self._start_again()
        return bytes([BROKEN]) + reason.encode()

    def _start_again(self) -> None:
        self._start()
        self.wait_until_up()

    def end(self) -> None:
        """Kill the process."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        process.kill()
        process.join()
        connection.close()


def _unavailable(reason: str) -> NoDecoderError:
    log.error(reason)
    return NoDecoderError(reason)


def _replies_in_time(process: BaseProcess, connection: Any, seconds: float) -> bool:
    """Whether it replies within its CPU limit. Raises NoDecoderError if it got too little CPU."""
    end, before = time.monotonic() + WALL_CLOCK_FACTOR * seconds, _cpu_seconds(process)
    left = seconds
    while left > 0 and time.monotonic() < end:
        # One tick more, because CPU time is counted in whole ticks.
        if connection.poll(left + 1 / TICKS):
            return True
        left = seconds - (_cpu_seconds(process) - before)
    if left > 0:
        raise _unavailable(
            f"expected {seconds:g} s of CPU in {WALL_CLOCK_FACTOR * seconds:g} s for a decoder"
        )
    return False


def _cpu_seconds(process: BaseProcess) -> float:
    """CPU seconds used by a process so far."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS
