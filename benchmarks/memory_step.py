"""Compare training steps of both stages with the bare backbone's, on pictures in RAM.

python benchmarks/memory_step.py
"""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from figures import publish

from adde.distributed import RankRows
from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.mining.distances import allow_tf32
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.terms import global_mean

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(small: bool) -> dict[str, float]:
    """Measure seconds per step and throughput relative to the bare backbone, by medians.

    ResNet-18, 224 px, batch 256, D = 340, with 12 attributes of 10 values and with 40 of 25;
    bf16, TF32 and IEEE float32. Small: test_resnet, 32 px, batch 16.
    """
    figures: dict[str, float] = {}
    backbone, side, items = ("test_resnet", 32, 16) if small else ("resnet18", 224, 256)
    for count, values in ((3, 4),) if small else ((12, 10), (40, 25)):
        schema = Schema(
            tuple(
                Attribute(f"a{number}", tuple(map(str, range(values)))) for number in range(count)
            )
        )
        settings = ModelSettings(backbone=backbone, image_size=side, width=340, hidden=340)
        for precision in ("bf16", "tf32", "fp32"):
            allow_tf32(precision == "tf32")
            steps = {"bare": bare_step(settings, items, precision)}
            for stage in ("encoder", "adde"):
                steps[stage] = whole_step(stage, settings, schema, items, precision)
            times = in_turns(steps, 2 if small else 10)
            name = f"a{count}_{precision}"
            for step, seconds in times.items():
                figures[f"seconds_{step}_{name}"] = seconds
                if step != "bare":
                    figures[f"{step}_vs_bare_{name}"] = times["bare"] / seconds
    return figures


def bare_step(settings: ModelSettings, items: int, precision: str) -> Callable[[], None]:
    """Make a step of the backbone alone: forward and backward."""
    model = timm.create_model(settings.backbone, num_classes=0).to(DEVICE)
    model = model.to(memory_format=torch.channels_last)
    side = settings.image_size
    images = torch.randn(items, 3, side, side, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(precision):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad()

    return step


def whole_step(
    stage: str, settings: ModelSettings, schema: Schema, items: int, precision: str
) -> Callable[[], None]:
    """Make a step like train/main.py's, from augmentation to optimiser."""
    model = ADDE(settings, schema).to(DEVICE)
    model.memory.requires_grad_(stage == "adde")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    objective = AddeObjective(schema, Augmentation(), margin=0.5)
    part = next(s for s in AddeConfig().stages() if s.name == stage)
    draws = torch.Generator().manual_seed(0)
    side = settings.image_size
    images = torch.randint(0, 256, (items, side, side, 3), dtype=torch.uint8).to(DEVICE)
    # Groups of four items that differ in one attribute, like edit groups.
    labels = torch.stack([torch.randint(size, (items // 4,)) for size in schema.sizes], 1)
    labels = labels.repeat_interleave(4, 0)
    labels[1::4, 0] = (labels[1::4, 0] + 1) % schema.sizes[0]
    batch = Batch(images, labels.to(DEVICE), [])

    def step() -> None:
        with autocast(precision):
            plan = objective.plan(part, batch, draws, RankRows.equal(items))
            out = objective.encode(model, plan, batch.images)
        loss, _, _ = global_mean(objective.terms(part, out, batch, plan), part.weights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def autocast(precision: str) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16")


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Run the steps in turn; return median seconds after two warm-ups."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(2 + rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    publish(measure(small=False), ("torch", "timm"), None)
