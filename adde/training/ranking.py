"""`adde.metrics` and `adde.edits` with products and sorting by torch, on a GPU if there is one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from adde import edits, metrics
from adde.mining.distances import full_precision
from adde.schema import Schema, Vector
from adde.scoring import parts


def top_k_on(device: torch.device) -> metrics.Search:
    """Return `metrics.top_k`, or the same on a GPU."""
    return metrics.top_k if device.type == "cpu" else partial(top_k, device)


def top_k(device: torch.device, queries: Vector, gallery: Vector, k: int) -> metrics.Places:
    """As `metrics.top_k`, on `device`; ties go to the lowest row."""
    rows = torch.from_numpy(gallery).to(device)
    norms = rows.square().sum(1)
    found = [torch.empty((0, min(k, len(rows))), dtype=torch.int64, device=device)]
    with full_precision(rows):
        for block in metrics.blocks_of(len(queries), len(rows)):
            part = torch.from_numpy(queries[block]).to(device)
            found.append(_smallest(torch.addmm(norms, part, rows.mT, alpha=-2.0), k))
    return torch.cat(found).cpu().numpy()


def ranked_on(device: torch.device) -> metrics.On:
    """Return where `metrics.baseline_rankings` computes: on a GPU if there is one."""
    return metrics.HERE if device.type == "cpu" else placed_on(device)


def placed_on(device: torch.device) -> metrics.On:
    """Compute products and sort on `device`; ties go to the lowest row."""
    return metrics.On(
        lambda array: torch.from_numpy(array).to(device),
        lambda costs, k: _smallest(costs, k).cpu().numpy(),
    )


def best_matches_on(device: torch.device) -> edits.Best:
    """Return `adde.edits.best_matches`, or the same on a GPU."""
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
    """As `adde.edits.best_matches`, on `device`."""
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
    # topk keeps any of the values that tie with the last one: sort the whole row then.
    tied = (costs <= costs.gather(1, ranked[:, -1:])).sum(1) > ranked.shape[1]
    ranked[tied] = costs[tied].argsort(dim=1, stable=True)[:, : ranked.shape[1]]
    return ranked
