"""Kill ranks at random places under a launcher that restarts them, and check the sample order.

What counts as seen is the history that led to the final weights: a step that a later start has
done again, because it lay behind the last checkpoint, counts as that start did it.
"""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
import torch
from test_ranks import free_port
from test_strategies import ROOT
from test_strategies import start as launch
from tiny_recipe import RECIPE

from adde.training.checkpoints.checkpoint import read_checkpoint

PROGRAM = '''
"""train/main.py that records the items of every step, and kills itself as planned."""
import json, os, runpy, signal, time
from pathlib import Path
from adde.distributed import gather_objects, rank
from adde.errors import run_program
from adde.training.run import Run

plan = json.loads(os.environ["PLAN"])
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
step, of_rank, place, number = plan[start] if start < len(plan) else (0, -1, "", 0)
note, log, save = Run.record_micro_batch, Run.log, Run.save
begun = None

def at(run, here):
    if here == place and run.position.step >= step and rank() == of_rank:
        os.kill(os.getpid(), number) if number else time.sleep(1000)

def noting(self, scalars, batch, draws):
    global begun
    note(self, scalars, batch, draws)
    begun = begun or gather_objects(time.time_ns())[0]
    line = {"start": begun, "step": self.position.step + 1, "rank": rank(), "items": batch.item_ids}
    # Gradients are summed: the other ranks may take the step and save it without this one.
    with (Path(os.environ["TRACE"]) / f"{time.time_ns()}-{rank()}.json").open("w") as file:
        json.dump(line, file)
    at(self, "step")

def logging(self, *figures):
    log(self, *figures)
    time.sleep(float(os.environ.get("PAUSE", "0")))
    at(self, "load")

def saving(self, *more):
    save(self, *more)
    at(self, "save")  # while the file is written

Run.record_micro_batch, Run.log, Run.save = noting, logging, saving
run_program(runpy.run_path("train/main.py")["main"])
'''
EPOCH = 5
"""Steps: 60 items in batches of 12."""


@pytest.fixture
def chaos(tiny_shards, tmp_path):
    """Start the program under torchrun: `epochs` per stage, killed as planned."""
    recipe, program, count = tmp_path / "recipe.toml", tmp_path / "main.py", itertools.count()
    program.write_text(PROGRAM)
    recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))

    def start(name, launcher, plan, epochs, *more, pause=0.0, **variables):
        trace = tmp_path / f"{name}-trace"
        trace.mkdir(exist_ok=True)
        epochs = [f"--{s}.schedule.epochs={epochs}" for s in ("encoder", "adde")]
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "--", str(program)]
        # A file, because a full pipe that nobody reads would block the program.
        output = tmp_path / f"{name}-{next(count)}.log"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*command, f"--recipe={recipe}", f"--run={tmp_path / name}", *epochs, *more],
                cwd=ROOT,
                env={
                    **os.environ,
                    "ACCELERATE_USE_CPU": "true",
                    "OMP_NUM_THREADS": "1",
                    "PLAN": json.dumps(plan),
                    "TRACE": str(trace),
                    "PAUSE": str(pause),
                    **variables,
                },
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process.output = output
        return process

    return start


def finish(process, timeout=900):
    process.wait(timeout)
    output = process.output.read_text()
    assert process.returncode == 0, output[-5000:]
    return output


def history(trace, steps):
    """Return each step's lines by rank, from the last start that took the step."""
    found, starts = {}, {}
    for file in trace.iterdir():
        line = json.loads(file.read_text())
        step, start = line["step"], line["start"]
        if start > starts.get(step, 0):
            starts[step], found[step] = start, {}
        if start == starts[step]:
            found[step][line["rank"]] = line
    assert sorted(found) == list(range(1, steps + 1))
    return found


def seen_once_an_epoch(trace, steps):
    lines = history(trace, steps)
    for first in range(1, steps + 1, EPOCH):
        items = Counter(
            item
            for step in range(first, first + EPOCH)
            for line in lines[step].values()
            for item in line["items"]
        )
        assert len(items) == 60
        assert set(items.values()) == {1}, f"epoch from step {first}"
    return lines


def logged_once(run, steps):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, steps + 1))


