"""Verdicts from the heartbeats of other ranks, with a store and a clock of the test."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from adde.errors import UserError
from adde.training.config import Limits
from adde.training.resilience import heartbeat
from adde.training.resilience.heartbeat import Heartbeat


class Counting:
    """A store that counts its requests."""

    def __init__(self) -> None:
        self.store, self.asked = dist.HashStore(), 0

    def __getattr__(self, name):
        self.asked += 1
        return getattr(self.store, name)


@pytest.fixture
def ranks(monkeypatch):
    """Ranks that poll each other when the test asks for it.

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
    monkeypatch.setattr(Heartbeat, "_run", lambda _: None)
    return world


def beat(world, rank, number):
    state = {"beat": number, "parts": 0, "phases": number, "step": number, "phase": "training"}
    world.store.set(f"beat/{rank}", json.dumps(state))


def elsewhere(size):
    """Locations of ranks on different machines."""
    return [(f"n{rank}", 7, f"start of n{rank}") for rank in range(size)]


def test_a_job_that_was_suspended_goes_on(ranks):
    ranks.places = elsewhere(2)
    main = ranks.one(0, Limits(silence=60, stall=600))
    for number in range(1, 4):
        beat(ranks, 1, number)
        ranks.now += 2
        assert main._poll() is None
    ranks.now += 3600  # all ranks are suspended, and this one continues first
    assert main._poll() is None
    beat(ranks, 1, 4)
    ranks.now += 2
    assert main._poll() is None
    found = None
    for _ in range(30):
        assert found is None
        ranks.now += 2
        found = main._poll()
    assert found is not None
    assert found.text.startswith("rank 1 (pid 7 on n1, last training at step 4) has sent no heart")
    assert "stopped or unreachable" in found.text


@pytest.fixture
def stopped():
    """A process that is stopped, as by SIGSTOP."""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        while heartbeat._state(process.pid) != "T":
            time.sleep(0.01)
        yield process
        process.kill()


def silent(ranks, pid, namespace):
    """Return rank 0's verdict on a rank that is silent for longer than the limit."""
    host, own, _ = heartbeat._locate()
    ranks.places = [(host, own, "here"), (host, pid, namespace)]
    beat(ranks, 1, 3)
    main = ranks.one(0, Limits(silence=10))
    assert main._poll() is None
    for _ in range(5):
        ranks.now += 2
        verdict = main._poll()
    return verdict


def test_a_stopped_rank_is_reported_to_all_before_it_is_killed(ranks, stopped, monkeypatch, capfd):
    kill, printed = os.kill, []

    def killing(pid, number):
        printed.append((capfd.readouterr().err, json.loads(ranks.store.get("verdict"))[0]))
        kill(pid, number)

    monkeypatch.setattr(heartbeat.os, "kill", killing)
    verdict = silent(ranks, stopped.pid, "here")
    assert stopped.wait(10) == -signal.SIGKILL
    assert f"rank 1 (pid {stopped.pid} on " in verdict.text
    assert "has sent no heartbeat for 10 s (limits.silence)" in verdict.text
    assert "is stopped (SIGSTOP) and is now killed" in verdict.text
    assert printed == [(f"error: {verdict.text}\n", verdict.text)]


def test_a_process_of_another_machine_with_the_same_name_is_not_killed(ranks, stopped):
    verdict = silent(ranks, stopped.pid, "there")
    assert "is stopped or unreachable" in verdict.text
    assert stopped.poll() is None


def test_namespaces_of_machines_differ_by_boot(monkeypatch, tmp_path):
    found = []
    for start in ("aaaa", "bbbb"):
        (tmp_path / "boot_id").write_text(f"{start}\n")
        monkeypatch.setattr(heartbeat, "BOOT_ID", tmp_path / "boot_id")
        found.append(heartbeat._locate())
    assert found[0][:2] == found[1][:2]
    assert found[0].pid_namespace != found[1].pid_namespace


@pytest.mark.parametrize("rank", [1, 2, 1000])
def test_what_a_rank_asks_of_the_store_does_not_grow_with_the_ranks(ranks, rank):
    ranks.places = elsewhere(1024)
    beat(ranks, 0, 1)
    one = ranks.one(rank)
    ranks.store.asked = 0
    assert one._poll() is None
    assert ranks.store.asked <= 3


def test_all_hear_what_the_first_to_end_has_said(ranks):
    ranks.places = elsewhere(4)
    first, second, other = (ranks.one(rank) for rank in (3, 2, 1))
    ranks.be(3)
    first.close(UserError("rank 3: no picture"))
    ranks.be(2)
    second.close(UserError("Connection closed by peer"))
    ranks.be(1)
    assert other._poll().text == "rank 3 ended with: no picture"
    cause = other.find_cause(RuntimeError("gloo: Connection closed by peer"))
    assert cause == "rank 3 ended with: no picture"


ALONE = """
import time
from adde.training.resilience import heartbeat
from adde.training.config import Limits

heartbeat.INTERVAL = heartbeat.GRACE = 1.0
one = heartbeat.Heartbeat(Limits(stall=1))
one.set_phase("loading a batch", 9)
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
        r"error: rank 0: no rank made progress for \d+ s \(limits.stall\); .* loading a batch at "
        "step 9",
        done.stderr,
    )
    # The traceback of faulthandler shows where it hangs.
    assert re.search(r'File "<string>", line 9 in <module>', done.stderr)


def test_a_rank_alone_without_a_limit_is_left_alone(ranks):
    ranks.places = elsewhere(1)
    assert ranks.one(0, Limits(stall=0))._thread is None
