"""A bounded pool of processes that decode pictures, each of which can be ended.

A thread cannot be stopped, and a JPEG of a thousand scans keeps one busy for minutes within any
limit on bytes and pixels. A process is ended when it takes too long, and where a decoder crashes
it dies alone. What comes back is bytes, never a pickle: a decoder that was taken over can send
wrong pixels and nothing else.
"""

import multiprocessing
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from adde.errors import UserError
from adde.preprocess import Picture
from adde.serving.http.pictures import BROKEN, GOOD, HEAD, PictureError, run


class Decoders:
    """A pool of so many processes; `load` may be called from several threads.

    Args:
        count: processes.
        seconds: that one picture may take.
        max_pixels: of a picture, from its header.
    """

    def __init__(self, count: int, seconds: float, max_pixels: int) -> None:
        self._seconds, self._max_pixels = seconds, max_pixels
        self.threads = ThreadPoolExecutor(count, "decode")
        """Where `load` is to be called: as many threads as processes."""
        self._all = [_Decoder() for _ in range(count)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            decoder.wait_until_up()
            self._idle.put(decoder)

    def load(self, content: bytes, size: int) -> Picture:
        """A picture file's content -> (size, size, 3) uint8. Raises PictureError."""
        decoder = self._idle.get()
        try:
            reply = decoder.ask(HEAD.pack(size, self._max_pixels) + content, self._seconds)
        finally:
            self._idle.put(decoder)
        if reply[0] != GOOD:
            raise PictureError(reply[0], reply[1:].decode())
        return np.frombuffer(reply, np.uint8, offset=1).reshape(size, size, 3)

    def close(self) -> None:
        """Waits for the pictures at hand, and ends the processes."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.end()


class _Decoder:
    """One process, started again when it had to be ended."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # Spawned: a fork would take the locks of the server's threads along, and its sockets.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=run, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def wait_until_up(self) -> None:
        """So that a picture's time does not pay for the start. Raises UserError."""
        try:
            self._connection.recv_bytes()
        except (EOFError, OSError):
            raise UserError("a decoding process ended at its start; see what it printed") from None

    def ask(self, message: bytes, seconds: float) -> bytes:
        """The process's reply, or a refusal in its place."""
        try:
            self._connection.send_bytes(message)
            if self._connection.poll(seconds):
                return self._connection.recv_bytes()
            reason = f"image: expected one that decodes within {seconds:g} s, found a slower one"
        except (EOFError, OSError):
            reason = "image: expected one that decodes, found one on which its decoder fails"
        self.end()
        self._start()
        self.wait_until_up()
        return bytes([BROKEN]) + reason.encode()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()