def torchrun(ranks, restarts):
    return ("--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_told_to_stop_has_its_ranks_save(tiny_shards, tmp_path, number):
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
    more = ("--data.workers=1", "--encoder.schedule.epochs=2000", "--checkpoints.every=100000")
    process = launch("ddp", 2, recipe, run, *more)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text()) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # ranks and their workers
    process.send_signal(number)  # torch's agent hands it to the ranks' process groups
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("stopping after this step") == 2, output  # from the ranks, not from workers
    assert "DataLoader worker" not in output
    step = int(re.search(r"stopped after step (\d+)", output)[1])
    assert read_checkpoint(run / "checkpoints" / f"step-{step:08d}")
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_a_killed_rank_is_named_and_the_launcher_goes_on_by_itself(chaos, tmp_path):
    plan = [(9, 1, "step", signal.SIGKILL)]
    output = finish(chaos("run", torchrun(2, 1), plan, epochs=2))
    assert re.search(r"exitcode: -9\) local_rank: 1 ", output)  # from the launcher
    # The last heartbeat may be older than the step.
    assert re.search(
        r"error: .*; rank 1 is (training|starting|saving a checkpoint) at step \d+, and the o",
        output,
    )
    assert "resuming at step 7 " in output  # without --resume
    lines = seen_once_an_epoch(tmp_path / "run-trace", steps=20)
    assert {len(line) for line in lines.values()} == {2}
    logged_once(tmp_path / "run", steps=20)
    starts = [json.loads(s) for s in (tmp_path / "run/preflight.jsonl").read_text().splitlines()]
    assert [(s["step"], s["ranks"], s["restarts"]) for s in starts] == [(0, 2, 0), (7, 2, 1)]
    assert all(s["all_reduce_gb_per_s"] > 0 for s in starts)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_two_hundred_steps_with_a_kill_every_forty_end_as_without(chaos, tmp_path, ranks):
    draw = random.Random(ranks)
    places = ["load", "step", "save", draw.choice(["load", "step", "save"])]
    plan = [
        (40 * number + draw.randrange(10, 30), draw.randrange(ranks), place, signal.SIGKILL)
        for number, place in enumerate(places)
    ]
    more = ("--evaluation.every-epochs=10",)
    output = finish(chaos("run", torchrun(ranks, 4), plan, 20, *more))
    assert output.count("resuming at step") == 4
    lines = seen_once_an_epoch(tmp_path / "run-trace", steps=200)
    assert {len(line) for line in lines.values()} == {ranks}
    logged_once(tmp_path / "run", steps=200)
    if ranks > 2:
        return  # DDP's first step after a start uses other buckets, so sums differ
    finish(chaos("whole", torchrun(ranks, 0), [], 20, *more))
    for file in ("model", "ema", "optimizer"):
        found, want = (
            read_checkpoint(tmp_path / run / "checkpoints" / "step-00000200").tensors(file)
            for run in ("run", "whole")
        )
        assert found.keys() == want.keys()
        assert all(torch.equal(found[name].whole(), value.whole()) for name, value in want.items())


@pytest.mark.slow
@pytest.mark.parametrize("of_rank", [0, 1])
def test_a_stopped_rank_is_named_killed_and_replaced(chaos, tmp_path, of_rank):
    plan = [(9, of_rank, "load", signal.SIGSTOP)]
    started = time.monotonic()
    output = finish(chaos("run", torchrun(2, 1), plan, 2, "--limits.silence=3"))
    assert f"error: rank {of_rank} (pid " in output
    assert "has sent no heartbeat for 3 s (limits.silence)" in output
    assert "stopped (SIGSTOP) and is now killed" in output
    seen_once_an_epoch(tmp_path / "run-trace", steps=20)
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_a_rank_that_gets_nowhere_is_named(chaos, tmp_path):
    plan = [(9, 1, "load", 0)]  # 0: it sleeps
    process = chaos("run", torchrun(2, 0), plan, 2, "--limits.stall=4")
    assert process.wait(120) != 0
    assert re.search(
        r"no rank made progress for \d s \(limits.stall\); rank 1 is training at step",
        process.output.read_text(),
    )


@pytest.mark.slow
def test_machines_of_a_static_rendezvous_restart_together(chaos, tmp_path):
    # Like accelerate with launch/ddp_nodes.yaml: one store for all starts.
    static = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--master-addr=127.0.0.1")
    port = f"--master-port={free_port()}"
    plan = [(9, 1, "step", signal.SIGKILL)]
    machines = [chaos("run", (*static, port, f"--node-rank={rank}"), plan, 2) for rank in (0, 1)]
    outputs = [finish(machine) for machine in machines]
    assert "resuming at step 7 " in outputs[0]
    assert re.search(r"rank 1 is (training|starting|saving a checkpoint) at step ", outputs[0])
    seen_once_an_epoch(tmp_path / "run-trace", steps=20)


@pytest.mark.slow
def test_fewer_and_more_machines_go_on_where_the_others_were(chaos, tmp_path):
    launcher = (
        *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-id=elastic"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"),
        "--rdzv-conf=last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3",
    )
    run, trace = tmp_path / "run", tmp_path / "run-trace"

    def machine():
        more = {"pause": 0.3, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see docs/scaling.md
        return chaos("run", launcher, [], 20, "--evaluation.every-epochs=10", **more)

    def wait_for(condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert first.poll() is None, first.output.read_text()[-5000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def last():
        log = run / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    first = machine()  # it holds the rendezvous
    time.sleep(2)
    second = machine()
    wait_for(lambda: last() >= 10)
    for process in (*psutil.Process(second.pid).children(recursive=True), second):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    second.wait()
    at = last()
    wait_for(lambda: last() >= at + 15)
    third = machine()
    output = finish(first)
    # Its launcher may fail at the end, because the first one's store is gone.
    third.wait(60)
    assert "resuming at step" in output
    lines = seen_once_an_epoch(trace, steps=200)
    logged_once(run, steps=200)
    ranks = [len(lines[step]) for step in sorted(lines)]
    changes = [ranks[0], *(b for a, b in itertools.pairwise(ranks) if a != b)]
    assert changes == [2, 1, 2]
