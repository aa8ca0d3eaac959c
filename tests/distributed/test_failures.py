"""A rank that fails ends the others with its message, long before a collective times out."""

import os
import re
import subprocess
import sys
import time

import pytest
from test_ranks import free_port
from test_strategies import ROOT, launch, log
from tiny_recipe import RECIPE

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from adde.distributed import RankRows, broadcast_from_main
from adde.mining import mine

dist.init_process_group("gloo")
rank, fault = dist.get_rank(), sys.argv[1]
vectors = torch.nn.functional.normalize(torch.randn(1, 4, 3), dim=-1)
labels = torch.tensor([[0, 0, 1, 1]])
ranks = RankRows.equal(4)
if fault == "nan" and rank == 1:
    vectors[0, 2] = torch.nan
if fault == "disk":
    broadcast_from_main(lambda: open("/nowhere/note"))
if fault == "before the collective" and rank == 1:
    raise RuntimeError("no picture on rank 1")
refs = ranks.gather(vectors[0])[None]
ref_labels = ranks.gather(labels[0])[None]
if fault == "label" and rank == 1:
    labels[0, 3] = -7
mine(vectors, labels, refs=refs, ref_labels=ref_labels, self_index=ranks.columns(refs.device),
     margin=0.5)
dist.barrier()  # the healthy rank waits here
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        # All ranks see it in the gathered rows; the first to report it ends the others.
        ("nan", r"anchors: .* row 2 of group 0, seen on rank 1|refs: .* row 6 .* seen on rank 0"),
        ("label", "labels: expected >= -1, found -7, seen on rank 1"),
        ("disk", "UserError: .*No such file or directory: '/nowhere/note'"),
        ("before the collective", "no picture on rank 1"),
    ],
)
def test_the_others_go_down_with_the_message(fault, message, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--", str(script), fault],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert re.search(message, done.stderr)
    assert time.monotonic() - started < 60  # gloo's own timeout is 30 minutes


CPU = """
import os
import torch
from accelerate import Accelerator
from adde.training.config import Config
from adde.training.strategies import open_accelerator
import torch.distributed as dist

torch.cuda.is_available = lambda: True  # as on a machine with GPUs
accelerator = open_accelerator(Config())
os.write(1, f"{dist.get_backend()} {accelerator.device.type}\\n".encode())  # whole lines
"""


def test_ranks_on_the_cpu_of_a_machine_with_gpus_talk_by_gloo(tmp_path):
    script = tmp_path / "cpu.py"
    script.write_text(CPU)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--", str(script)],
        env={**environment, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["gloo cpu"] * 2, done.stderr
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**environment, "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "UserError: expected no visible GPUs for DeepSpeed on the CPU" in done.stderr


ELSEWHERE = """
import os, runpy
from pathlib import Path
from adde.errors import run_program
from adde.training.resilience import requirements

main = runpy.run_path("train/main.py")["main"]
requirements.VISIBLE_WITHIN = 0.5
folder = Path(__file__).parent / os.environ["RANK"]  # every rank has its own disk
folder.mkdir()
os.chdir(folder)
run_program(main)
"""


def test_a_run_folder_that_machines_do_not_share_is_refused_before_the_first_step(
    tiny_shards, tmp_path
):
    recipe, program = tmp_path / "recipe.toml", tmp_path / "main.py"
    recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
    program.write_text(ELSEWHERE)
    output = launch("ddp", 2, recipe, "run", program=program, status=1)
    assert "error: run: expected a folder that all ranks share, found that files which" in output
    assert f"not visible to rank 1 on {os.uname().nodename}; put --run on a disk" in output
    assert not list((tmp_path / "0" / "run").glob(".*"))


AROUND = """
import os, time
from pathlib import Path
import torch
from adde.errors import UserError, run_program
from adde.training.resilience import heartbeat
from adde.training import startup
from adde.training.run import Run
from adde.training.recipes import parse
from adde.training.watching.tracking import Tracker

fault, pid = os.environ["FAULT"], Path(__file__).parent / "pid"
heartbeat.INTERVAL = 0.2
if os.environ["RANK"] == "1":
    pid.write_text(str(os.getpid()))

def closing(self, *failure):
    if fault == "slow" and self._main and not self._log.closed:
        deadline = time.monotonic() + 120
        while heartbeat._state(int(pid.read_text())) not in ("", "Z"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # longer than the heartbeat waits
    close(self, *failure)

def no_room(*_):
    raise UserError("no room")

if fault == "slow":
    heartbeat.GRACE = 1.0
if fault == "room":
    startup.require_room = no_room
close, Tracker.close = Tracker.close, closing

def main():
    method, config, resume = parse()
    with Run(method, config, resume) as run:
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")
        run.finish()

run_program(main)
"""


@pytest.fixture
def around(tiny_shards, tmp_path):
    """Run ranks through everything but training, without a launcher that ends them together."""
    recipe, program = tmp_path / "recipe.toml", tmp_path / "main.py"
    recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
    program.write_text(AROUND)

    def run(fault, *of_rank_1, ranks=2):
        port = str(free_port())
        world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            subprocess.Popen(
                [sys.executable, program, f"--recipe={recipe}", f"--run={tmp_path / 'run'}", *more],
                cwd=ROOT,
                env={
                    **os.environ,
                    **world,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "ACCELERATE_USE_CPU": "true",
                    "OMP_NUM_THREADS": "1",
                    "FAULT": fault,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, more in enumerate([(), of_rank_1][:ranks])
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        return [process.returncode for process in processes], outputs

    return run


def test_the_main_rank_may_take_its_time_at_the_end(around, tmp_path):
    statuses, outputs = around("slow")
    assert statuses == [0, 0], outputs
    assert f"report: {tmp_path / 'run/report.html'}" in outputs[0]


@pytest.mark.parametrize(
    ("fault", "of_rank_1", "messages"),
    [
        ("shards", ("--data.shards=/nowhere",), ["rank 1 ended with: /nowhere", "error: /nowhere"]),
        ("room", (), ["error: no room", "error: no room"]),
    ],
)
def test_what_ends_one_rank_before_the_training_is_told_to_all(around, fault, of_rank_1, messages):
    statuses, outputs = around(fault, *of_rank_1)
    assert statuses == [1, 1], outputs
    for message, output in zip(messages, outputs):
        assert message in output


def test_what_the_run_failed_with_stands_in_its_log(around, tmp_path):
    statuses, outputs = around("memory", ranks=1)
    assert statuses == [1], outputs
    (line,) = log(tmp_path / "run")
    assert line["alert"]["title"] == "failed"
    assert line["alert"]["text"].startswith("rank 0, step 0: the GPU is out of memory")
