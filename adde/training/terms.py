"""Named loss terms, and their mean over all ranks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adde.distributed import sum_over_ranks, world_size
from adde.loading.batch import Batch
from adde.losses import Term

Outputs = tuple[Tensor | None, ...]
"""A model's outputs, as a NamedTuple: tensors with a row per item, and scalars of the batch."""


@dataclass(frozen=True)
class Terms:
    """Loss terms, and shares (fractions of a whole) that are logged but not minimised, by name."""

    losses: dict[str, Term]
    shares: dict[str, Term]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the parts, of terms and shares whose parts are logged too. A term may list its parts
    several times, for several roles."""


def global_mean(
    terms: Terms, weights: Mapping[str, float], flag: bool = False
) -> tuple[Tensor, dict[str, float], bool]:
    """Return the weighted loss over all ranks, its scalars, and whether any rank raised `flag`.

    Scalars are `loss`, every term and share by name, and `<name>/<part>` for named parts that occur
    in the batch.

    One collective carries everything. The returned loss is multiplied by the number of ranks,
    because data parallelism averages gradients. If any rank's figures are not finite, the loss and
    so its gradients are NaN on all ranks, and every strategy skips the step.

    Args:
        terms: of this rank.
        weights: of the loss terms, by name.
        flag: of this rank.
    """
    named = {**terms.losses, **terms.shares}
    packed = [torch.cat([term.counts, term.sums.detach()]) for term in named.values()]
    device = packed[0].device
    reduced = sum_over_ranks(torch.cat([*packed, torch.full((1,), float(flag), device=device)]))
    loss = torch.zeros((), device=device)
    means: dict[str, Tensor] = {}
    details: dict[str, Tensor] = {}
    for (name, term), piece in zip(named.items(), reduced[:-1].split([len(p) for p in packed])):
        found, sums = piece.chunk(2)
        counts = found.clamp(min=1)
        ratios = sums / counts
        means[name] = ratios.sum()
        if name in terms.losses:
            loss = loss + weights[name] * (term.sums / counts).sum()
        else:
            means[name] = means[name] / (found > 0).sum().clamp(min=1)
        if width := len(terms.parts.get(name, ())):
            known = found.view(-1, width).sum(0) > 0
            details[name] = torch.where(known, ratios.view(-1, width).sum(0), torch.nan)
    total = torch.stack([weights[name] * means[name] for name in terms.losses]).sum()
    # One transfer to the host for all values.
    whole = torch.stack([reduced[-1], total, *means.values()])
    flag_sum, *values = torch.cat([whole, *details.values()]).tolist()
    names = ["loss", *means, *(f"{name}/{part}" for name in details for part in terms.parts[name])]
    scalars = {n: v for n, v in zip(names, values) if "/" not in n or not math.isnan(v)}
    if not_finite(scalars):
        loss = loss * math.nan
    return loss * world_size(), scalars, flag_sum > 0


def not_finite(scalars: dict[str, float]) -> list[str]:
    """Return the names of scalars that are NaN or infinite; `embeddings` if any item's are."""
    names = [name for name, value in scalars.items() if not math.isfinite(value)]
    return names + ["embeddings"] * (scalars.get("nonfinite", 0.0) > 0)


def finite_rows(out: Outputs) -> Tensor:
    """Return (b,) bool: whether all outputs of an item are finite."""
    found = [v.detach().flatten(1).sum(1) for v in out if v is not None and v.ndim]
    return torch.stack(found).isfinite().all(0)


def item_shares(batch: Batch, finite: Tensor) -> dict[str, Term]:
    """Return the shares that the engine needs in every method's terms.

    `skipped` counts samples that could not be read and were replaced. `nonfinite` counts items
    whose outputs are not finite, from `finite` (b,) bool; any such item voids the step.
    """
    items = torch.full((1,), float(len(finite)), device=finite.device)
    faults = torch.full((1,), float(len(batch.faults)), device=finite.device)
    return {"skipped": Term(faults, items), "nonfinite": Term(items - finite.sum(), items)}
