"""Compare a whole training step with forward and backward of the backbone on in-memory tensors.

    python benchmarks/training_step.py --shards data/wardrobe --json training_step.json
    python benchmarks/training_step.py --shards data/wardrobe --backbone resnet18 --quick

Both are timed in turn in one run and compared by medians. The whole step is what train/main.py
does: loading, augmentation, heads, mining, all losses, backward, clipping and the optimiser.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import tyro
from accelerate import Accelerator
from figures import publish

from adde.errors import run_program
from adde.loading.augment import Augmentation
from adde.loading.loader import BatchStream
from adde.loading.resize import load_for_training
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings
from adde.shards.batches import Batches
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.shares import RankShare
from adde.training.config import Config, Optimizer
from adde.training.method import Stage
from adde.training.strategies import DataParallel
from adde.training.terms import global_mean


def measure(
    shards: Path,
    backbone: str = "resnet18",
    image_sizes: tuple[int, ...] = (224, 64),
    width: int = 340,
    batch_size: int = 64,
    workers: int = 1,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Print and write the ratio of throughputs and the shares of a step's parts.

    Args:
        shards: folder of shards to train on.
        backbone: timm model.
        image_sizes: sides of the input, pixels; `step_vs_bare` is that of the first.
        width: D.
        batch_size: items of a batch.
        workers: decoding processes.
        json: file of the figures.
        quick: 3 rounds.
    """
    index = ShardIndex.read(shards)
    accelerator = Accelerator()
    figures: dict[str, float] = {}
    for image_size in image_sizes:
        settings = ModelSettings(
            backbone=backbone, image_size=image_size, width=width, hidden=min(width, 512)
        )
        bare = bare_step(backbone, batch_size, image_size, accelerator.device)
        rounds = 3 if quick else 7 if image_size > 100 else 25
        for stage in AddeConfig().stages():
            whole, parts = whole_step(stage, settings, index, batch_size, workers, accelerator)
            times = alternate(bare, whole, rounds)
            seconds = {name: statistics.median(values) for name, values in times.items()}
            name = f"{stage.name}_{image_size}px"
            figures[f"step_vs_bare_{name}"] = seconds["bare"] / seconds["whole"]
            figures[f"images_per_second_{name}"] = batch_size / seconds["whole"]
            for part, values in parts.items():
                figures[f"{name}_{part}_share"] = statistics.median(values) / seconds["whole"]
    stages = [figures[f"step_vs_bare_{stage}_{image_sizes[0]}px"] for stage in ("encoder", "adde")]
    figures = {"step_vs_bare": min(stages), **figures}
    publish(figures, ("torch", "timm"), json)


def bare_step(
    backbone: str, batch_size: int, image_size: int, device: torch.device
) -> Callable[[], None]:
    """Make a step of the backbone alone, in the memory layout of training."""
    layout = torch.channels_last
    model = timm.create_model(backbone, num_classes=0).to(device).to(memory_format=layout)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=layout)

    def step() -> None:
        model(images).square().mean().backward()
        model.zero_grad()

    return step


def whole_step(
    stage: Stage,
    settings: ModelSettings,
    index: ShardIndex,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
) -> tuple[Callable[[], None], dict[str, list[float]]]:
    """Make a step like train/main.py's, and lists that it fills with the seconds of its parts."""
    model = ADDE(settings, index.schema).to(accelerator.device)
    model.memory.requires_grad_(stage.name == "adde")
    stepper = DataParallel(accelerator, model, Config(optimizer=Optimizer(clip_norm=1.0)))
    objective = AddeObjective(index.schema, Augmentation(), margin=0.5)
    order = SampleOrder(index.split("train"), batch_size, seed=0)
    share = RankShare(order, rank=0, ranks=1, accumulation=1)
    batches = Batches(index, "train", model.preprocess, share, load=load_for_training)
    stream = BatchStream(batches, range(10_000), workers, accelerator.device)
    parts: dict[str, list[float]] = {
        "loading": [],
        "forward_and_losses": [],
        "backward": [],
        "optimiser": [],
    }
    draws = torch.Generator()

    def step() -> None:
        clock = time.perf_counter()
        clocks = [clock]
        batch = next(stream)
        clocks.append(time.perf_counter())
        terms = objective.batch_terms(stage, model, batch, draws)
        loss, _, _ = global_mean(terms, stage.weights)
        clocks.append(time.perf_counter())
        loss.backward()
        clocks.append(time.perf_counter())
        stepper.step()
        clocks.append(time.perf_counter())
        for part, (before, after) in zip(parts.values(), itertools.pairwise(clocks)):
            part.append(after - before)

    return step, parts


def alternate(
    bare: Callable[[], None], whole: Callable[[], None], rounds: int
) -> dict[str, list[float]]:
    """Time both in turn after a warm-up round, so that noise affects both."""
    times: dict[str, list[float]] = {"bare": [], "whole": []}
    for number in range(rounds + 1):
        for name, step in (("bare", bare), ("whole", whole)):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 1:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    run_program(lambda: tyro.cli(measure))
