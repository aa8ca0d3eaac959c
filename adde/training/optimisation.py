"""Learning rate, optimiser, averaged weights, and snapshots of tensors."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from adde.errors import UserError, did_you_mean
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
    `no_weight_decay()`. A parameter's rate is the product of the stage's, the recipe's and its
    layer's.

    Args:
        settings: of the run.
        model: its parameters are trained.
        rates: of the stage, by the names of submodules; the longest name that matches a parameter
            counts.

    Raises:
        UserError: a rate is that of a part which the model does not have.
    """
    require_parts(model, rates, "Stage.rates")
    require_parts(model, settings.rates, "optimizer.rates")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    spared = _without_decay(model, [n for n, _ in trained])
    layers = _layer_factors(model, settings.layer_decay) if settings.layer_decay < 1 else {}
    groups: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in trained:
        rate = rates.get(_part_of(name, rates), Rate())
        factor = rate.factor * settings.rates.get(_part_of(name, settings.rates), 1.0)
        decays = parameter.ndim > 1 and not name.endswith("bias") and name not in spared
        # Parts that begin to learn later need groups of their own under ZeRO, which counts steps by
        # group.
        later = _part_of(name, settings.frozen)
        key = (not decays, later, factor * layers.get(name, 1.0), rate.betas)
        groups.setdefault(key, []).append(parameter)
    options = [
        {
            "params": groups[key],
            "weight_decay": 0.0 if key[0] else settings.weight_decay,
            "rate": key[2],
            **({"betas": key[3]} if settings.name == "adamw" else {}),
        }
        for key in sorted(groups)
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(options, lr=0.0, momentum=0.9)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(options, lr=0.0, alpha=0.8)
    return torch.optim.AdamW(options, lr=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: its factor times the schedule's."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def require_parts(model: nn.Module, parts: Iterable[str], setting: str) -> None:
    """Raise UserError if the model has no submodule of a name; names the nearest ones.

    "" is the whole model.
    """
    names = [name for name, _ in model.named_modules() if name]
    for part in parts:
        if part and part not in names:
            raise UserError(
                f"{setting}: expected the name of a part of the model, found {part!r}; "
                f"{did_you_mean(part, names)}"
            )


def _part_of(name: str, parts: Iterable[str]) -> str:
    """Return the longest name of `parts` that a parameter's name begins with, or ""."""
    return max((part for part in parts if name.startswith(f"{part}.")), key=len, default="")


def _layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factors of the parameters of timm models: 1 in the last layer, `decay` below.

    Raises:
        UserError: there is no model whose layers timm knows.
    """
    found: dict[str, float] = {}
    for prefix, part in model.named_modules():
        if hasattr(part, "group_matcher"):
            from timm.models import group_parameters

            matcher = cast(Any, part).group_matcher(coarse=False)
            layers: Any = group_parameters(part, matcher, reverse=True)
            last = max(layers.values())
            named = {f"{prefix}.{name}".lstrip("."): number for name, number in layers.items()}
            found |= {name: decay ** (last - number) for name, number in named.items()}
    if not found:
        raise UserError(
            f"optimizer.layer_decay: expected 1, because timm knows no layers of this model, found "
            f"{decay:g}; use optimizer.rates"
        )
    return found


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
    """Exponential moving averages of named tensors; the first step's values start them.

    Args:
        decay: per step.
        warmup: let the decay grow to `decay` as (1 + t) / (10 + t) with the steps t.
    """

    def __init__(self, decay: float, warmup: bool) -> None:
        self._decay, self._warmup = decay, warmup
        self.tensors: dict[str, Tensor] = {}
        self.steps = 0
        """Steps of the stage so far, with those that were skipped."""

    @torch.no_grad()
    def update(self, current: dict[str, Tensor]) -> None:
        """Move the averages towards `current`; integers (counters) are copied."""
        if not self.tensors:
            self.tensors = {name: value.detach().clone() for name, value in current.items()}
            return
        decay = self._decay
        if self._warmup:
            decay = min(decay, (1 + self.steps) / (10 + self.steps))
        floating = [name for name, value in current.items() if value.is_floating_point()]
        mine = [self.tensors[name] for name in floating]
        torch._foreach_lerp_(mine, [current[name] for name in floating], 1 - decay)
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
