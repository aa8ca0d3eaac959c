"""Stop a run between two steps when a signal asks for it."""

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Cluster schedulers send SIGUSR1 ahead of a preemption; launchers do not act on it."""


class StopSignals:
    """Remember the first of `SIGNALS` so that the step is finished; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {s: signal.signal(s, self._ask) for s in SIGNALS}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.close()
        print("stopping after this step; signal again to stop at once", file=sys.stderr)

    def close(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exit_status(self, environment: Mapping[str, str] = os.environ) -> int:
        """Return the exit status after a stop: 128 plus the signal, here SIGTERM if another rank's.

        It is 0 under a launcher that restarts ranks (`--max_restarts`), which would take any other
        status for a failure and restart what was asked to stop.
        """
        restarting = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
        return 0 if restarting else 128 + (self.signal or signal.SIGTERM)
