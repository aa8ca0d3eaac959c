"""Learning rate, optimiser and averaged weights."""

import fnmatch
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adde.training.config import Optimizer, Schedule


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


def build_optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Over the parameters that are trained now; only weight matrices and kernels decay, without
    those that a part of the model names in `no_weight_decay()`, timm's name for it.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    spared = _without_decay(model, [n for n, _ in trained])
    decayed = {n for n, p in trained if p.ndim > 1 and not n.endswith("bias") and n not in spared}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained if n in decayed], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


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


class Snapshot:
    """Copies of a few tensors that are changed in place, to go back to."""

    def __init__(self, tensors: list[Tensor]) -> None:
        # By type: copied together, in one launch instead of one for each.
        self._pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for tensor in tensors:
            live, kept = self._pairs.setdefault(tensor.dtype, ([], []))
            live.append(tensor)
            kept.append(tensor.detach().clone())

    @torch.no_grad()
    def save(self) -> None:
        """Takes the tensors as they are now."""
        for live, kept in self._pairs.values():
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Makes the tensors what they were."""
        for live, kept in self._pairs.values():
            torch._foreach_copy_(live, kept)
