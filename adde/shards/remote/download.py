"""One file from http(s), s3 or gs onto the local disk, whatever the line does."""

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
"""Answers of the 4xx family after which another try may help; all others are final."""


@dataclass(frozen=True)
class Patience:
    """How long a download may take, and how often it is tried."""

    deadline: float = 1800.0
    """Seconds for one file, all tries and their pauses together."""

    stall: float = 30.0
    """Seconds without an answer or a byte after which a connection is given up."""

    tries: int = 8
    """Tries, one after another, that bring nothing new."""

    backoff: float = 0.5
    """Longest first pause between tries, in seconds; doubles up to 30. Drawn at random below it."""


class Download:
    """Brings the rest of `address` into `file`, which holds the beginning, or nothing yet.

    Args:
        address: of the file, credentials included.
        what: how a message names the file.
        file: unbuffered, open for reading and writing.
        size: bytes the file must have; None where that is not known.
        patience: when to give up.
    """

    def __init__(
        self, address: str, what: str, file: FileIO, size: int | None, patience: Patience
    ) -> None:
        self._address, self._what, self._file, self._size = address, what, file, size
        self._patience, self._started = patience, time.monotonic()
        self._tries = self._in_vain = self._refused_ranges = 0
        self._at = self._best = file.seek(0, 2)

    def run(self) -> None:
        """Downloads; tries again where that may help, from the byte that was reached.

        On return the file has `size` bytes; more, if there is more at the address.

        Raises:
            UserError: no such file, access refused, another length, or the patience is used up;
                names file and address, what was expected and found, the tries, and what to do.
            OSError: the local disk refuses the bytes.
        """
        while not self._complete():
            self._tries += 1
            found = self._attempt()
            if found is None:
                return
            self._in_vain = 0 if self._at > self._best else self._in_vain + 1
            self._best = max(self._best, self._at)
            if self._in_vain >= self._patience.tries or self._left() <= 0:
                raise self.error(self._expected, found, "see whether the server is well and retry")
            pause = min(30.0, self._patience.backoff * 2.0 ** max(0, self._in_vain - 1))
            time.sleep(min(pause * random.random(), max(0.0, self._left())))

    def clear(self) -> None:
        """Throws away what came, for another `run`."""
        self._seek(0)
        self._best = self._in_vain = 0

    def error(self, expected: str, found: str, advice: str) -> UserError:
        """What to raise when `found` is there in place of `expected`."""
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
        return self._started + self._patience.deadline - time.monotonic()

    def _seek(self, position: int) -> None:
        self._file.truncate(position)
        self._at = self._file.seek(position)

    def _attempt(self) -> str | None:
        """One request (for s3 and gs, one after another); what went wrong, None if nothing."""
        if self._size is None:
            self._seek(0)  # no sha256 would tell the halves of two versions from one file
        stall, left = self._patience.stall, max(0.1, self._left())
        with closing(read_from(self._address, self._at, self._size, stall, left)) as pieces:
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
                    return f"{self._at} bytes in {self._patience.deadline:g} s"
        return None

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._at += len(piece)

    def _failed(self, error: Exception) -> str:
        """What to say of an error after which another try may help; raises what is final."""
        status = status_of(error)
        if status == 416:
            # Nothing beyond this byte: another file, or what came before was. Once from the start.
            found, self._refused_ranges = f"{self._at} bytes", self._refused_ranges + 1
            if self._refused_ranges > 1:
                raise self.error(self._expected, found, "upload shards and index again")
            self._seek(0)
            return found
        if isinstance(error, FileNotFoundError) or status == 404:
            raise self.error("the file", "no such file (404)", "upload it, or mend the address")
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise self.error("the file", self._text(error), "give this machine access")
        if status and 400 <= status < 500 and status not in TRY_LATER:
            raise self.error("the file", self._text(error), "mend the address or the access to it")
        if isinstance(error, ValueError):  # an address or a certificate that is no good
            raise self.error("the file", self._text(error), "mend the address or the server")
        return self._text(error)

    def _text(self, error: Exception) -> str:
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            if self._left() > 0:
                return f"nothing for {self._patience.stall:g} s after byte {self._at}"
            return f"{self._at} bytes in {self._patience.deadline:g} s"
        if status := status_of(error):
            known = status in HTTPStatus.__members__.values()
            return f"HTTP {status}" + (f" {HTTPStatus(status).phrase}" if known else "")
        parts = urlsplit(self._address)
        text = str(error)
        for secret in (parts.netloc.rpartition("@")[0], parts.query):
            text = text.replace(secret, "...") if secret else text
        return f"{type(error).__name__} {text} after byte {self._at}"


def _next(pieces: Pieces) -> tuple[int, bytes] | Exception | None:
    """The next piece, what the file system raised in its place, or None at the end.

    Any exception may come, that is its library's own affair. It is handed over and not handled
    on the spot, so that the UserError does not carry it, and the address in it, as its context.
    """
    try:
        return next(pieces, None)
    except UserError:
        raise
    except Exception as error:
        return error
