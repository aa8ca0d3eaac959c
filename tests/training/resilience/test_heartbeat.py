"""What a rank concludes from the others' signs of life, on a store and a clock of the test's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from adde.errors import UserError
from adde.training.config import Limits
from adde.training.resilience import heartbeat
from adde.training.resilience.heartbeat import Heartbeat


class Counting:
    """A store that counts what it is asked."""

    def __init__(self) -> None:
        self.store, self.asked = dist.HashStore(), 0

    def __getattr__(self, name):
        self.asked += 1
        return getattr(self.store, name)


@pytest.fixture
def ranks(monkeypatch):
    """Ranks that look at each other when they are told to.

    `one(rank)` is that rank's heartbeat and `be(rank)` lets it act; `places` and `store` are common
    to all, and `now` is the time.
    """
    world = SimpleNamespace(store=Counting(), places=[], now=1000.0)

    def be(rank):
        monkeypatch.setattr(heartbeat, "rank", lambda: rank)

    def one(rank, limits=Limits(silence=0)):  # noqa: B008 (frozen)
        be(rank)
        return Heartbeat(limits)

    world.be, world.one = be, one
    monkeypatch.setattr(heartbeat, "world_size", lambda: len(world.places))
    monkeypatch.setattr(heartbeat, "gather_objects", lambda _: world.places)
    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=lambda _: None)
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setattr(Heartbeat, "_open_store", lambda _: world.store)
    monkeypatch.setattr(Heartbeat, "_live", lambda _: None)
    return world


def beat(world, rank, number):
    state = {"beat": number, "parts": 0, "moves": number, "step": number, "at": "training"}
    world.store.set(f"beat/{rank}", json.dumps(state))


def elsewhere(size):
    """Ranks on machines of their own."""
    return [(f"n{rank}", 7, f"start of n{rank}") for rank in range(size)]


def test_a_job_that_was_suspended_goes_on(ranks):
    ranks.places = elsewhere(2)
    main = ranks.one(0, Limits(silence=60, stall=600))
    for number in range(1, 4):
        beat(ranks, 1, number)
        ranks.now += 2
        assert main._look() is None
    ranks.now += 3600  # all are stopped, and this one is the first to go on
    assert main._look() is None
    beat(ranks, 1, 4)
    ranks.now += 2
    assert main._look() is None
    found = None
    for _ in range(30):
        assert found is None
        ranks.now += 2
        found = main._look()
    assert found is not None
    assert found.startswith("rank 1 (pid 7 on n1, last training at step 4) has given no sign of")


def test_machines_of_one_name_are_told_apart(ranks, monkeypatch, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    beat(ranks, 1, 1)
    places = []
    for start, pid in (("aaaa", os.getpid()), ("bbbb", ended.pid)):
        (tmp_path / "boot_id").write_text(f"{start}\n")
        monkeypatch.setattr(heartbeat, "BOOT_ID", tmp_path / "boot_id")
        host, _, counted = heartbeat._place()
        places.append((host, pid, counted))
    assert places[0][0] == places[1][0]
    ranks.places = places
    assert ranks.one(0)._look() is None
    ranks.places = [places[0], (*places[1][:2], places[0][2])]
    assert "has ended without a word" in ranks.one(0)._find_ended()


@pytest.mark.parametrize("rank", [1, 2, 1000])
def test_what_a_rank_asks_of_the_store_does_not_grow_with_the_ranks(ranks, rank):
    ranks.places = elsewhere(1024)
    beat(ranks, 0, 1)
    one = ranks.one(rank)
    ranks.store.asked = 0
    assert one._look() is None
    assert ranks.store.asked <= 3


def test_all_hear_what_the_first_to_end_has_said(ranks):
    ranks.places = elsewhere(4)
    first, second, other = (ranks.one(rank) for rank in (3, 2, 1))
    ranks.be(3)
    first.close(UserError("rank 3: no picture"))
    ranks.be(2)
    second.close(UserError("Connection closed by peer"))
    ranks.be(1)
    assert other._look() == "rank 3 ended with: no picture"
    told = other.explain(RuntimeError("gloo: Connection closed by peer"))
    assert str(told) == "rank 3 ended with: no picture"


def test_the_last_words_count_of_a_rank_that_is_gone(ranks):
    with subprocess.Popen(["true"]) as ended:
        pass
    host, _, counted = heartbeat._place()
    ranks.places = [(host, os.getpid(), counted), (host, ended.pid, counted)]
    ranks.one(1).close(UserError("no picture"))
    assert ranks.one(0)._look() == "rank 1 ended with: no picture"


ALONE = """
import time
from adde.training.resilience import heartbeat
from adde.training.config import Limits

heartbeat.INTERVAL = heartbeat.GRACE = 1.0
one = heartbeat.Heartbeat(Limits(stall=1))
one.say("loading a batch", 9)
time.sleep(300)
"""


def test_a_rank_alone_that_gets_nowhere_ends():
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.search(
        r"error: rank 0: no rank got on for \d+ s \(limits.stall\); .* loading a batch at step 9",
        done.stderr,
    )


def test_a_rank_alone_without_a_limit_is_left_alone(ranks):
    ranks.places = elsewhere(1)
    assert ranks.one(0, Limits(stall=0))._thread is None
