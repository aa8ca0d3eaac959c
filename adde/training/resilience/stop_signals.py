"""Stopping between two steps."""

import os
import signal
import sys
from collections.abc import Mapping
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


def exit_status(number: int, environment: Mapping[str, str] = os.environ) -> int:
    """The status to end with after a signal that all ranks have obeyed: 128 and its number.

    0 under a launcher that restarts ranks (`--max_restarts`): it would take anything else for a
    failure, and start again what was asked to stop.
    """
    restarting = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    return 0 if restarting else 128 + number
