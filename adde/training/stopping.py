"""Stopping between two steps."""

import signal
import sys
from types import FrameType


class StopSignals:
    """Remembers SIGINT and SIGTERM, so that a step is finished first; a second one is obeyed."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.close()
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    def close(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
