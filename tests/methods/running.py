"""Whole runs in this process."""

import re
import runpy
import shutil
import sys

from accelerate.state import AcceleratorState

from adde.training.checkpoints.checkpoint import last_checkpoint
from adde.training.watching.panels import NOT_SHOWN, PANELS
from adde.training.watching.tracking import read_log
from tests.programs import ROOT


def train(monkeypatch, *words):
    """Call train/main.py on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words)])
    try:
        runpy.run_path(str(ROOT / "train/main.py"), run_name="__main__")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def figures(run, name):
    return [line[name] for line in read_log(run / "log.jsonl") if name in line]


def cut_off(run, folder):
    """Copy a run as it would be, had it ended after its first checkpoint with steps."""
    shutil.copytree(run, folder)
    kept, seen = sorted((folder / "checkpoints").iterdir()), False
    for path in kept:
        if path.is_file() or seen:
            path.unlink() if path.is_file() else shutil.rmtree(path)
        else:
            seen = last_checkpoint(folder) is not None and not path.name.endswith("-00000000")
    return folder


def same_weights(run, other, *kinds):
    for kind in kinds:
        mine, theirs = (last_checkpoint(one).tensors(kind) for one in (run, other))
        assert mine.keys() == theirs.keys() and mine
        for name, stored in mine.items():
            assert stored.whole().equal(theirs[name].whole()), (kind, name)


def keys_without_a_panel(run, method):
    panels = (*method.panels, *PANELS)
    keys = {key for line in read_log(run / "log.jsonl") for key in line}
    return {
        key
        for key in keys - {"step", "time", "alert"}
        if not any(panel.shows(key) for panel in panels)
        and not any(re.fullmatch(pattern, key) for pattern in NOT_SHOWN)
    }
