"""Manipulation triplets within the batch: an edit, a positive that shows it, a hard negative.

Edits and positives depend on labels only, so they are drawn before the forward pass, which computes
the edited query. Negatives need the embeddings. Both are computed in tiles of rows, attribute by
attribute: no tensor is larger than tile x M, no loop runs over items, and nothing is read back from
the device.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import as_accumulated, full_precision, squared_distances
from adde.mining.draws import pair_bits, words
from adde.mining.tiled import tile_rows
from adde.schema import SEVERAL, UNKNOWN, value_bits

POSITIVE_KEY = 1 << 62
"""Xored with the key of `draw_key`, which is smaller, to draw positives."""

COUNT_KEY = 1 << 61
"""Xored with the key, to draw numbers of edited attributes."""


class DrawnEdits(NamedTuple):
    """One edit, of one or several attributes, per reference.

    Attributes:
        targets: (N, A) int64, the reference's labels after the edit.
        positive: (N,) int64, the positive's row in the global batch.
        exact: (N,) bool, whether the positive is an exact target; see `draw_edits`.
        usable: (N,) bool, False if the batch has no positive; ignore the other fields of that row
            (its targets are the reference's own labels).
    """

    targets: Tensor
    positive: Tensor
    exact: Tensor
    usable: Tensor


def draw_edits(
    labels: Tensor,
    all_labels: Tensor,
    items: Tensor,
    key: int,
    offsets: Tensor,
    most: int = 1,
    multiple: Collection[int] = (),
) -> DrawnEdits:
    """Draw for each reference an edit that has an exact target in the global batch.

    An exact target differs from the reference in 1 to `most` attributes, all known on both. The
    number of attributes is uniform over those that have exact targets, the edit uniform over the
    edits of so many attributes that have exact targets, and the positive uniform over these
    targets. Without an exact target, the positive is the item with the fewest differing attributes
    (UNKNOWN equals only UNKNOWN) among those that differ in an attribute known on both, ties to the
    lowest row; the edit sets all attributes that are known on both.

    Labels that are sets differ unless they are equal. An edit with an exact target asks for one
    value, so an item that shows several values of the attribute is none.

    Args:
        labels: (N, A) int64, labels of this rank's references.
        all_labels: (M, A) int64, labels of the global batch.
        items: (N,) int64, the references' rows in the global batch.
        key: from `draw_key`, the same on all ranks; the result depends only on it, on the item and
            on the value's column.
        offsets: (A,) int64, first column of each attribute.
        most: maximum number of attributes that an edit changes.
        multiple: attributes whose labels may be sets.
    """
    count = len(labels)
    edits = DrawnEdits(
        torch.empty_like(labels),
        labels.new_empty(count),
        *(labels.new_empty(count, dtype=torch.bool) for _ in range(2)),
    )
    for rows in _tiles(count, len(all_labels), labels.device):
        tile = _draw_tile(labels[rows], all_labels, items[rows], key, offsets, most, multiple)
        for whole, part in zip(edits, tile):
            whole[rows] = part
    return edits


def _tiles(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Split the rows into tiles; about four int64 tensors of tile x columns exist at once.

    Callers write results into preallocated tensors: small tensors allocated between the large ones
    would fragment the heap (by a GB at M = 16,384).
    """
    tile = tile_rows(4 * columns, device)
    return (slice(start, start + tile) for start in range(0, rows, tile))


def _draw_tile(
    labels: Tensor,
    all_labels: Tensor,
    items: Tensor,
    key: int,
    offsets: Tensor,
    most: int,
    multiple: Collection[int],
) -> DrawnEdits:
    column_words = words(~key, (all_labels + offsets).clamp(min=0))
    shown = column_words.new_zeros(len(labels), len(all_labels))
    differing, edited = (torch.zeros_like(shown, dtype=torch.int16) for _ in range(2))
    for attribute, (differ, change) in enumerate(_label_differences(labels, all_labels)):
        differing += differ
        edited += change
        shown ^= torch.where(change, column_words[:, attribute], 0)  # of several: their mix
    exact_pair = (differing == edited) & (edited >= 1) & (edited <= most)
    for attribute in multiple:
        same = labels[:, attribute, None] == all_labels[:, attribute]
        exact_pair &= same | (all_labels[:, attribute] < SEVERAL)
    if most > 1:
        exact_pair &= edited == _draw_counts(edited.where(exact_pair, 0), items, key, most)
    # One random number per edit, not per item: edits are uniform.
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


def _draw_counts(counts: Tensor, items: Tensor, key: int, most: int) -> Tensor:
    """Draw for each row one of the positive numbers that it has: (T, 1) int64, 1 to `most`.

    Args:
        counts: (T, M) int16, 0 to `most`; a row without positive numbers draws any.
        items: (T,) int64.
        key: from `draw_key`.
        most: maximum.
    """
    numbers = torch.arange(1, most + 1, device=items.device)
    bits = pair_bits(words(key ^ COUNT_KEY, items)[:, None], words(~key ^ COUNT_KEY, numbers))
    there = torch.stack([(counts == number).any(1) for number in range(1, most + 1)], dim=1)
    return torch.where(there, bits, -1).argmax(1, keepdim=True) + 1


def fits_and_conflicts(
    edits: DrawnEdits, all_labels: Tensor, multiple: Collection[int] = ()
) -> tuple[Tensor, Tensor]:
    """Sort the items of the global batch (M, A) int64 by what they are to each edited query.

    Attributes in `multiple` may have sets of values as labels.

    Returns:
        (N, M) bool, the items whose labels equal the target (UNKNOWN equals only UNKNOWN), and the
        positive; none for an edit that is not usable. And (N, M) bool, those that differ from the
        target in an attribute known on both; sets differ if they have no value in common. Other
        items may or may not be as requested.
    """
    fits = edits.usable[:, None].repeat(1, len(all_labels))
    for differ, _ in _label_differences(edits.targets, all_labels):
        fits &= ~differ
    conflicts = _conflicts(edits.targets, all_labels, multiple)
    rows = torch.arange(len(fits), device=fits.device)
    fits[rows, edits.positive] = edits.usable
    return fits, conflicts


def semihard_negatives(
    queries: Tensor,
    targets: Tensor,
    positive: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    multiple: Collection[int] = (),
) -> tuple[Tensor, Tensor]:
    """Choose the hardest semi-hard negative of each edited query.

    A negative is an item that differs from the target in an attribute known on both; sets of values
    differ if they have none in common. The result is the nearest negative beyond the positive, or
    the farthest negative if there is none.

    Args:
        queries: (N, E) float, L2-normalised edited queries.
        targets: (N, A) int64, the requested labels.
        positive: (N,) int64, row of the positive in `refs`.
        refs: (M, E) float, L2-normalised embeddings of the global batch.
        ref_labels: (M, A) int64.
        multiple: attributes whose labels may be sets.

    Returns:
        (N,) int64 row of the negative, and (N,) bool, whether there is one.
    """
    with torch.no_grad(), full_precision(queries):
        columns, queries = as_accumulated(refs)[None], as_accumulated(queries)
        negative, found = torch.empty_like(positive), torch.empty_like(positive, dtype=torch.bool)
        for rows in _tiles(len(queries), len(refs), refs.device):
            negative[rows], found[rows] = _negative_tile(
                queries[rows], targets[rows], positive[rows], columns, ref_labels, multiple
            )
        return negative, found


def _negative_tile(
    queries: Tensor,
    targets: Tensor,
    positive: Tensor,
    columns: Tensor,
    ref_labels: Tensor,
    multiple: Collection[int],
) -> tuple[Tensor, Tensor]:
    distances = squared_distances(queries[None], columns)[0]
    negative = _conflicts(targets, ref_labels, multiple)
    farther = negative & (distances > distances.gather(1, positive[:, None]))
    inside = torch.where(farther, distances, torch.inf).argmin(1)
    outside = torch.where(negative, distances, -torch.inf).argmax(1)
    return torch.where(farther.any(1), inside, outside), negative.any(1)


def _conflicts(targets: Tensor, all_labels: Tensor, multiple: Collection[int]) -> Tensor:
    """Return (T, M) bool, where the columns (M, A) have not what the rows (T, A) ask for."""
    found = torch.zeros(len(targets), len(all_labels), dtype=torch.bool, device=targets.device)
    for attribute, (_, change) in enumerate(_label_differences(targets, all_labels)):
        if attribute in multiple:
            wanted, shown = value_bits(targets[:, attribute]), value_bits(all_labels[:, attribute])
            change &= wanted[:, None] & shown == 0
        found |= change
    return found


def _label_differences(labels: Tensor, all_labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two (T, M) bool per attribute: where rows (T, A) and columns (M, A) differ (UNKNOWN
    equals only UNKNOWN), and where they differ and both are known.
    """
    known, all_known = labels != UNKNOWN, all_labels != UNKNOWN
    for attribute in range(labels.shape[1]):
        differ = labels[:, attribute, None] != all_labels[:, attribute]
        yield differ, differ & known[:, attribute, None] & all_known[:, attribute]
