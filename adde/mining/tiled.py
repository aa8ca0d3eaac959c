"""Mining in tiles: exact, on any device, without tensors larger than a tile.

`group` first computes which rows and columns share labels, for all groups at once. A tile is a set
of anchors against all columns of known label: of many groups if batches are small, of one group if
they are large. A tile's distances to negatives are sorted once, and each positive finds its
negative by a search, so a tile costs O(tile M log M). Anchors without a positive (most of them, for
the joint label) cost nothing.

The loss is linear in the distances it uses, so its gradient has one coefficient per distance (+1 at
an active pair's positive, -1 at its negative). Each tile multiplies its coefficients with the
embeddings and keeps only gradients of the inputs' shape, so the backward pass recomputes nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import as_accumulated, squared_distances
from adde.schema import UNKNOWN

INFINITE_KEY = 0x7F800000 << 32
"""Float32 infinity in the upper half of an int64; sorts after every distance and column."""

TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Distances in one tile: 16 MiB in float32 on a CPU, 256 MiB on a GPU. About six tensors of that
size exist at once. Other devices use the CPU's value."""

JOINED_ELEMENTS = {"cpu": 1 << 16, "cuda": TILE_ELEMENTS["cuda"]}
"""Maximum distances in a tile shared by groups: small tiles leave a GPU waiting for kernel
launches, large ones exceed a CPU's cache."""

SLOT_COST = 4
"""Memory of a positive's slot, in distances, since more tensors have slots. A label that most items
have then gets tiles of fewer rows instead of more memory."""


class Chosen(NamedTuple):
    """The pairs of T anchors with up to S positives each; all fields are (G, T, S).

    Attributes:
        pair: bool, False for an unused slot.
        positive, negative: int64 columns.
        to_positive, to_negative: float distances.
    """

    pair: Tensor
    positive: Tensor
    negative: Tensor
    to_positive: Tensor
    to_negative: Tensor


class Mining(NamedTuple):
    """Sums, pairs and active pairs (G,); gradients of the sums in anchors and refs, or empty."""

    loss_sum: Tensor
    pairs: Tensor
    active: Tensor
    anchor_gradient: Tensor
    ref_gradient: Tensor


class Members(NamedTuple):
    """K columns of each of G groups, and the classes of T anchors among them.

    Attributes:
        columns: (G, K) int64 in class order, small classes first, ascending inside a class, those
            of unknown label last. The class of anchor i is
            `columns[g, start[g, i] : start[g, i] + size[g, i]]`.
        known: (G,) int64, the columns of known label.
        start, size: (G, T) int64; the size is 0 for an anchor that has no pair.
    """

    columns: Tensor
    known: Tensor
    start: Tensor
    size: Tensor


class Grouping(NamedTuple):
    """Grouping by the labels of N anchors and M columns in G groups.

    Groups are reordered: those with a large class come last.

    Attributes:
        group: (G,) int64, the number of each group.
        known: (G,) int64, the number of its columns with known labels.
        refs: (G, M) int64, these columns, ascending, then the others.
        columns: (G, M) int64, positions in `refs` in class order (see `Members`).
        start, size: (G, N) int64, of each anchor; see `Members`.
        own: (G, N) int64, the anchor's own position in `refs`, or -1.
        order: (G, N) int64, anchors without a pair first, then in class order.
        counts: (G, N + 1) int64, `known` and the sizes in that order; read on the host.
    """

    group: Tensor
    known: Tensor
    refs: Tensor
    columns: Tensor
    start: Tensor
    size: Tensor
    own: Tensor
    order: Tensor
    counts: Tensor

    @classmethod
    def unpack(cls, packed: Tensor, counts: Tensor, anchors: int) -> "Grouping":
        """Unpack the output of `group`, with `counts` on the host."""
        columns = (packed.shape[1] - 2 - 4 * anchors) // 2
        widths = [1, 1, columns, columns, anchors, anchors, anchors, anchors]
        number, known, refs, in_order, start, size, own, order = packed.split(widths, dim=1)
        number, known = number[:, 0], known[:, 0].contiguous()
        return cls(number, known, refs, in_order, start, size, own, order, counts)


