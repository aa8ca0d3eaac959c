"""Alerts: the loss diverges, throughput drops, or all ranks wait for one slow rank."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from adde.training.config import Alarms as Settings

RECENT_STEPS, BASELINE_STEPS = 5, 200
"""The median of the recent steps is compared with that of the steps before them, so that a single
odd step raises no alert."""

MIN_BASELINE_STEPS = 20
"""Steps before there is a baseline to compare with."""

SUSTAINED_SECONDS = 120.0
"""How long throughput must stay low: other programs slow a machine down for shorter."""

STRAGGLER_CHECKS = 3
"""Checks in a row that must find the same rank the slowest."""


class Alert(NamedTuple):
    """A problem, as a title and as a sentence."""

    title: str
    text: str


class _Baseline:
    """The recent values of a figure, and those before them."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._before: deque[float] = deque(maxlen=BASELINE_STEPS)

    def add(self, value: float, extend: bool = True) -> tuple[float, float] | None:
        """Add a value; return the recent and the baseline median once there is a baseline.

        Args:
            value: of this step.
            extend: move the oldest recent value into the baseline; else it is forgotten.
        """
        if len(self._recent) == RECENT_STEPS and extend:
            self._before.append(self._recent[0])
        self._recent.append(value)
        if len(self._before) < MIN_BASELINE_STEPS:
            return None
        return statistics.median(self._recent), statistics.median(self._before)


class Alarms:
    """Check every step; raise each alert once, and again only after a recovery."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._stage = ""
        self._raised: set[str] = set()
        self._slowest: deque[float] = deque(maxlen=STRAGGLER_CHECKS)

    def check(
        self, stage: str, loss: float, images_per_second: float, ranks: dict[str, float]
    ) -> list[Alert]:
        """Return the alerts that this step raises.

        Args:
            stage: of the step; losses and speeds are compared within a stage.
            loss: of the step.
            images_per_second: of the step, over all ranks.
            ranks: `rank_figures`, on steps that have them.
        """
        if stage != self._stage:
            self._stage, self._loss, self._speed = stage, _Baseline(), _Baseline()
            self._low_since: float | None = None
        found = [
            ("divergence", self._divergence(loss)),
            ("throughput drop", self._throughput_drop(images_per_second)),
        ]
        if ranks:
            found.append(("straggler", self._straggler(ranks)))
        alerts = [
            Alert(title, text)
            for title, text in found
            if text is not None and title not in self._raised
        ]
        for title, text in found:
            (self._raised.discard if text is None else self._raised.add)(title)
        return alerts

    def _divergence(self, loss: float) -> str | None:
        limit = self._settings.divergence
        if not math.isfinite(loss):
            return f"the loss is {loss}" if limit else None
        compared = self._loss.add(loss)
        if not limit or compared is None or compared[0] <= limit * compared[1]:
            return None
        recent, baseline = compared
        return (
            f"the loss is {recent:.4g} (median of {RECENT_STEPS} steps), more than {limit:g} times "
            f"the {baseline:.4g} of the {BASELINE_STEPS} before; lower the learning rate, or clip "
            "gradients (optimizer.clip_norm)"
        )

    def _throughput_drop(self, images_per_second: float) -> str | None:
        # A drop must not become the baseline that it is compared with.
        limit = self._settings.stall
        compared = self._speed.add(images_per_second, extend=self._low_since is None)
        if not limit or compared is None or compared[0] >= limit * compared[1]:
            self._low_since = None
            return None
        now = self._clock()
        if self._low_since is None:
            self._low_since = now
        if now - self._low_since < SUSTAINED_SECONDS:
            return None
        recent, baseline = compared
        return (
            f"{recent:.0f} images/s (median of {RECENT_STEPS} steps), below {limit:.0%} of the "
            f"usual {baseline:.0f} for {(now - self._low_since) / 60:.0f} minutes; data_wait shows "
            "whether training waits for data"
        )

    def _straggler(self, ranks: dict[str, float]) -> str | None:
        limit, slowest = self._settings.straggler, ranks["ranks/slowest"]
        lags = limit and ranks["ranks/slowest_lag"] > limit
        self._slowest.append(slowest if lags else math.nan)
        # NaN does not equal itself.
        if len(self._slowest) < STRAGGLER_CHECKS or any(r != slowest for r in self._slowest):
            return None
        return (
            f"rank {slowest:.0f} alone would do {ranks['ranks/images_per_second_min']:.0f} "
            f"images/s, the median rank {ranks['ranks/images_per_second_median']:.0f}: the others "
            "wait for it"
        )
