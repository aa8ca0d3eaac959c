"""Explanations of the errors that end a rank."""

import signal
import subprocess
import time

import pytest
import torch

from adde.errors import UserError
from adde.training.config import Limits
from adde.training.resilience.errors import explain
from adde.training.resilience.heartbeat import Heartbeat, _state
from adde.training.resilience.stop_signals import StopSignals


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "the GPU is out of memory: "),
        (MemoryError(), "the machine is out of memory: .*lower data.workers .* MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
            "the machine is out of memory: .* you tried to allocate 9 B",
        ),
    ],
)
def test_a_lack_of_memory_names_rank_step_and_what_to_lower(error, message):
    told = explain(error, 7, None, Heartbeat(Limits(stall=0)))
    assert isinstance(told, UserError)
    assert str(told).startswith("rank 0, step 7: ")
    assert "raise data.accumulation" in str(told)
    with pytest.raises(UserError, match=message):
        raise told


def test_memory_that_is_not_there_is_told_from_what_torch_raises():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(explain(error.value, 7, None, Heartbeat(Limits(stall=0))), UserError)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("gloo"), KeyboardInterrupt()])
def test_what_is_not_known_is_left_as_it_is(error):
    assert explain(error, 7, None, Heartbeat(Limits(stall=0))) is error


def test_a_launcher_that_restarts_is_told_of_no_failure():
    stop = StopSignals()
    assert stop.exit_status({}) == 128 + signal.SIGTERM  # another rank's
    signal.raise_signal(signal.SIGUSR1)
    assert stop.exit_status({}) == 128 + signal.SIGUSR1
    assert stop.exit_status({"TORCHELASTIC_MAX_RESTARTS": "0"}) == 128 + signal.SIGUSR1
    assert stop.exit_status({"TORCHELASTIC_MAX_RESTARTS": "3"}) == 0


def test_a_process_is_told_stopped_or_ended():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert _state(process.pid) not in ("", "T", "Z")  # "D" while a busy disk reads it
            process.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 30
            while _state(process.pid) != "T":
                assert time.monotonic() < deadline
            process.kill()
            while _state(process.pid) != "Z":
                assert time.monotonic() < deadline
        finally:
            process.kill()
    assert _state(process.pid) == ""
