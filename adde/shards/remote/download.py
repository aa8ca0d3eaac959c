"""Download a file from http(s), s3 or gs to the local disk, with retries and resumption."""

import asyncio
import random
import time
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from io import FileIO
from urllib.parse import urlsplit

from adde.errors import UserError
from adde.shards.remote.transport import Pieces, read_from, shown, status_of

TRY_LATER = (408, 425, 429)
"""HTTP status codes of the 4xx family that are retried; all others are final."""


@dataclass(frozen=True)
class RetryPolicy:
    """Limits on the duration and the attempts of a download."""

    deadline: float = 1800.0
    """Seconds for one file, including all attempts and pauses."""

    read_timeout: float = 30.0
    """Seconds without an answer or a byte after which a connection is closed."""

    tries: int = 8
    """Consecutive attempts without progress before the download fails."""

    backoff: float = 0.5
    """Upper bound of the first pause in seconds; it doubles up to 30. Pauses are random below
    it."""


class Download:
    """Downloads `address` to `file`, which may already hold the beginning.

    Args:
        address: Address of the file, with credentials.
        what: Name of the file in messages.
        file: Unbuffered, open for reading and writing.
        size: Expected size in bytes, or None if unknown.
        policy: Limits of time and attempts.
    """

    def __init__(
        self, address: str, what: str, file: FileIO, size: int | None, policy: RetryPolicy
    ) -> None:
        self._address, self._what, self._file, self._size = address, what, file, size
        self._policy, self._started = policy, time.monotonic()
        self._tries = self._in_vain = self._refused_ranges = 0
        self._at = self._best = file.seek(0, 2)

    def run(self) -> None:
        """Download the file; after a transient error, continue from the last byte received.

        On return the file has `size` bytes, or more if there is more at the address.

        Raises:
            UserError: The file does not exist, access is denied, its length differs, or a limit of
                the policy is reached; names file, address, attempts and what to do.
            OSError: The local disk rejects the bytes.
        """
        while not self._complete():
            self._tries += 1
            found = self._attempt()
            if found is None:
                return
            self._in_vain = 0 if self._at > self._best else self._in_vain + 1
            self._best = max(self._best, self._at)
            if self._in_vain >= self._policy.tries or self._left() <= 0:
                raise self.error(self._expected, found, "check the server and retry")
            pause = min(30.0, self._policy.backoff * 2.0 ** max(0, self._in_vain - 1))
            time.sleep(min(pause * random.random(), max(0.0, self._left())))

    def clear(self) -> None:
        """Discard the file's content, for another `run`."""
        self._seek(0)
        self._best = self._in_vain = 0

    def error(self, expected: str, found: str, advice: str) -> UserError:
        """Return the error for finding `found` instead of `expected`."""
        seconds = time.monotonic() - self._started
        return UserError(
            f"{self._what} at {shown(self._address)}: expected {expected}, found {found} "
            f"(tries: {self._tries}, in {seconds:.1f} s); {advice}"
        )

    @property
    def _expected(self) -> str:
        return "the file" if self._size is None else f"{self._size} bytes"

    def _complete(self) -> bool:
        return self._size is not None and self._at >= self._size

    def _left(self) -> float:
        return self._started + self._policy.deadline - time.monotonic()

    def _seek(self, position: int) -> None:
        self._file.truncate(position)
        self._at = self._file.seek(position)

    def _attempt(self) -> str | None:
        """Send one request (for s3 and gs, one per block); return the fault, or None."""
        if self._size is None:
            self._seek(0)  # without a hash, parts of two versions could be mixed unnoticed
        read_timeout, left = self._policy.read_timeout, max(0.1, self._left())
        with closing(read_from(self._address, self._at, self._size, read_timeout, left)) as pieces:
            while not self._complete():
                found = _next(pieces)
                if found is None:
                    ended = f"an answer that ends at byte {self._at}"
                    return None if self._size is None else ended
                if isinstance(found, Exception):
                    return self._failed(found)
                start, piece = found
                if start != self._at:
                    self._seek(start)
                self._append(piece)
                if self._left() <= 0 and not self._complete():
                    return f"{self._at} bytes in {self._policy.deadline:g} s"
        return None

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._at += len(piece)

    def _failed(self, error: Exception) -> str:
        """Describe a transient error; raise a UserError for a final one."""
        status = status_of(error)
        if status == 416:
            # The file ends before this byte, so it has changed. Start again once.
            found, self._refused_ranges = f"{self._at} bytes", self._refused_ranges + 1
            if self._refused_ranges > 1:
                raise self.error(self._expected, found, "upload shards and index again")
            self._seek(0)
            return found
        if isinstance(error, FileNotFoundError) or status == 404:
            raise self.error("the file", "no such file (404)", "upload it, or correct the address")
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise self.error("the file", self._text(error), "give this machine access")
        if status and 400 <= status < 500 and status not in TRY_LATER:
            raise self.error("the file", self._text(error), "correct the address or grant access")
        if isinstance(error, ValueError):  # an invalid address or certificate
            raise self.error("the file", self._text(error), "correct the address or the server")
        return self._text(error)

    def _text(self, error: Exception) -> str:
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            if self._left() > 0:
                return f"nothing for {self._policy.read_timeout:g} s after byte {self._at}"
            return f"{self._at} bytes in {self._policy.deadline:g} s"
        if status := status_of(error):
            known = status in HTTPStatus.__members__.values()
            return f"HTTP {status}" + (f" {HTTPStatus(status).phrase}" if known else "")
        parts = urlsplit(self._address)
        text = str(error)
        for secret in (parts.netloc.rpartition("@")[0], parts.query):
            text = text.replace(secret, "...") if secret else text
        return f"{type(error).__name__} {text} after byte {self._at}"


def _next(pieces: Pieces) -> tuple[int, bytes] | Exception | None:
    """Return the next piece, the exception raised instead, or None at the end.

    The libraries may raise anything. The exception is returned, not handled here, so that the
    UserError does not have it, and the credentials in its address, as its context.
    """
    try:
        return next(pieces, None)
    except UserError:
        raise
    except Exception as error:
        return error
