import math

import pytest

from adde.training.config import Alarms as Settings
from adde.training.watching.alarms import (
    MIN_BASELINE_STEPS,
    RECENT_STEPS,
    STRAGGLER_CHECKS,
    SUSTAINED_SECONDS,
    Alarms,
)

USUAL = MIN_BASELINE_STEPS + RECENT_STEPS


def feed(alarms, losses=(), speeds=(), stage="encoder"):
    """Return the titles of the alerts of each step."""
    losses, speeds = list(losses), list(speeds)
    count = max(len(losses), len(speeds))
    pairs = zip(losses or [1.0] * count, speeds or [100.0] * count)
    return [[a.title for a in alarms.check(stage, loss, speed, {})] for loss, speed in pairs]


def test_a_loss_that_rises_is_told_once_until_it_was_well_again() -> None:
    alarms = Alarms(Settings())
    assert not any(feed(alarms, [1.0, 1.2] * USUAL))
    told = feed(alarms, [4.0] * 10)
    assert [k for k, found in enumerate(told) if found] == [RECENT_STEPS // 2]
    assert not any(feed(alarms, [1.0] * 10))
    assert sum(map(len, feed(alarms, [4.0] * 10))) == 1


def test_one_odd_step_is_no_trouble() -> None:
    alarms = Alarms(Settings())
    assert not any(feed(alarms, [1.0] * USUAL + [50.0, 1.0, 40.0] + [1.0] * USUAL))
    assert not any(feed(alarms, speeds=[100.0] * USUAL + [5.0, 100.0, 5.0] + [100.0] * 5))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_at_once(loss) -> None:
    alarms = Alarms(Settings())
    assert feed(alarms, [loss, loss, 1.0, loss]) == [["divergence"], [], [], ["divergence"]]


def test_another_stage_has_other_losses() -> None:
    alarms = Alarms(Settings())
    assert not any(feed(alarms, [1.0] * USUAL))
    assert not any(feed(alarms, [40.0] * USUAL, stage="adde"))


class Clock:
    """A clock that advances by `step` seconds per call."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_sustained_throughput_drop_is_told_once_with_both_speeds() -> None:
    alarms = Alarms(Settings(), Clock(0.5))
    feed(alarms, speeds=[100.0] * USUAL)
    # More slow steps than the baseline holds: they do not become the baseline.
    checks = [alarms.check("encoder", 1.0, 40.0, {}) for _ in range(600)]
    (at,) = [k for k, alerts in enumerate(checks) if alerts]
    assert (at - RECENT_STEPS // 2) * 0.5 == SUSTAINED_SECONDS
    ((title, text),) = checks[at]
    assert title == "throughput drop"
    assert text.startswith("40 images/s (median of 5 steps), below 50% of the usual 100 for 2 min")
    # After a recovery the alert is raised again.
    assert not any(feed(alarms, speeds=[90.0] * 10))
    assert sum(map(len, feed(alarms, speeds=[40.0] * 600))) == 1


def test_a_machine_that_is_busy_at_times_raises_no_alert() -> None:
    alarms = Alarms(Settings(), Clock(0.5))
    for _ in range(8):
        assert not any(feed(alarms, speeds=[100.0] * 100 + [30.0] * 200))
    assert not any(feed(alarms, speeds=[30.0] * 1000, stage="adde"))  # a slower stage


def ranks(slowest, lag):
    return {
        "ranks/slowest": float(slowest),
        "ranks/slowest_lag": lag,
        "ranks/images_per_second_min": 60.0,
        "ranks/images_per_second_median": 60.0 * (1 + lag),
    }


def test_a_straggler_is_named_when_it_was_the_same_in_a_row() -> None:
    alarms = Alarms(Settings())
    looks = [
        ranks(3, 0.5),
        ranks(2, 0.5),
        ranks(3, 0.5),
        ranks(3, 0.1),
        *[ranks(3, 0.5)] * STRAGGLER_CHECKS,
    ]
    found = [alarms.check("encoder", 1.0, 100.0, look) for look in looks]
    assert [len(alerts) for alerts in found] == [0] * (len(looks) - 1) + [1]
    assert "rank 3 alone would do 60 images/s, the median rank 90" in found[-1][0].text


def test_zero_switches_each_off() -> None:
    alarms = Alarms(Settings(divergence=0, stall=0, straggler=0))
    feed(alarms, [1.0] * USUAL)
    assert not any(feed(alarms, [math.nan, *[90.0] * 10], [1.0] * 11))
    assert not any(alarms.check("encoder", 1.0, 100.0, ranks(3, 9.0)) for _ in range(9))
