"""Ranking on the device that trains: `adde.metrics` and `adde.edits` with torch's products."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from adde import edits, metrics
from adde.mining.distances import full_precision
from adde.schema import Schema, Vector
from adde.scoring import parts


def top_k_on(device: torch.device) -> metrics.Search:
    """`metrics.top_k`, on a GPU where there is one."""
    return metrics.top_k if device.type == "cpu" else partial(top_k, device)


def top_k(device: torch.device, queries: Vector, gallery: Vector, k: int) -> metrics.Places:
    """As `metrics.top_k`, ties to the lowest row; products and sorting on `device`."""
    rows = torch.from_numpy(gallery).to(device)
    norms = rows.square().sum(1)
    found = [torch.empty((0, min(k, len(rows))), dtype=torch.int64, device=device)]
    with full_precision(rows):
        for block in metrics.blocks_of(len(queries), len(rows)):
            part = torch.from_numpy(queries[block]).to(device)
            found.append(_smallest(torch.addmm(norms, part, rows.mT, alpha=-2.0), k))
    return torch.cat(found).cpu().numpy()


def ranked_on(device: torch.device) -> metrics.On:
    """Where `metrics.baseline_rankings` takes products and sorts: a GPU where there is one."""
    return metrics.HERE if device.type == "cpu" else placed_on(device)


def placed_on(device: torch.device) -> metrics.On:
    """Products and sorting on `device`, ties to the lowest row."""
    return metrics.On(
        lambda array: torch.from_numpy(array).to(device),
        lambda costs, k: _smallest(costs, k).cpu().numpy(),
    )


def best_matches_on(device: torch.device) -> edits.Best:
    """`adde.edits.best_matches`, on a GPU where there is one."""
    return edits.best_matches if device.type == "cpu" else partial(best_matches, device)


def best_matches(
    device: torch.device,
    wanted: Vector,
    weights: Vector,
    beliefs: Vector,
    schema: Schema,
    epsilon: float,
    counts: Sequence[int],
) -> list[metrics.Places]:
    """As `adde.edits.best_matches`; products, logarithms and sorting on `device`."""
    asked, weighed, items = (torch.from_numpy(a).to(device) for a in (wanted, weights, beliefs))
    costs = torch.zeros((*weighed.shape[:2], len(items)), device=device)
    with full_precision(items):
        for a, part in enumerate(parts(schema)):
            probability = (asked[:, part] @ items[:, part].mT).clamp(0, 1)
            costs -= weighed[..., a, None] * (epsilon + probability).clamp(min=1e-30).log()
    return [_smallest(one, k).cpu().numpy() for one, k in zip(costs, counts)]


def _smallest(costs: Tensor, k: int) -> Tensor:
    """As `metrics.smallest`."""
    chosen = costs.topk(min(k, costs.shape[1]), largest=False, sorted=False).indices.sort(1).values
    order = costs.gather(1, chosen).argsort(dim=1, stable=True)
    ranked = chosen.gather(1, order)
    # topk keeps any of those equal to the last one in; there, sort the whole row.
    tied = (costs <= costs.gather(1, ranked[:, -1:])).sum(1) > ranked.shape[1]
    ranked[tied] = costs[tied].argsort(dim=1, stable=True)[:, : ranked.shape[1]]
    return ranked
