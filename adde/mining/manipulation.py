"""Manipulation triplets from the batch: an edit, the item that shows it, and a hard negative.

Edits and positives follow from the labels alone, so they are drawn before the forward pass and
the edited query is computed inside it; only the negative waits for the embeddings.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import accumulator, full_precision, squared_distances
from adde.schema import UNKNOWN


class Edits(NamedTuple):
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
    labels: Tensor, all_labels: Tensor, edit_noise: Tensor, positive_noise: Tensor, offsets: Tensor
) -> Edits:
    """Draws for each reference an edit that has an exact target in the global batch.

    An exact target differs from the reference in one attribute, known on both. The edit is
    uniform over the (attribute, value) pairs that have one, its positive uniform over the items
    that show it. Where none is exact, the positive is the item with the fewest differing
    attributes (UNKNOWN equals only UNKNOWN) among those with one that is known on both, ties to
    the lowest row, and the edit sets all attributes that are known on both.

    Args:
        labels: (N, A) int64, labels of this rank's references.
        all_labels: (M, A) int64, labels of the global batch.
        edit_noise: (N, V) float, uniform noise per reference and column.
        positive_noise: (M,) float, uniform noise in [0, 1) per item.
        offsets: (A,) int64, first column of each attribute.
    """
    mine, theirs = labels[:, None, :], all_labels[None, :, :]
    differ = mine != theirs
    both_known = (mine != UNKNOWN) & (theirs != UNKNOWN)
    edited = differ & both_known
    differing = differ.sum(-1)
    exact_pair = (differing == 1) & edited.any(-1)

    # Column of the new value in each exact pair; the sum has one term there.
    column = torch.where(edited, theirs + offsets, 0).sum(-1)
    shown = torch.zeros_like(edit_noise, dtype=torch.int64)
    shown.scatter_add_(1, torch.where(exact_pair, column, 0), exact_pair.long())
    drawn = torch.where(shown > 0, edit_noise, -torch.inf).argmax(1, keepdim=True)
    shows = exact_pair & (column == drawn)
    exact_positive = torch.where(shows, positive_noise, -1.0).argmax(1)

    num_attributes = labels.shape[1]
    nearest_cost, nearest = torch.where(edited.any(-1), differing, num_attributes + 1).min(1)
    exact = exact_pair.any(1)
    positive = torch.where(exact, exact_positive, nearest)
    shown_labels = all_labels[positive]
    known = (labels != UNKNOWN) & (shown_labels != UNKNOWN)
    usable = nearest_cost <= num_attributes
    targets = torch.where(known & usable[:, None], shown_labels, labels)
    return Edits(targets, positive, exact, usable)


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
        distances = squared_distances(accumulator(queries)[None], accumulator(refs)[None])[0]
        wanted, found = targets[:, None, :], ref_labels[None, :, :]
        negative = ((wanted != found) & (wanted != UNKNOWN) & (found != UNKNOWN)).any(-1)
        farther = negative & (distances > distances.gather(1, positive[:, None]))
        inside = torch.where(farther, distances, torch.inf).argmin(1)
        outside = torch.where(negative, distances, -torch.inf).argmax(1)
        return torch.where(farther.any(1), inside, outside), negative.any(1)
