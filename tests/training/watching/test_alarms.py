import math

import pytest

from adde.training.config import Alarms as Settings
from adde.training.watching.alarms import LEAST, RECENT, WINDOWS, Alarms

USUAL = LEAST + RECENT


def feed(alarms, losses=(), speeds=(), stage="encoder"):
    """Titles of the alerts at each step."""
    losses, speeds = list(losses), list(speeds)
    count = max(len(losses), len(speeds))
    pairs = zip(losses or [1.0] * count, speeds or [100.0] * count)
    return [[a.title for a in alarms.look(stage, loss, speed, {})] for loss, speed in pairs]


def test_a_loss_that_rises_is_told_once_until_it_was_well_again() -> None:
    alarms = Alarms(Settings())
    assert not any(feed(alarms, [1.0, 1.2] * USUAL))
    told = feed(alarms, [4.0] * 10)
    assert [k for k, found in enumerate(told) if found] == [RECENT // 2]
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


def test_a_stall_is_told_with_both_speeds() -> None:
    alarms = Alarms(Settings())
    feed(alarms, speeds=[100.0] * USUAL)
    found = [a for _ in range(6) for a in alarms.look("encoder", 1.0, 40.0, {})]
    assert [a.title for a in found] == ["stall"]
    assert "40 images/s" in found[0].text and "less than 50% of the 100" in found[0].text


def ranks(slowest, lag):
    return {
        "ranks/slowest": float(slowest),
        "ranks/slowest_lag": lag,
        "ranks/images_per_second_min": 60.0,
        "ranks/images_per_second_median": 60.0 * (1 + lag),
    }


def test_a_straggler_is_named_when_it_was_the_same_in_a_row() -> None:
    alarms = Alarms(Settings())
    looks = [ranks(3, 0.5), ranks(2, 0.5), ranks(3, 0.5), ranks(3, 0.1), *[ranks(3, 0.5)] * WINDOWS]
    found = [alarms.look("encoder", 1.0, 100.0, look) for look in looks]
    assert [len(alerts) for alerts in found] == [0] * (len(looks) - 1) + [1]
    assert "rank 3 does 60 images/s by itself, the median rank 90" in found[-1][0].text


def test_zero_switches_each_off() -> None:
    alarms = Alarms(Settings(divergence=0, stall=0, straggler=0))
    feed(alarms, [1.0] * USUAL)
    assert not any(feed(alarms, [math.nan, *[90.0] * 10], [1.0] * 11))
    assert not any(alarms.look("encoder", 1.0, 100.0, ranks(3, 9.0)) for _ in range(9))
