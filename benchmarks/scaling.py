"""Measure training on one rank and on two ranks of this machine.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --json docs/scaling.json
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --quick

Each run is train/main.py on the quickstart recipe with a batch of 64 per rank. Two independent
processes show what sharing the machine costs without any communication.
"""

import json as jsonlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from figures import publish

from adde.errors import run_program
from adde.training.recipes import read_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "train/recipes/quickstart.toml"
STEPS = 50
"""Measured steps of a run, after 10 steps of warm-up."""


def train(folder: Path, shards: str, ranks: int, apart: bool) -> dict[str, float]:
    """Run train/main.py; return images/s of all processes and a checkpoint's stall in steps.

    Args:
        folder: where the runs are written.
        shards: folder of shards to train on.
        ranks: number of processes.
        apart: start independent runs instead of ranks of one run.
    """
    config = read_recipe(RECIPE)
    size = config.data.batch_size
    words = [f"--recipe={RECIPE}", f"--data.shards={shards}", "--wandb=off"]
    words += ["--checkpoints.every=10", "--evaluation.every-epochs=99", "--batch-norm=local"]
    python = [sys.executable]
    torchrun = [*python, "-m", "torch.distributed.run", "--standalone"]
    launched = [*torchrun, f"--nproc_per_node={ranks}", "--"]
    together = ranks > 1 and not apart
    runs = [folder / f"{ranks}-{apart}-{k}" for k in range(1 if together else ranks)]
    words.append(f"--data.batch-size={size * ranks if together else size}")
    processes = [
        subprocess.Popen(
            [*(launched if together else python), "train/main.py", *words, f"--run={run}"],
            cwd=ROOT,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for run in runs
    ]
    try:
        _wait(processes, runs, STEPS + 10, words)
    finally:
        for process in processes:
            process.terminate()  # torchrun tells its ranks, whose groups are their own
            process.wait()
    lines = [_lines(run)[10 : STEPS + 10] for run in runs]
    rates = [statistics.median(line["images_per_second"] for line in some) for some in lines]
    step = size * (ranks if together else 1) / rates[0]
    stalls = [line["checkpoint_stall"] for some in lines for line in some]
    return {"images_per_second": sum(rates), "stall_steps": max(stalls) / step}


def _wait(
    processes: list[subprocess.Popen[bytes]], runs: list[Path], steps: int, words: list[str]
) -> None:
    """Until every run has logged so many steps."""
    while True:
        ended = [process for process in processes if process.poll() is not None]
        counts = [len(_lines(run)) for run in runs]  # after poll: a last line is not missed
        if min(counts) >= steps:
            return
        if ended:
            raise RuntimeError(
                f"train/main.py {' '.join(words)}: expected {steps} steps, found {counts} and exit "
                f"status {ended[0].returncode}; run it to see why"
            )
        time.sleep(0.2)


def _lines(run: Path) -> list[dict[str, Any]]:
    log = run / "log.jsonl"
    found = log.read_text().splitlines() if log.exists() else []
    return [jsonlib.loads(line) for line in found if '"lr"' in line and line.endswith("}")]


def scale(
    shards: str = "data/wardrobe", rounds: int = 2, json: Path | None = None, quick: bool = False
) -> None:
    """Print and write efficiency, throughput and the stall of a checkpoint.

    Args:
        shards: folder of shards to train on.
        rounds: runs of each kind, which take turns; the figures are medians.
        json: file of the figures.
        quick: one round.
    """
    kinds = {"1": (1, False), "2_apart": (2, True), "2": (2, False)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(1 if quick else rounds):
        for name, (ranks, apart) in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(train(Path(folder), shards, ranks, apart))
    median = {
        name: {key: statistics.median(some[key] for some in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    rate = {name: values["images_per_second"] for name, values in median.items()}
    figures = {
        "efficiency_2_ranks": rate["2"] / (2 * rate["1"]),
        "efficiency_2_processes_apart": rate["2_apart"] / (2 * rate["1"]),
        "efficiency_2_ranks_vs_apart": rate["2"] / rate["2_apart"],
        "checkpoint_stall_steps": max(median["1"]["stall_steps"], median["2"]["stall_steps"]),
        "images_per_second_1_rank": rate["1"],
        "images_per_second_2_ranks": rate["2"],
    }
    publish(figures, ("torch", "accelerate"), json)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(scale))
