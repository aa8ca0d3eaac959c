"""Learning rate, optimiser, averaged weights, and snapshots of tensors."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adde.training.config import Optimizer, Schedule


@dataclass(frozen=True)
class Rate:
    """How the optimiser treats a submodule."""

    factor: float = 1.0
    """Its learning rate relative to the schedule's."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decays of the first and second moment."""


NO_RATES: Mapping[str, Rate] = MappingProxyType({})
"""Every submodule has the schedule's learning rate."""


def learning_rate(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step `step` (from 0) of a stage of `steps` steps."""
    warmup = schedule.warmup * steps
    if step < warmup:
        return schedule.learning_rate * (step + 1) / (warmup + 1)
    if schedule.kind == "cosine":
        progress = (step - warmup) / max(1.0, steps - warmup)
        return schedule.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if schedule.kind == "step":
        drops = int(step / (schedule.step_epochs * steps_per_epoch))
        return schedule.learning_rate * schedule.step_factor**drops
    return schedule.learning_rate


def build_optimizer(
    settings: Optimizer, model: nn.Module, rates: Mapping[str, Rate] = NO_RATES
) -> torch.optim.Optimizer:
    """Build the optimiser of the parameters that require gradients.

    Only weight matrices and kernels decay, except those that a submodule lists in timm's
    `no_weight_decay()`.

    Args:
        settings: of the run.
        model: its parameters are trained.
        rates: by the names of submodules; the longest name that matches a parameter counts.
    """
    for name in rates:
        model.get_submodule(name)  # raises if there is none
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    spared = _without_decay(model, [n for n, _ in trained])
    decayed = {n for n, p in trained if p.ndim > 1 and not n.endswith("bias") and n not in spared}
    part_of = {n: _part_of(n, rates) for n, _ in trained}
    groups: list[dict[str, Any]] = []
    for part, rate in {"": Rate(), **rates}.items():
        options: dict[str, Any] = {"rate": rate.factor}
        if settings.name == "adamw":
            options["betas"] = rate.betas
        mine = [(n, p) for n, p in trained if part_of[n] == part]
        for decay, found in (
            (settings.weight_decay, [p for n, p in mine if n in decayed]),
            (0.0, [p for n, p in mine if n not in decayed]),
        ):
            if found:
                groups.append({"params": found, "weight_decay": decay, **options})
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.0, alpha=0.8)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: its factor times the schedule's."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def _part_of(name: str, rates: Mapping[str, Rate]) -> str:
    """Return the longest name of `rates` that a parameter's name begins with, or ""."""
    return max((part for part in rates if name.startswith(f"{part}.")), key=len, default="")


def _without_decay(model: nn.Module, names: list[str]) -> set[str]:
    """Return the `names` that submodules exempt, also by pattern, such as `pos_embed.*`."""
    return {
        name
        for prefix, part in model.named_modules()
        if hasattr(part, "no_weight_decay")
        for pattern in cast("set[str]", cast(Any, part).no_weight_decay())
        for name in fnmatch.filter(names, f"{prefix}.{pattern}".lstrip("."))
    }


class Averages:
    """Exponential moving averages of named tensors; the first step's values start them."""

    def __init__(self, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, current: dict[str, Tensor]) -> None:
        """Move the averages towards `current`; integers (counters) are copied."""
        if not self.tensors:
            self.tensors = {name: value.detach().clone() for name, value in current.items()}
            return
        floating = [name for name, value in current.items() if value.is_floating_point()]
        mine = [self.tensors[name] for name in floating]
        self._average(mine, [current[name] for name in floating], 1)  # pyright: ignore[reportArgumentType]
        for name in current.keys() - set(floating):
            self.tensors[name].copy_(current[name])


class Snapshot:
    """Copies of tensors that are changed in place, to restore them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        # Grouped by type, so that one launch copies all of them.
        self._pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for tensor in tensors:
            live, saved = self._pairs.setdefault(tensor.dtype, ([], []))
            live.append(tensor)
            saved.append(tensor.detach().clone())

    @torch.no_grad()
    def save(self) -> None:
        """Copy the tensors as they are now."""
        for live, saved in self._pairs.values():
            torch._foreach_copy_(saved, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the tensors to what they were."""
        for live, saved in self._pairs.values():
            torch._foreach_copy_(live, saved)
