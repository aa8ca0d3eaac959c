"""Mining in row tiles: exact, on any device, no tensor larger than tile x M.

Group by group, and only among items whose label is known, a tile of anchors is held against all
columns. An anchor's distances to its negatives are sorted once, and each of its positives finds
its negative by one search: a tile costs O(tile M log M), and anchors without a positive (most of
them, for the joint label) cost nothing at all.

The loss is linear in the distances it uses, so its gradient is a coefficient per distance (+1 at
an active pair's positive, -1 at its negative). Each tile's coefficients are multiplied with the
embeddings while the tile is there, and only gradients of the inputs' shape are kept: the backward
has nothing to compute again.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import accumulator, squared_distances
from adde.schema import UNKNOWN

INFINITE_KEY = 0x7F800000 << 32
"""Float32 infinity in the upper half of an int64: sorts behind every distance and column."""

TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Distances in one tile: 16 MiB in float32 on a CPU, 256 MiB where rows must fill a GPU; about
six tensors of that size live at once. Other devices take the CPU's."""


class Choice(NamedTuple):
    """The pairs of T anchors with up to S positives each, all (T, S); what is no pair is False.

    Attributes:
        pair: bool.
        positive, negative: int64 columns.
        to_positive, to_negative: float distances.
    """

    pair: Tensor
    positive: Tensor
    negative: Tensor
    to_positive: Tensor
    to_negative: Tensor


class Mining(NamedTuple):
    """(G,) sums, pairs and active pairs; gradients of the sums in anchors and refs, or empty."""

    loss_sum: Tensor
    pairs: Tensor
    active: Tensor
    anchor_gradient: Tensor
    ref_gradient: Tensor


class Members(NamedTuple):
    """The columns in class order, small classes first, ascending inside a class.

    The columns of anchor i's class are `columns[start[i] : start[i] + size[i]]`.
    """

    columns: Tensor
    start: Tensor
    size: Tensor


def tile_rows(columns: int, device: torch.device) -> int:
    """Rows of one tile against that many columns."""
    elements = TILE_ELEMENTS.get(device.type, TILE_ELEMENTS["cpu"])
    return max(1, elements // max(1, columns))


def mine_in_tiles(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
    strategy: str,
    with_gradient: bool,
    choose: Callable[..., Choice],
) -> Mining:
    """See `adde.mining.mine`; arguments checked there. `choose` finds each pair's negative.

    Products are taken in the embeddings' dtype, sums kept in float32 (float64 for float64).
    """
    groups, dtype = len(anchors), accumulator(anchors[:0]).dtype
    loss_sum = anchors.new_zeros(groups, dtype=dtype)
    pairs, active = labels.new_zeros(groups), labels.new_zeros(groups)
    anchor_gradient = torch.zeros_like(anchors if with_gradient else anchors[:0], dtype=dtype)
    ref_gradient = torch.zeros_like(refs if with_gradient else refs[:0], dtype=dtype)
    for group in range(groups):
        known = (ref_labels[group] != UNKNOWN).nonzero()[:, 0]
        classes = ref_labels[group, known]
        members = _members(classes, labels[group])
        itself = torch.searchsorted(known, self_index).where(self_index >= 0, -1)
        positives = members.size - (itself >= 0).long()
        useful = (positives > 0) & (members.size < len(known)) & (labels[group] != UNKNOWN)
        # In class order too, so that a tile's anchors have about as many positives each.
        in_order = members.start.where(useful, -1).argsort(stable=True)[int((~useful).sum()) :]
        if not len(in_order):
            continue
        columns = refs[group, known]
        for tile in in_order.split(tile_rows(len(known), anchors.device)):
            rows = anchors[group, tile]
            its = Members(members.columns, members.start[tile], members.size[tile])
            found = choose(rows, columns, labels[group, tile], classes, its, strategy)
            pair = found.pair & (found.positive != itself[tile, None])
            hinge = (margin + found.to_positive - found.to_negative).clamp_(min=0)
            hinge = hinge.where(pair, 0)
            used = (hinge > 0).to(dtype)
            loss_sum[group] += hinge.sum()
            pairs[group] += pair.sum()
            active[group] += (hinge > 0).sum()
            if with_gradient:
                coefficients = used.new_zeros(len(tile), len(known))
                coefficients.scatter_add_(1, found.positive, used)
                coefficients.scatter_add_(1, found.negative, -used)
                pulls = _pulls(coefficients, rows, columns)
                anchor_gradient[group, tile] = pulls[0].to(dtype)
                ref_gradient[group].index_add_(0, known, pulls[1].to(dtype))
    return Mining(loss_sum, pairs, active, anchor_gradient, ref_gradient)


def choose_by_sorting(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    column_labels: Tensor,
    members: Members,
    strategy: str,
) -> Choice:
    """The negatives of rows (T, D) among columns (M, D): sorted once, searched per positive."""
    distances = squared_distances(rows[None], columns[None])[0]
    offsets = torch.arange(int(members.size.max()), device=rows.device)
    pair = offsets < members.size[:, None]
    places = (members.start[:, None] + offsets).where(pair, members.start[:, None])
    positive = members.columns[places]
    to_positive = distances.gather(1, positive)

    count = (len(columns) - members.size)[:, None]
    ascending, order = _sort(distances, labels[:, None] == column_labels)
    if strategy == "hardest":
        place = torch.zeros_like(positive)
    else:
        place = torch.searchsorted(ascending, to_positive, right=True)
        farthest = torch.searchsorted(ascending, ascending.gather(1, count - 1))
        place = place.where(place < count, farthest)
    negative = order.gather(1, place).long()
    return Choice(pair, positive, negative, to_positive, ascending.gather(1, place))


def _members(classes: Tensor, labels: Tensor) -> Members:
    by_class = classes.sort().values

    def size_and_rank(of: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.searchsorted(by_class, of)
        size = torch.searchsorted(by_class, of, right=True) - start
        return size, size * (len(classes) + 1) + start

    in_order, columns = size_and_rank(classes)[1].sort(stable=True)
    size, rank = size_and_rank(labels)
    return Members(columns, torch.searchsorted(in_order, rank), size)


def _sort(distances: Tensor, barred: Tensor) -> tuple[Tensor, Tensor]:
    """Each row ascending, equal distances in column order, barred ones last; and the columns."""
    if distances.dtype == torch.float64:
        return distances.masked_fill(barred, torch.inf).sort(dim=1, stable=True)
    # Distance and column share one integer, so that a plain sort does for both: no distance is
    # negative, and such floats sort as their bits do. numpy's sort of integers is vectorised,
    # ten times as fast as torch's sort with indices.
    keys = distances.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.masked_fill_(barred, INFINITE_KEY)
    keys += torch.arange(distances.shape[1], device=distances.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(dim=1).values
    halves = keys.view(torch.int32)
    return halves[:, 1::2].view(torch.float32).contiguous(), halves[:, 0::2]


def _pulls(coefficients: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in rows and columns of sum(coefficients * squared_distances(rows, columns)).

    A pair adds at its positive what it takes at its negative, so a row's coefficients sum to zero
    and its own place falls out. A coefficient counts pairs: bfloat16 rounds counts above 256, as
    it rounds the result.
    """
    own = coefficients.sum(0)[:, None] * columns
    coefficients = coefficients.to(columns.dtype)
    return -2 * (coefficients @ columns), 2 * (own - coefficients.mT @ rows)
