"""Apply the diffs of docs/extending.md to a copy of the code and run the page's commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adde.training.watching.tracking import read_log

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = re.findall(r"^    python (.+)$", PAGE, re.M)
SMALL = (
    "--data.batch-size=12 --data.workers=0 --model.image-size=32 --model.width=8 --model.hidden=8 "
    "--encoder.schedule.epochs=1 --adde.schedule.epochs=1 --wandb=off"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the code with the page's changes, and a folder of photos."""
    place = tmp_path_factory.mktemp("extending")
    for name in ("adde", "shards", "train"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-p0", "-"], cwd=place, input=diff, text=True, check=True)
    for colour in ("red", "green", "blue"):
        (place / "photos" / colour).mkdir(parents=True)
        for number in range(30):
            noise = np.random.default_rng(number).integers(0, 40, (40, 32, 3), np.uint8)
            noise[..., ("red", "green", "blue").index(colour)] += 200
            Image.fromarray(noise).save(place / f"photos/{colour}/{colour}{number}.jpg")
    return place


def test_the_page_has_all_parts():
    assert (len(DIFFS), len(COMMANDS)) == (4, 3)


def test_the_commands_work_with_the_changes(place):
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    for command in COMMANDS:
        more = SMALL if command.startswith("train") else ""
        if "backbone" not in command and more:
            more += " --model.backbone=test_resnet"
        done = subprocess.run(
            [sys.executable, *shlex.split(f"{command} {more}")],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    both, encoder = (read_log(place / f"runs/{name}/log.jsonl") for name in ("photos", "encoder"))
    assert all(line["adde/length"] > 0 for line in both if "adde/loss" in line)
    assert any("adde/length" in line for line in both)
    assert any("encoder/loss" in line for line in encoder)
    assert not any("adde/loss" in line for line in encoder)
    assert "Encoder and classifiers" in (place / "runs/encoder/report.html").read_text()
