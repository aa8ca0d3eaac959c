"""Stopping between two steps."""

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what cluster schedulers send ahead of a preemption; launchers do not act on it."""


class StopSignals:
    """Remembers the first of `SIGNALS`, so that a step is finished first; a second is obeyed."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {s: signal.signal(s, self._ask) for s in SIGNALS}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.close()
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    def close(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
