"""When a run is in trouble: diverging, stalled, or waiting for one slow rank."""

import math
import statistics
from collections import deque
from typing import NamedTuple

from adde.training.config import Alarms as Settings

RECENT, USUAL = 5, 200
"""Steps whose median is held against the median of so many before: one odd step is no trouble."""

LEAST = 20
"""Steps before there is anything usual."""

WINDOWS = 3
"""Looks in a row that must find the same rank the slowest."""


class Alert(NamedTuple):
    """What is wrong, in a few words and in a sentence."""

    title: str
    text: str


class _Usual:
    """The newest values of a figure against those before."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._before: deque[float] = deque(maxlen=USUAL)

    def add(self, value: float) -> tuple[float, float] | None:
        """The recent and the usual value, where there is one."""
        if len(self._recent) == RECENT:
            self._before.append(self._recent[0])
        self._recent.append(value)
        if len(self._before) < LEAST:
            return None
        return statistics.median(self._recent), statistics.median(self._before)


class Alarms:
    """Looks at every step and says what is wrong once, until it was well again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stage = ""
        self._told: set[str] = set()
        self._slow: deque[float] = deque(maxlen=WINDOWS)

    def look(
        self, stage: str, loss: float, images_per_second: float, ranks: dict[str, float]
    ) -> list[Alert]:
        """What has gone wrong with this step.

        Args:
            stage: whose losses are compared with each other.
            loss: of the step.
            images_per_second: of the step, over all ranks.
            ranks: `rank_figures`, where this step has them.
        """
        if stage != self._stage:
            self._stage, self._loss, self._speed = stage, _Usual(), _Usual()
        found = [
            ("divergence", self._divergence(loss)),
            ("stall", self._stall(images_per_second)),
        ]
        if ranks:
            found.append(("straggler", self._straggler(ranks)))
        new = [alert for kind, alert in found if alert is not None and kind not in self._told]
        for kind, alert in found:
            (self._told.discard if alert is None else self._told.add)(kind)
        return new

    def _divergence(self, loss: float) -> Alert | None:
        limit = self._settings.divergence
        if not math.isfinite(loss):
            return Alert("divergence", f"the loss is {loss}") if limit else None
        compared = self._loss.add(loss)
        if not limit or compared is None or compared[0] <= limit * compared[1]:
            return None
        recent, usual = compared
        return Alert(
            "divergence",
            f"the loss is {recent:.4g} (median of {RECENT} steps), more than {limit:g} times the "
            f"{usual:.4g} of the {USUAL} before; lower the learning rate, or clip (optimizer."
            "clip_norm)",
        )

    def _stall(self, images_per_second: float) -> Alert | None:
        limit, compared = self._settings.stall, self._speed.add(images_per_second)
        if not limit or compared is None or compared[0] >= limit * compared[1]:
            return None
        recent, usual = compared
        return Alert(
            "stall",
            f"{recent:.0f} images/s (median of {RECENT} steps), less than {limit:.0%} of the "
            f"{usual:.0f} of the {USUAL} before; data_wait says whether the data are late",
        )

    def _straggler(self, ranks: dict[str, float]) -> Alert | None:
        limit, slowest = self._settings.straggler, ranks["ranks/slowest"]
        lags = limit and ranks["ranks/slowest_lag"] > limit
        self._slow.append(slowest if lags else math.nan)
        # NaN is not even itself.
        if len(self._slow) < WINDOWS or any(rank != slowest for rank in self._slow):
            return None
        return Alert(
            "straggler",
            f"rank {slowest:.0f} does {ranks['ranks/images_per_second_min']:.0f} images/s by "
            f"itself, the median rank {ranks['ranks/images_per_second_median']:.0f}: the others "
            "wait for it",
        )
