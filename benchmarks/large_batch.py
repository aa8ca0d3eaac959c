"""A batch beyond memory: peak memory and time of one step with cached embeddings (`data.cached`).

    python benchmarks/large_batch.py --json docs/large_batch.json

One step of either stage on a batch of 32,768 pictures of 32 pixels, encoded 256 at a time by a tiny
transformer, with triplets mined in the whole batch; and plain steps of smaller batches, whose
growth says what the whole one would take. Each in a process of its own; memory is the process's
peak above what it had before the batch. `gradient_error` is the largest difference between the
cached and the plain batch's gradients, over the largest gradient of the same tensor.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from figures import publish

from adde.errors import run_program
from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.methods.adde.config import AddeConfig, AddeStage
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.config import Config, Data
from adde.training.gradient_cache import cached_backward
from adde.training.strategies import DataParallel
from adde.training.terms import global_mean

SCHEMA = Schema(
    tuple(Attribute(name, tuple(map(str, range(10)))) for name in ("colour", "shape", "size"))
)
STAGES = {s.name: s for s in AddeConfig(adde=AddeStage(global_triplet=0.5)).stages()}
SIDE = 32


def make_batch(size: int) -> Batch:
    draws = torch.Generator().manual_seed(size)
    images = torch.randint(0, 256, (size, SIDE, SIDE, 3), generator=draws, dtype=torch.uint8)
    return Batch(images, torch.randint(-1, 10, (size, 3), generator=draws), [])


def memory_mb(which: str) -> float:
    """VmRSS, what the process has now, or VmHWM, its peak.

    Not getrusage: after a fork its peak is the parent's too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024 / 1e6


def step(name: str, size: int, parts: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """One step's figures and gradients; `parts` 0: a plain batch."""
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone="test_vit",
        backbone_options={"img_size": SIDE},
        image_size=SIDE,
        width=16,
        hidden=16,
    )
    model = ADDE(settings, SCHEMA)
    torch.nn.init.normal_(model.memory.weight, std=0.1)
    model.memory.requires_grad_(name == "adde")
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    stage, draws = STAGES[name], torch.Generator().manual_seed(3)
    config = Config(data=Data(accumulation=max(1, parts)))
    strategy = DataParallel(Accelerator(cpu=not torch.cuda.is_available()), model, config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, batch, started = memory_mb("VmRSS"), make_batch(size), time.perf_counter()
    if parts:
        cached_backward(strategy, objective, stage, batch, draws, parts)
    else:
        terms = objective.batch_terms(stage, strategy.model, batch, draws)
        strategy.backward(global_mean(terms, stage.weights)[0])
    seconds = time.perf_counter() - started
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"mb": memory_mb("VmHWM") - before, "seconds": seconds}, gradients


def gradient_error(name: str, size: int, micro: int) -> float:
    cached, plain = step(name, size, size // micro)[1], step(name, size, 0)[1]
    return max(
        ((cached[n] - value).abs().max() / value.abs().max()).item()
        for n, value in plain.items()
        if value.any()
    )


def alone(name: str, size: int, parts: int) -> dict[str, float]:
    """A step in a process of its own, whose peak is no other's."""
    words = [name, str(size), str(parts)]
    done = subprocess.run(
        [sys.executable, __file__, "--only", *words], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def large_batch(
    batch: int = 32_768,
    micro: int = 256,
    json: Path | None = None,
    only: tuple[str, int, int] | None = None,
) -> None:
    """Measures.

    Args:
        batch: items of the large batch.
        micro: of them, encoded at a time.
        json: file for the figures.
        only: stage, batch and parts of one step to measure here; for processes of this program.
    """
    if only is not None:
        print(_dumps(step(*only)[0]))
        return
    few, many = batch // 16, batch // 8
    figures: dict[str, Any] = {"batch": batch, "micro_batch": micro}
    for name in STAGES:
        cached = alone(name, batch, batch // micro)
        smaller, larger = alone(name, few, 0)["mb"], alone(name, many, 0)["mb"]
        slope = (larger - smaller) / (many - few)
        figures |= {
            f"{name}_cached_mb": cached["mb"],
            f"{name}_cached_seconds": cached["seconds"],
            f"{name}_plain_{many}_mb": larger,
            f"{name}_plain_extrapolated_mb": larger + slope * (batch - many),
            f"{name}_gradient_error": gradient_error(name, 1024, micro),
        }
    publish(figures, ("torch",), json)


_dumps = json.dumps

if __name__ == "__main__":
    run_program(lambda: tyro.cli(large_batch))
