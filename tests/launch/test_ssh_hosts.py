"""launch/hosts.sh."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launching import LAUNCH, ROOT, STUB, launched, require_usage

SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
HOST=$host exec bash -c "$*"
"""
# Like torch's launcher while it waits for other hosts: only KILL ends it. It restarts a
# rank that was killed. On the host `failing` it fails once the other host's rank runs.
LAUNCHER = (
    STUB
    + """
import signal, subprocess, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
if os.environ["HOST"] == {failing!r}:
    while not os.path.exists({log!r} + ".ranks"):
        time.sleep(0.05)
    sys.exit(7)
while True:
    subprocess.run([sys.executable, {log!r} + ".py"])
"""
)
RANK = """
import signal
def write(name):
    with open({log!r} + name, "a") as file:
        file.write("one ")
signal.signal(signal.SIGUSR1, lambda *_: write(".stopped"))
write(".ranks")
while True:
    signal.pause()
"""


def run_hosts(stubs, *hosts):
    return subprocess.Popen(
        [LAUNCH / "hosts.sh", "ddp_nodes", "4", "train/recipes/paper.toml", "runs/a b", *hosts],
        env={"PATH": stubs.path, "PORT": "61234"},
        cwd=ROOT,
    )


def test_hosts_are_started_with_their_numbers(stubs):
    stubs.add("ssh", SSH)
    stubs.add("accelerate")
    assert run_hosts(stubs, "n1", "n2", "n3").wait(timeout=30) == 0
    calls = [launched(call) for call in stubs.calls("accelerate")]
    assert sorted(options["machine_rank"] for options, _ in calls) == ["0", "1", "2"]
    for options, config in calls:
        assert options["num_processes"] == "12"
        assert options["max_restarts"] == "3"
        assert options["main_process_ip"] == "n1"
        assert config.run == Path("runs/a b")


@pytest.fixture
def hosts(stubs, tmp_path):
    """Start two hosts, wait for words in a log, and check that no process is left at the end."""
    log = str(tmp_path / "calls")
    stubs.add("ssh", SSH)
    Path(f"{log}.py").write_text(RANK.format(log=log))
    started = []

    def start(failing=""):
        stubs.add("accelerate", LAUNCHER.format(python=sys.executable, log=log, failing=failing))
        started.append(run_hosts(stubs, "n1", "n2"))
        return started[0]

    def wait_for(name, words):
        deadline = time.monotonic() + 60
        path = Path(f"{log}.{name}")
        while not path.exists() or len(path.read_text().split()) < words:
            assert started[0].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    yield start, wait_for
    started[0].kill()
    own = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    for process in own:
        process.kill()
    assert not own


def test_a_host_that_fails_takes_the_others_down(hosts):
    start, _ = hosts
    assert start(failing="n2").wait(timeout=60) != 0


def test_ctrl_c_stops_the_ranks_of_all_hosts_and_once_more_ends_them(hosts):
    start, wait_for = hosts
    process = start()
    wait_for("ranks", 2)
    process.send_signal(signal.SIGTERM)  # like Ctrl-C, which a background job ignores
    wait_for("stopped", 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0


def test_the_script_parses_and_says_how_it_is_used():
    require_usage("hosts.sh")
