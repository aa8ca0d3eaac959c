"""Mining in row tiles: exact, on any device, no tensor larger than G x tile x M.

A pair's negative is found by one search in the anchor's sorted distances to its negatives, so a
tile costs O(tile M log M) and not O(tile M^2). The loss is linear in the distances it uses, so
its gradient is a coefficient per distance (+1 at an active pair's positive, -1 at its negative).
The forward multiplies each tile's coefficients with the embeddings while the tile is there and
keeps only gradients of the inputs' shape: the backward has nothing to compute again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adde.mining.distances import accumulator, squared_distances
from adde.schema import UNKNOWN

TILE_ELEMENTS = 1 << 22
"""Distances in one tile: 16 MiB in float32, and about six tensors of that size live at once."""


def tiled_loss(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
    strategy: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `adde.mining.mine`; arguments checked there."""
    return _TiledLoss.apply(anchors, labels, refs, ref_labels, self_index, margin, strategy)  # pyright: ignore[reportReturnType]


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        labels: Tensor,
        refs: Tensor,
        ref_labels: Tensor,
        self_index: Tensor,
        margin: float,
        strategy: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = accumulator(anchors), accumulator(refs)
        groups = len(rows)
        loss_sum = rows.new_zeros(groups)
        pairs, active = labels.new_zeros(groups), labels.new_zeros(groups)
        needs_gradient = any(ctx.needs_input_grad)
        row_gradient = torch.zeros_like(rows) if needs_gradient else None
        column_gradient = torch.zeros_like(columns) if needs_gradient else None
        tile = max(1, TILE_ELEMENTS // max(1, groups * columns.shape[1]))
        for start in range(0, rows.shape[1], tile):
            stop = min(start + tile, rows.shape[1])
            part = rows[:, start:stop]
            distances = squared_distances(part, columns)
            positive, negative = _masks(labels[:, start:stop], ref_labels, self_index[start:stop])
            hinge, pair, chosen = _pairs(distances, positive, negative, margin, strategy)
            loss_sum += hinge.sum((1, 2))
            pairs += pair.sum((1, 2))
            active += (hinge > 0).sum((1, 2))
            if row_gradient is not None and column_gradient is not None:
                use = (hinge > 0).to(rows.dtype)
                coefficients = use.scatter_add(2, chosen, -use)
                row_gradient[:, start:stop] = _pull(coefficients, part, columns)
                column_gradient += _pull(coefficients.mT, columns, part)
        ctx.save_for_backward(row_gradient, column_gradient)
        ctx.dtype = anchors.dtype
        ctx.mark_non_differentiable(pairs, active)
        return loss_sum, pairs, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = gradients[0][:, None, None]
        row_gradient, column_gradient = ctx.saved_tensors
        row_gradient = (row_gradient * scale).to(ctx.dtype)
        column_gradient = (column_gradient * scale).to(ctx.dtype)
        return row_gradient, None, column_gradient, None, None, None, None


def _masks(labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative columns of each row, both (G, T, M) bool."""
    same = labels[:, :, None] == ref_labels[:, None, :]
    known = (labels != UNKNOWN)[:, :, None] & (ref_labels != UNKNOWN)[:, None, :]
    positive = same & known
    positive[:, torch.arange(len(self_index), device=labels.device), self_index] = False
    return positive, ~same & known


def _pairs(
    distances: Tensor, positive: Tensor, negative: Tensor, margin: float, strategy: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (0 where no pair), whether a pair, and the negative's column; each (G, T, M)."""
    count = negative.sum(-1, keepdim=True)
    # A stable sort keeps equal distances in column order, so the first of equals is the lowest.
    ascending, columns = torch.where(negative, distances, torch.inf).sort(dim=-1, stable=True)
    if strategy == "hardest":
        place = torch.zeros_like(columns)
    else:
        place = torch.searchsorted(ascending, distances, right=True)
        largest = ascending.gather(-1, (count - 1).clamp(min=0))
        place = torch.where(place < count, place, torch.searchsorted(ascending, largest))
    pair = positive & (count > 0)
    to_negative = ascending.gather(-1, place)
    hinge = torch.where(pair, (margin + distances - to_negative).clamp(min=0), 0.0)
    return hinge, pair, columns.gather(-1, place)


def _pull(coefficients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gradient in `rows` of sum(coefficients * squared_distances(rows, columns))."""
    pull = coefficients.sum(-1, keepdim=True) * rows
    return 2 * (pull - torch.bmm(coefficients, columns))
