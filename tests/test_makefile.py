"""`make quickstart` does again only what has changed: the Makefile over programs that do nothing.

In place of Python stands a script that notes what it was asked, and leaves the file that the
program of that name would leave.
"""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
new() { mkdir -p "$(dirname "$1")" && touch "$1"; }
for word in "$@"; do case "$word" in
    shards/build.py) name=build
        if test -e other || ! test -e data/wardrobe; then
            new data/wardrobe/build.json; new data/wardrobe/index.json
        fi;;
    train/main.py) name=train
        test -e runs/quickstart/config.toml || new runs/quickstart/config.toml;;
    train/evaluate.py) name=evaluate; new runs/quickstart/metrics.json;;
    export/to_onnx.py) name=export; new bundles/quickstart/bundle.json;;
    export/check.py) name=check;;
    serve_onnx/query.py) name=query; new answers/quickstart.png;;
esac; done
echo "$name" >> asked
test "$name" != "$(cat broken 2>/dev/null)"
"""
AFTER_TRAINING = ["evaluate", "export", "check", "query"]


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """Runs `make quickstart`; returns the exit status and the programs it started."""
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the make that runs the tests
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, name)
    for folder in ("shards", "adde/shards", "train", "export", "serve_onnx"):
        shutil.copytree(ROOT / folder, folder)
    programs = Path(".venv/bin")
    programs.mkdir(parents=True)
    for name in ("python", "accelerate"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    touch(".venv/.installed")

    def make():
        Path("asked").write_text("")
        done = subprocess.run(["make", "quickstart"], capture_output=True, text=True)
        return done.returncode, Path("asked").read_text().split()

    return make


def dry_run():
    """What `make -n quickstart` prints."""
    return subprocess.run(
        ["make", "-n", "quickstart"], capture_output=True, text=True, check=True
    ).stdout


def touch(path):
    time.sleep(0.02)  # more than the file system's clock ticks
    Path(path).touch()
    time.sleep(0.02)


def test_again_does_nothing_and_a_recipe_starts_from_training(quickstart):
    assert quickstart() == (0, ["build", "train", *AFTER_TRAINING])
    assert quickstart() == (0, [])
    assert {line.partition(" ")[0] for line in dry_run().splitlines()} == {"echo"}

    Path("runs/quickstart/checkpoints").mkdir()
    touch("train/recipes/quickstart.toml")
    assert "shards/build.py" not in dry_run()
    assert "train/main.py" in dry_run()
    assert quickstart() == (0, ["train", *AFTER_TRAINING])
    assert not Path("runs/quickstart/checkpoints").exists()  # of the other recipe
    assert quickstart() == (0, [])


def test_an_unfinished_run_of_another_recipe_is_not_gone_on_with(quickstart):
    Path("broken").write_text("train")
    assert quickstart() == (2, ["build", "train"])
    checkpoints = Path("runs/quickstart/checkpoints")
    checkpoints.mkdir()
    assert quickstart() == (2, ["train"])
    assert checkpoints.exists()
    touch("train/recipes/quickstart.toml")
    assert quickstart() == (2, ["train"])
    assert not checkpoints.exists()


def test_shards_that_stay_the_same_are_not_trained_on_again(quickstart):
    quickstart()
    touch("adde/shards/catalogues/voxel.py")
    assert quickstart() == (0, ["build"])
    assert quickstart() == (0, [])
    touch("adde/shards/catalogues/voxel.py")
    touch("other")
    assert quickstart() == (0, ["build", "train", *AFTER_TRAINING])
    Path("other").unlink()
    touch("shards/build.py")
    assert quickstart() == (0, ["build"])
    shutil.rmtree("data")
    assert quickstart() == (0, ["build", "train", *AFTER_TRAINING])


@pytest.mark.parametrize("broken", ["build", "train", "evaluate", "export", "check", "query"])
def test_what_failed_is_done_again(quickstart, broken):
    every = ["build", "train", *AFTER_TRAINING]
    Path("broken").write_text(broken)
    place = every.index(broken)
    assert quickstart() == (2, every[: place + 1])
    checkpoints = Path("runs/quickstart/checkpoints")
    if broken == "train":
        checkpoints.mkdir()
    Path("broken").unlink()
    # A bundle that does not check is exported again.
    rest = every[place - 1 :] if broken == "check" else every[place:]
    assert quickstart() == (0, rest)
    assert checkpoints.exists() == (broken == "train")  # an unfinished run goes on
