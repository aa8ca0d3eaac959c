"""Manipulation triplets from the batch: an edit, the item that shows it, and a hard negative.

Edits and positives follow from the labels alone, so they are drawn before the forward pass and
the edited query is computed inside it; only the negative waits for the embeddings. Both go
through tiles of rows, attribute by attribute: no tensor is larger than tile x M, no loop is over
items, and nothing is read back from the device.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import as_accumulated, full_precision, squared_distances
from adde.mining.draws import pair_bits, words
from adde.mining.tiled import tile_rows
from adde.schema import UNKNOWN

POSITIVE_KEY = 1 << 62
"""Beyond every key of `draw_key`: the draws of positives have one of their own."""


class DrawnEdits(NamedTuple):
    """One edit per reference.

    Attributes:
        targets: (N, A) int64, the reference's labels with the edit made.
        positive: (N,) int64, the row of the global batch taken as the positive.
        exact: (N,) bool, the positive's labels equal `targets` and the edit is of one attribute.
        usable: (N,) bool, False where the batch holds no positive at all; the rest of such a
            row means nothing (its targets are the reference's own labels).
    """

    targets: Tensor
    positive: Tensor
    exact: Tensor
    usable: Tensor


def draw_edits(
    labels: Tensor, all_labels: Tensor, items: Tensor, key: int, offsets: Tensor
) -> DrawnEdits:
    """Draws for each reference an edit that has an exact target in the global batch.

    An exact target differs from the reference in one attribute, known on both. The edit is
    uniform over the (attribute, value) pairs that have one, its positive uniform over the items
    that show it. Where none is exact, the positive is the item with the fewest differing
    attributes (UNKNOWN equals only UNKNOWN) among those with one that is known on both, ties to
    the lowest row, and the edit sets all attributes that are known on both.

    Args:
        labels: (N, A) int64, labels of this rank's references.
        all_labels: (M, A) int64, labels of the global batch.
        items: (N,) int64, the references' rows in the global batch.
        key: of `draw_key`, the same on all ranks: what is drawn depends on it, on the item and on
            the value's column alone.
        offsets: (A,) int64, first column of each attribute.
    """
    count = len(labels)
    edits = DrawnEdits(
        torch.empty_like(labels),
        labels.new_empty(count),
        *(labels.new_empty(count, dtype=torch.bool) for _ in range(2)),
    )
    for rows in _tiles(count, len(all_labels), labels.device):
        tile = _draw_tile(labels[rows], all_labels, items[rows], key, offsets)
        for whole, part in zip(edits, tile):
            whole[rows] = part
    return edits


def _tiles(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of the rows, of which about four int64 tensors against all columns live at once.

    What a tile gives is written into tensors made before: kept one by one, such small ones would
    lie between the large, and malloc finds no room between them for the next (a GB at M = 16,384).
    """
    tile = tile_rows(4 * columns, device)
    return (slice(start, start + tile) for start in range(0, rows, tile))


def _draw_tile(
    labels: Tensor, all_labels: Tensor, items: Tensor, key: int, offsets: Tensor
) -> DrawnEdits:
    column_words = words(~key, (all_labels + offsets).clamp(min=0))
    shown = column_words.new_zeros(len(labels), len(all_labels))
    differing, edited = (torch.zeros_like(shown, dtype=torch.int16) for _ in range(2))
    for attribute, (differ, change) in enumerate(_label_differences(labels, all_labels)):
        differing += differ
        edited += change
        shown = torch.where(change, column_words[:, attribute], shown)
    exact_pair = (differing == 1) & (edited == 1)
    # One draw for each edit, whichever items show it: edits are uniform, not items.
    edit_bits = pair_bits(words(key, items)[:, None], shown).masked_fill_(~exact_pair, -1)
    shows = exact_pair & (edit_bits == edit_bits.amax(1, keepdim=True))
    item_bits = words(key ^ POSITIVE_KEY, torch.arange(len(all_labels), device=labels.device))
    exact_positive = torch.where(shows, item_bits & 0x7FFFFFFF, -1).argmax(1)

    num_attributes = labels.shape[1]
    nearest_cost, nearest = torch.where(edited > 0, differing, num_attributes + 1).min(1)
    exact = exact_pair.any(1)
    positive = torch.where(exact, exact_positive, nearest)
    shown_labels = all_labels[positive]
    known = (labels != UNKNOWN) & (shown_labels != UNKNOWN)
    usable = nearest_cost <= num_attributes
    targets = torch.where(known & usable[:, None], shown_labels, labels)
    return DrawnEdits(targets, positive, exact, usable)


def semihard_negatives(
    queries: Tensor, targets: Tensor, positive: Tensor, refs: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The hardest semi-hard negative of each edited query.

    A negative is an item that differs from the target in an attribute known on both. Chosen: the
    one with the smallest distance above the positive's; where none is, the largest distance.

    Args:
        queries: (N, E) float, L2-normalised edited queries.
        targets: (N, A) int64, the labels asked for.
        positive: (N,) int64, row of the positive in `refs`.
        refs: (M, E) float, L2-normalised embeddings of the global batch.
        ref_labels: (M, A) int64.

    Returns:
        (N,) int64 row of the negative, and (N,) bool whether there is any.
    """
    with torch.no_grad(), full_precision(queries):
        columns, queries = as_accumulated(refs)[None], as_accumulated(queries)
        negative, found = torch.empty_like(positive), torch.empty_like(positive, dtype=torch.bool)
        for rows in _tiles(len(queries), len(refs), refs.device):
            negative[rows], found[rows] = _negative_tile(
                queries[rows], targets[rows], positive[rows], columns, ref_labels
            )
        return negative, found


def _negative_tile(
    queries: Tensor, targets: Tensor, positive: Tensor, columns: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor]:
    distances = squared_distances(queries[None], columns)[0]
    negative = torch.zeros_like(distances, dtype=torch.bool)
    for _, change in _label_differences(targets, ref_labels):
        negative |= change
    farther = negative & (distances > distances.gather(1, positive[:, None]))
    inside = torch.where(farther, distances, torch.inf).argmin(1)
    outside = torch.where(negative, distances, -torch.inf).argmax(1)
    return torch.where(farther.any(1), inside, outside), negative.any(1)


def _label_differences(labels: Tensor, all_labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Attribute by attribute, (T, M) bool: where rows (T, A) and columns (M, A) differ (UNKNOWN
    equals only UNKNOWN), and where they do and it is known on both.
    """
    known, all_known = labels != UNKNOWN, all_labels != UNKNOWN
    for attribute in range(labels.shape[1]):
        differ = labels[:, attribute, None] != all_labels[:, attribute]
        yield differ, differ & known[:, attribute, None] & all_known[:, attribute]
