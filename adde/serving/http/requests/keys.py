"""API keys and their rate limits."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from adde.errors import UserError
from adde.files import read_text

VARIABLE = "ADDE_API_KEYS"
SHORTEST = 16

NAME = re.compile(r"[\w.-]+")
KEY = re.compile(r"[!-~]+")
"""Visible ASCII without spaces, so that a sentence with a colon is not a key."""

log = logging.getLogger(__name__)


class Keys:
    """Named keys, from a file that is reloaded when it changes, or from text.

    A line is `name: key`; empty lines and lines starting with # are ignored. Names are letters,
    digits and `-_.`; keys are visible ASCII. To rotate a key, add a second one under another name,
    move the clients, and remove the first.

    Args:
        path: the file, or None.
        text: the same lines from elsewhere, such as the environment; used without a file.

    Raises:
        UserError: a line is malformed, a name appears twice, or a key is shorter than SHORTEST.
    """

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        self._path = path
        self._seen = self._stamp()
        self._digests = parse(text, VARIABLE) if path is None else _read(path)

    def name_of(self, presented: str) -> str | None:
        """Return the name of a key, or None if it is unknown.

        Every key is compared in constant time, so timing reveals nothing about keys.
        """
        self._refresh()
        digest = _digest(presented)
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def __len__(self) -> int:
        return len(self._digests)

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _refresh(self) -> None:
        stamp = self._stamp()
        if self._path is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._digests = _read(self._path)
            log.info("keys reloaded", extra={"keys": sorted(self._digests)})
        except UserError as error:
            log.error("keys not reloaded, the old ones stay valid: %s", error)


def parse(text: str, source: str) -> dict[str, bytes]:
    """Parse names and digests of keys. Raises UserError as `Keys`; never shows a key."""
    digests: dict[str, bytes] = {}
    # A variable filled from a file may start with a byte order mark. `splitlines` would also split
    # at invisible characters.
    lines = re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source}: line {number}"
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not (name and colon and key):
            raise UserError(f"{where}: expected `name: key`, found a line that is not")
        if not NAME.fullmatch(name) or not KEY.fullmatch(key):
            raise UserError(
                f"{where}: expected `name: key`, a name of letters, digits and -_. and a key of "
                "visible ASCII characters without spaces, found others; a comment begins with #"
            )
        if len(key) < SHORTEST:
            raise UserError(
                f"{where}: expected a key of at least {SHORTEST} characters, found {len(key)}; "
                "openssl rand -hex 24 makes one"
            )
        if name in digests:
            raise UserError(f"{where}: the name {name!r} appears twice; give each key its own")
        digests[name] = _digest(key)
    return digests


def _read(path: Path) -> dict[str, bytes]:
    digests = parse(read_text(path), str(path))
    if not digests:
        raise UserError(f"{path}: expected at least one line `name: key`, found none")
    return digests


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class RateLimiter:
    """A token bucket per name: `burst` requests at once, `rate` per second sustained."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._tokens: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """Take a token; return 0, or the seconds until one is available."""
        if not self._rate:
            return 0.0
        now = self._now()
        tokens, at = self._tokens.get(name, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._rate)
        granted = tokens >= 1
        self._tokens[name] = (tokens - granted, now)
        return 0.0 if granted else (1 - tokens) / self._rate
