"""Learning rate, optimiser and averaged weights."""

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
    """How the optimiser treats a part of the model."""

    factor: float = 1.0
    """Of the schedule's learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decays of the first and second moment."""


NO_RATES: Mapping[str, Rate] = MappingProxyType({})
"""Every part has the schedule's rate."""


def learning_rate(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of step `step` (from 0) of a stage of `steps`: a function of the position alone."""
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
    """Over the parameters that are trained now; only weight matrices and kernels decay, without
    those that a part of the model names in `no_weight_decay()`, timm's name for it.

    Each group's `rate` is the factor of the schedule's learning rate (`set_rate`).

    Args:
        settings: of the run.
        model: whose parameters are trained.
        rates: of submodules by name; the longest name that fits a parameter counts.
    """
    for name in rates:
        model.get_submodule(name)  # raises where there is none
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
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group: its own factor of the schedule's."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def _part_of(name: str, rates: Mapping[str, Rate]) -> str:
    """The longest of the parts' names that a parameter's begins with; "" where none does."""
    return max((part for part in rates if name.startswith(f"{part}.")), key=len, default="")


def _without_decay(model: nn.Module, names: list[str]) -> set[str]:
    """Those of `names` that a part of the model spares; by pattern, such as `pos_embed.*`, too."""
    return {
        name
        for prefix, part in model.named_modules()
        if hasattr(part, "no_weight_decay")
        for pattern in cast("set[str]", cast(Any, part).no_weight_decay())
        for name in fnmatch.filter(names, f"{prefix}.{pattern}".lstrip("."))
    }


class Averages:
    """Exponential moving averages of named tensors, from the first step's values on."""

    def __init__(self, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, current: dict[str, Tensor]) -> None:
        """Moves the averages towards `current`; counters (integers) are taken as they are."""
        if not self.tensors:
            self.tensors = {name: value.detach().clone() for name, value in current.items()}
            return
        floating = [name for name, value in current.items() if value.is_floating_point()]
        mine = [self.tensors[name] for name in floating]
        self._average(mine, [current[name] for name in floating], 1)  # pyright: ignore[reportArgumentType]
        for name in current.keys() - set(floating):
            self.tensors[name].copy_(current[name])


class Kept:
    """Copies of a few tensors that are changed in place, to go back to."""

    def __init__(self, tensors: list[Tensor]) -> None:
        # By type: copied together, in one launch instead of one for each.
        self._pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for tensor in tensors:
            live, kept = self._pairs.setdefault(tensor.dtype, ([], []))
            live.append(tensor)
            kept.append(tensor.detach().clone())

    @torch.no_grad()
    def keep(self) -> None:
        """Takes the tensors as they are now."""
        for live, kept in self._pairs.values():
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def undo(self) -> None:
        """Makes the tensors what they were."""
        for live, kept in self._pairs.values():
            torch._foreach_copy_(live, kept)
