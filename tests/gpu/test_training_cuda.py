"""Whole runs of train/main.py on CUDA: every precision, resumption, several GPUs, export."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_recipe import RECIPE

from adde.serving.onnx.providers import missing
from adde.training.watching.tracking import read_log

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
MORE = ("--data.workers=2", "--model.backbone=resnet18")
STEPS = 20


@pytest.fixture(scope="module")
def recipe(tiny_shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
    return path


def program(*words, status=0, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "default", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def train(file, ranks, recipe, run, *more, **environment):
    launcher = ("-m", "accelerate.commands.launch", f"--config_file=launch/{file}.yaml")
    words = (f"--num_processes={ranks}", "train/main.py", f"--recipe={recipe}", f"--run={run}")
    return program(*launcher, *words, *MORE, *more, **environment)


def losses(run):
    found = {
        line["step"]: line.get("encoder/loss", line.get("adde/loss"))
        for line in read_log(run / "log.jsonl")
        if "lr" in line
    }
    assert list(found) == list(range(1, STEPS + 1))
    return list(found.values())


def test_float32_starts_as_on_the_cpu_and_is_exported(recipe, tmp_path):
    train("gpu", 1, recipe, tmp_path / "gpu")
    train("cpu", 1, recipe, tmp_path / "cpu", ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    found, expected = losses(tmp_path / "gpu"), losses(tmp_path / "cpu")
    # Rounding differs and grows step by step; a wrong term would show in the first. fp32 is IEEE:
    # with convolutions in TF32 the first losses would be up to 7e-3 apart.
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)
    output = program("train/evaluate.py", f"--run={tmp_path / 'gpu'}")
    assert "classifier_soft" in output
    if lacking := missing("cuda"):
        pytest.skip(f"trained and evaluated; not exported, onnxruntime on CUDA: {lacking}")
    bundle = tmp_path / "bundle"
    program("export/to_onnx.py", f"--run={tmp_path / 'gpu'}", f"--out={bundle}")
    assert "cuda" in program("export/check.py", "--bundle", bundle)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_precision_trains_and_goes_on_where_it_was(recipe, precision, tmp_path):
    run, words = tmp_path / "run", (f"--precision={precision}",)
    train("gpu", 1, recipe, run, *words)
    expected = losses(run)
    assert all(map(math.isfinite, expected))
    later = [f for f in (run / "checkpoints").glob("step-*") if f.name > "step-00000007"]
    assert len(later) == 3
    for folder in later:
        shutil.rmtree(folder)
    assert "resuming at step 7 " in train("gpu", 1, recipe, run, *words, "--resume")
    # Atomic sums round in another order each time.
    assert losses(run) == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("file", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_gpus_start_as_one(recipe, file, tmp_path):
    pytest.importorskip("deepspeed" if file.startswith("zero") else "accelerate")
    train("gpu", 1, recipe, tmp_path / "one")
    train(file, 2, recipe, tmp_path / "two")
    assert losses(tmp_path / "two")[:5] == pytest.approx(losses(tmp_path / "one")[:5], rel=1e-3)
