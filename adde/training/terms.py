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
"""What a model gives, as a NamedTuple: tensors with a row per item, and scalars of no item."""


@dataclass(frozen=True)
class Terms:
    """Loss terms by name, and shares (part, whole) that are logged but not minimised."""

    losses: dict[str, Term]
    shares: dict[str, Term]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the parts of terms and shares whose parts are logged too; a term may go through
    them several times, for several roles."""


def global_mean(
    terms: Terms, weights: Mapping[str, float], flag: bool = False
) -> tuple[Tensor, dict[str, float], bool]:
    """The weighted loss over all ranks, its terms and shares, and whether any rank raised `flag`.

    Scalars are `loss`, every term and share by its name, and `<name>/<part>` of those whose parts
    are named, where the batch has any of it.

    One collective carries everything. The returned loss is scaled by the number of ranks, since
    data parallelism averages gradients. Where any rank's figures are not finite it is NaN on all,
    and so are its gradients, by which every strategy knows a step that must not be taken.

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
    # One transfer for all values, and not one each.
    whole = torch.stack([reduced[-1], total, *means.values()])
    flag_sum, *values = torch.cat([whole, *details.values()]).tolist()
    names = ["loss", *means, *(f"{name}/{part}" for name in details for part in terms.parts[name])]
    scalars = {n: v for n, v in zip(names, values) if "/" not in n or not math.isnan(v)}
    if not_finite(scalars):
        loss = loss * math.nan
    return loss * world_size(), scalars, flag_sum > 0


def not_finite(scalars: dict[str, float]) -> list[str]:
    """Names of the scalars that are NaN or infinite, and `embeddings` where any item's are."""
    names = [name for name, value in scalars.items() if not math.isfinite(value)]
    return names + ["embeddings"] * (scalars.get("nonfinite", 0.0) > 0)


def finite_rows(out: Outputs) -> Tensor:
    """(b,) bool: whether all that the model gives for an item is finite."""
    found = [v.detach().flatten(1).sum(1) for v in out if v is not None and v.ndim]
    return torch.stack(found).isfinite().all(0)


def item_shares(batch: Batch, finite: Tensor) -> dict[str, Term]:
    """The shares that the engine watches in every method's terms.

    `skipped` are samples that could not be read and have another in their place; `nonfinite` are
    items whose outputs are not finite, as `finite` (b,) bool says, which makes the step void.
    """
    items = torch.full((1,), float(len(finite)), device=finite.device)
    faults = torch.full((1,), float(len(batch.faults)), device=finite.device)
    return {"skipped": Term(faults, items), "nonfinite": Term(items - finite.sum(), items)}
