"""Learning rate, optimiser and averaged weights."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
    """Over the parameters that are trained now; only weight matrices and kernels decay."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = {n for n, p in trained if p.ndim > 1 and not n.endswith("bias") and "memory" not in n}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained if n in decayed], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


class StageOptimizer:
    """The optimiser of one stage, with clipping and averaging, as the loop uses it."""

    def __init__(
        self, accelerator: Accelerator, settings: Optimizer, model: nn.Module, optimizer: Any
    ) -> None:
        self._accelerator, self._settings = accelerator, settings
        self._model, self._optimizer = model, optimizer
        self._bare: Any = accelerator.unwrap_model(model)
        self.averaged: AveragedModel | None = None
        if settings.ema:
            average = get_ema_multi_avg_fn(settings.ema)
            self.averaged = AveragedModel(self._bare, multi_avg_fn=average, use_buffers=True)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of all groups."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self) -> float:
        """Clips, steps, averages, clears; returns the gradient's global norm before clipping."""
        largest = self._settings.clip_norm or math.inf
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), largest)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self._bare)
        return float(norm) if norm is not None else 0.0
