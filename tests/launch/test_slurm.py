"""launch/slurm.sh."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from launching import LAUNCH, ROOT, STUB, launched, require_usage

# srun gets options and a command; this machine is every node.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> {log}.srun; shift; done
SLURM_NODEID=1 SLURM_GPUS_ON_NODE=8 exec "$@"
"""
# Like timeout, but after a second.
TIMEOUT = """#!/bin/bash
echo "$1" > {log}.timeout
exec {timeout} 1 "${{@:2}}"
"""
# Like accelerate, whose ranks save and end on SIGUSR1.
WAITING = (
    STUB
    + """
import time
while not os.path.exists({log!r} + ".stopped"):
    time.sleep(0.05)
sys.exit(1)
"""
)
PKILL = """#!/bin/bash
echo "$@" > {log}.stopped
"""


def run_slurm(stubs, **popen):
    environment = {
        "PATH": stubs.path,
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "4711",
    }
    arguments = ["ddp_nodes", "train/recipes/paper.toml", "runs/a b"]
    return subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh", *arguments], env=environment, cwd=ROOT, **popen
    )


def start_slurm(stubs, log, **popen):
    stubs.add("srun", SRUN.format(log=log))
    stubs.add("scontrol")
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=log))
    process = run_slurm(stubs, **popen)
    deadline = time.monotonic() + 30
    while not stubs.calls("accelerate"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_slurm_starts_the_nodes_and_requeues_when_told_to_stop(stubs, tmp_path):
    log = str(tmp_path / "calls")
    stubs.add("pkill", PKILL.format(log=log))
    process = start_slurm(stubs, log)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    assert "--kill-on-bad-exit=1" in Path(f"{log}.srun").read_text()
    options, config = launched(stubs.calls("accelerate")[0])
    assert options == {
        "file": "launch/ddp_nodes.yaml",
        "num_machines": "2",
        "num_processes": "16",
        "machine_rank": "1",
        "main_process_ip": "",
        "main_process_port": "24711",
        "max_restarts": "3",
    }
    assert config.run == Path("runs/a b")
    assert stubs.calls("scontrol") == [["show", "hostnames", "n[1-2]"], ["requeue", "4711"]]
    assert "-USR1" in (tmp_path / "calls.stopped").read_text()


def test_slurm_requeues_what_does_not_stop_in_time(stubs, tmp_path):
    log = str(tmp_path / "calls")
    stubs.add("pkill", PKILL.format(log=f"{log}.unheard"))
    stubs.add("timeout", TIMEOUT.format(log=log, timeout=shutil.which("timeout")))
    process = start_slurm(stubs, log, start_new_session=True)
    process.send_signal(signal.SIGUSR1)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert stubs.calls("scontrol")[-1] == ["requeue", "4711"]
    told = int(re.search(r"USR1@(\d+)", (LAUNCH / "slurm.sh").read_text())[1])
    assert int(Path(f"{log}.timeout").read_text()) < told


def test_slurm_ends_with_the_training_and_does_not_requeue_a_failure(stubs, tmp_path):
    stubs.add("srun", SRUN.format(log=tmp_path / "calls"))
    stubs.add("scontrol")
    (tmp_path / "calls.stopped").touch()
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=str(tmp_path / "calls")))
    assert run_slurm(stubs).wait(timeout=30) == 1
    assert len(stubs.calls("scontrol")) == 1


def test_the_script_parses_and_says_how_it_is_used():
    require_usage("slurm.sh")