def group(labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the `Grouping` of labels (G, N) and (G, M) without synchronising with the device.

    Returns:
        All but `counts` as one tensor, and `counts`.
    """
    unknown = ref_labels == UNKNOWN
    refs = unknown.byte().argsort(dim=1, stable=True)
    classes = ref_labels.gather(1, refs)
    known = (~unknown).sum(1)
    by_class = classes.sort(dim=1).values

    def size_and_rank(of: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.searchsorted(by_class, of.contiguous())
        size = torch.searchsorted(by_class, of.contiguous(), right=True) - start
        rank = size * (classes.shape[1] + 1) + start
        return size, rank.masked_fill(of == UNKNOWN, torch.iinfo(rank.dtype).max)

    in_order, columns = size_and_rank(classes)[1].sort(dim=1, stable=True)
    size, rank = size_and_rank(labels)
    places = torch.empty_like(refs)
    places.scatter_(1, refs, torch.arange(refs.shape[1], device=refs.device).expand_as(refs))
    own = places[:, self_index].where(self_index >= 0, -1)
    useful = (size > (own >= 0)) & (size < known[:, None]) & (labels != UNKNOWN)
    size = size.where(useful, 0)
    start = torch.searchsorted(in_order, rank).where(useful, 0)
    order = start.where(useful, -1).argsort(dim=1, stable=True)
    counts = torch.cat([known[:, None], size.gather(1, order)], dim=1)
    by_size = counts[:, -1].argsort(stable=True)[:, None]  # the largest class of those with a pair
    packed = torch.cat([known[:, None], refs, columns, start, size, own, order], dim=1)
    return torch.cat([by_size, packed[by_size[:, 0]]], dim=1), counts[by_size[:, 0]]


def tile_rows(columns: int, device: torch.device) -> int:
    """Return the number of rows in a tile against `columns` columns."""
    elements = TILE_ELEMENTS.get(device.type, TILE_ELEMENTS["cpu"])
    return max(1, elements // max(1, columns))


Tiles = list[tuple[slice, int]]


def _tiles(counts: Any, device: torch.device) -> Iterator[tuple[slice, int, Tiles]]:
    """Split the work of `Grouping.counts`, given as an array.

    Yields sets of groups with their largest number of known columns and, for each tile of anchors,
    its positions in `order` and its largest number of slots.
    """
    known, sizes = counts[:, 0], counts[:, 1:]
    with_pairs = (sizes > 0).sum(1)
    first, last = int((with_pairs == 0).sum()), len(counts)
    if first == last:
        return
    together = JOINED_ELEMENTS.get(device.type, JOINED_ELEMENTS["cpu"])
    every = max(1, together // (int(with_pairs.max()) * int(known.max())))
    for start in range(first, last, every):
        groups = slice(start, min(start + every, last))
        columns, tiles = int(known[groups].max()), Tiles()
        count, end = groups.stop - groups.start, sizes.shape[1]
        at = end - int(with_pairs[groups].max())
        while at < end:
            rows = min(tile_rows(count * columns, device), end - at)
            slots = int(sizes[groups, at + rows - 1].max())
            if SLOT_COST * slots > columns:
                rows = min(tile_rows(count * SLOT_COST * slots, device), end - at)
                slots = int(sizes[groups, at + rows - 1].max())
            tiles.append((slice(at, at + rows), slots))
            at += rows
        yield groups, columns, tiles


def mine_in_tiles(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    grouping: Grouping,
    margin: float,
    strategy: str,
    with_gradient: bool,
    choose: Callable[..., Chosen],
) -> Mining:
    """See `adde.mining.mine`, which checks the arguments. `choose` finds each pair's negative.

    Products are taken in the embeddings' dtype, sums kept in float32 (float64 for float64).
    """
    groups, dtype = len(anchors), as_accumulated(anchors[:0]).dtype
    loss_sum = anchors.new_zeros(groups, dtype=dtype)
    pairs, active = labels.new_zeros(groups), labels.new_zeros(groups)
    anchor_gradient = torch.zeros_like(anchors if with_gradient else anchors[:0], dtype=dtype)
    ref_gradient = torch.zeros_like(refs if with_gradient else refs[:0], dtype=dtype)
    for some, num_columns, tiles in _tiles(grouping.counts.numpy(), anchors.device):
        number, known, places, in_order, start, size, own, order, _ = (p[some] for p in grouping)
        number, places = number[:, None], places[:, :num_columns]
        columns, classes = refs[number, places], ref_labels[number, places]
        in_order = in_order[:, :num_columns].contiguous()
        ref_pull = torch.zeros_like(columns if with_gradient else columns[:0], dtype=dtype)
        for tile, slots in tiles:
            anchor = order[:, tile]
            rows = anchors[number, anchor]
            its = Members(in_order, known, start.gather(1, anchor), size.gather(1, anchor))
            found = choose(rows, columns, labels[number, anchor], classes, its, slots, strategy)
            pair = found.pair & (found.positive != own.gather(1, anchor)[..., None])
            hinge = (margin + found.to_positive - found.to_negative).clamp_(min=0)
            hinge = hinge.where(pair, 0)
            used = (hinge > 0).to(dtype)
            loss_sum.index_add_(0, number[:, 0], hinge.sum((1, 2)).to(dtype))
            pairs.index_add_(0, number[:, 0], pair.sum((1, 2)))
            active.index_add_(0, number[:, 0], (hinge > 0).sum((1, 2)))
            if with_gradient:
                coefficients = used.new_zeros(*anchor.shape, num_columns)
                coefficients.scatter_add_(2, found.positive, used)
                coefficients.scatter_add_(2, found.negative, -used)
                pulls = _distance_gradients(coefficients, rows, columns)
                anchor_gradient[number, anchor] = pulls[0].to(dtype)
                ref_pull += pulls[1]
        if with_gradient:
            ref_gradient[number, places] = ref_pull
    return Mining(loss_sum, pairs, active, anchor_gradient, ref_gradient)


def choose_by_sorting(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    column_labels: Tensor,
    members: Members,
    slots: int,
    strategy: str,
) -> Chosen:
    """Choose the negatives of rows (G, T, D) among columns (G, K, D) by sorting and searching.

    Args:
        rows: float embeddings.
        columns: float embeddings.
        labels: (G, T) int64.
        column_labels: (G, K) int64; columns with UNKNOWN are no negatives.
        members: the rows' classes.
        slots: S, at least the largest of them.
        strategy: see `adde.mining.mine`.
    """
    distances = squared_distances(rows, columns)
    pair, positive = positives(members, slots)
    to_positive = distances.gather(2, positive)

    column_labels = column_labels[:, None]
    barred = (labels[..., None] == column_labels) | (column_labels == UNKNOWN)
    ascending, order = _sort(distances, barred)
    if strategy == "hardest":
        place = torch.zeros_like(positive)
    else:
        count = (members.known[:, None] - members.size)[..., None]
        place = torch.searchsorted(ascending, to_positive, right=True)
        farthest = torch.searchsorted(ascending, ascending.gather(2, count - 1))
        place = place.where(place < count, farthest)
    negative = order.gather(2, place).long()
    return Chosen(pair, positive, negative, to_positive, ascending.gather(2, place))


def positives(members: Members, slots: int, slot: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (G, T, S) bool, whether the row's class has an i-th column, and int64, which it is.

    `slot` (G, T, S) has the columns' positions in their class if they are not in order.
    """
    offsets = torch.arange(slots, device=members.columns.device)
    pair = offsets < members.size[..., None]
    places = (members.start[..., None] + (offsets if slot is None else slot)).where(pair, 0)
    return pair, members.columns.gather(1, places.flatten(1)).view_as(places)


def _sort(distances: Tensor, barred: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row, ties in column order, barred columns last; return distances and columns."""
    if distances.dtype == torch.float64:
        return distances.masked_fill(barred, torch.inf).sort(dim=-1, stable=True)
    # Distance and column share one integer, so that one sort handles both: non-negative floats sort
    # like their bits. numpy's sort of integers is vectorised, ten times as fast as torch's sort
    # with indices.
    keys = distances.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.masked_fill_(barred, INFINITE_KEY)
    keys += torch.arange(distances.shape[-1], device=distances.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=-1)
    else:
        keys = keys.sort(dim=-1).values
    halves = keys.view(torch.int32)
    return halves[..., 1::2].view(torch.float32).contiguous(), halves[..., 0::2]


def _distance_gradients(
    coefficients: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradients in rows and columns of sum(coefficients * squared_distances(rows, columns)).

    A pair has +1 at its positive and -1 at its negative, so a row's coefficients sum to zero and
    the term of the row itself cancels. A coefficient counts pairs: bfloat16 rounds counts above
    256, as it rounds the result.
    """
    own = coefficients.sum(1)[..., None] * columns
    coefficients = coefficients.to(columns.dtype)
    return -2 * (coefficients @ columns), 2 * (own - coefficients.mT @ rows)
