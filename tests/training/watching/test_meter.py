import time

import pytest
import torch

from adde.training.watching.meter import DETAIL_EVERY, MAX_NAMED_RANKS, Means, Meter, rank_figures


def test_a_name_that_is_missing_at_times_has_the_mean_of_the_times_it_was_there() -> None:
    means = Means()
    means.add({"a": 1.0, "b": 5.0})
    means.add({"a": 2.0})
    assert means.take() == {"a": 1.5, "b": 5.0}
    assert means.take() == {}


def test_attributes_wait_for_a_window_of_steps() -> None:
    meter = Meter(torch.device("cpu"))
    for step in range(DETAIL_EVERY):
        assert meter.details() == ({}, {})
        for part in (0.0, 2.0):  # micro-batches
            meter.add({"loss": step + part, "cls/top": step + part}, images=4)
        assert meter.take() == {"loss": step + 1}
    attributes, ranks = meter.details()
    assert attributes == {"cls/top": pytest.approx((DETAIL_EVERY - 1) / 2 + 1)}
    assert ranks == {}  # one rank has no others
    assert meter.details() == ({}, {})


def test_speed_counts_all_images_and_the_wait_for_data() -> None:
    meter = Meter(torch.device("cpu"))
    meter.restart()
    with meter.waiting():
        time.sleep(0.025)
    time.sleep(0.025)
    meter.add({"loss": 1.0}, images=10)
    meter.take()
    assert 0 < meter.speed["images_per_second"] <= 200
    assert 0.1 < meter.speed["data_wait"] < 0.9
    assert meter.speed["memory_gb"] > 0


def test_the_slowest_rank_is_named() -> None:
    found = rank_figures([[100.0, 0.0, 2.0], [50.0, 0.5, 1.0], [150.0, 0.25, 3.0]])
    assert found["ranks/slowest"] == 1
    assert found["ranks/slowest_lag"] == pytest.approx(1.0)  # the median is twice as fast
    assert found["ranks/images_per_second_min"] == 50
    assert found["ranks/data_wait_max"] == 0.5
    assert found["ranks/memory_gb_max"] == 3
    assert found["ranks/data_wait/2"] == 0.25
    assert found["ranks/images_per_second/0"] == 100


def test_a_thousand_ranks_do_not_make_a_thousand_figures() -> None:
    rows = [[100.0, 0.0, 1.0]] * MAX_NAMED_RANKS
    assert len(rank_figures(rows)) == 6 + 3 * MAX_NAMED_RANKS
    assert len(rank_figures([*rows, [90.0, 0.0, 1.0]])) == 6
