"""benchmarks/scaling.py."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_run_that_ends_before_enough_steps_is_no_endless_wait(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    scaling = importlib.import_module("scaling")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "lr": 0.5}\n' * 3)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    scaling._wait([ended], [tmp_path], 3, [])
    with pytest.raises(RuntimeError, match=r"expected 4 steps, found \[3\] and exit status 0"):
        scaling._wait([ended], [tmp_path], 4, ["--data.workers=1"])
