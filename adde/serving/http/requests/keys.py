"""API keys, and how often each may ask."""

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
"""What fits in a header and is no sentence: a remark that happens to have a colon is no key."""

log = logging.getLogger(__name__)


class Keys:
    """Named keys, from a file that is read again when it changes, or from a text.

    A line is `name: key`; empty lines and those that start with # are left out. Names are letters,
    digits and `-_.`, keys visible ASCII characters. To change a key give a second one another name,
    move the clients, and take the first away.

    Args:
        path: the file, or None.
        text: the same lines from elsewhere, such as the environment; used where there is no file.

    Raises:
        UserError: a line is none, a name appears twice, or a key is shorter than SHORTEST.
    """

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        self._path = path
        self._seen = self._stamp()
        self._digests = parse(text, VARIABLE) if path is None else _read(path)

    def name_of(self, presented: str) -> str | None:
        """The name of a key; None where it is not one of them.

        Every key is compared, each in constant time: how long it takes says nothing of the keys.
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
            log.info("keys read again", extra={"keys": sorted(self._digests)})
        except UserError as error:
            log.error("the keys stay as they were: %s", error)


def parse(text: str, source: str) -> dict[str, bytes]:
    """Names and digests of keys. Raises UserError as `Keys`, which never shows a key."""
    digests: dict[str, bytes] = {}
    # An environment that was filled from a file has its byte order mark.
    # Not `splitlines`, which ends lines, comments too, at characters that show as none.
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
    """A token bucket per name: `burst` requests at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._tokens: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """Takes a token: 0, or the seconds until there is one."""
        if not self._rate:
            return 0.0
        now = self._now()
        tokens, at = self._tokens.get(name, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._rate)
        granted = tokens >= 1
        self._tokens[name] = (tokens - granted, now)
        return 0.0 if granted else (1 - tokens) / self._rate
