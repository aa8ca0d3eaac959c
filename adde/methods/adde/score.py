"""The match score as a loss: a softmax over the global batch, with the drawn edits as queries.

    L_s = mean over q of
        -log (sum over g that fit of e^s(q, g) / sum over g that fit or conflict of e^s(q, g))

s is that of `adde.scoring`, with temperatures and weights of 1. Equation (17) of
docs/architecture.md.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adde.losses import Term
from adde.methods.adde.memory import multi_hot
from adde.mining import DrawnEdits, fits_and_conflicts
from adde.mining.tiled import tile_rows
from adde.schema import Schema
from adde.scoring import DEFAULTS

EPSILON = DEFAULTS["epsilon"]
"""Bounds the cost of one mismatch."""


def beliefs(logits: Tensor, presence: Tensor | None, schema: Schema) -> Tensor:
    """Compute beliefs (N, V + A) float32, as `adde.scoring.Calibration` does at temperature 1.

    Args:
        logits: (N, V) float32.
        presence: (N, A) float32 logits; None: every attribute is present.
        schema: of the columns.
    """
    found: list[Tensor] = []
    for a, part in enumerate(logits.split(schema.sizes, dim=1)):
        values = part.softmax(1)
        there = torch.ones_like(part[:, :1]) if presence is None else presence[:, a, None].sigmoid()
        found += [values * there, 1 - there]
    return torch.cat(found, dim=1)


def match_scores(
    own: Tensor, everyone: Tensor, labels: Tensor, targets: Tensor, schema: Schema
) -> Tensor:
    """Compute s (N, M) float32 of edited queries and items.

    Args:
        own: (N, V + A) float32, beliefs of the references.
        everyone: (M, V + A) float32, beliefs of the items.
        labels: (N, A) int64 of the references.
        targets: (N, A) int64, labels after the edit; an attribute in which they differ is edited.
        schema: of the columns.
    """
    widths = [size + 1 for size in schema.sizes]
    asked = multi_hot(targets, schema).split(schema.sizes, dim=1)
    edited = labels != targets
    scores = own.new_zeros(len(own), len(everyone))
    for a, (mine, theirs) in enumerate(zip(own.split(widths, 1), everyone.split(widths, 1))):
        wanted = torch.where(edited[:, a, None], F.pad(asked[a], (0, 1)), mine)
        scores = scores + (EPSILON + wanted @ theirs.T).log()
    return scores


def score_softmax(
    own: Tensor,
    everyone: Tensor,
    labels: Tensor,
    all_labels: Tensor,
    edits: DrawnEdits,
    schema: Schema,
) -> Term:
    """Compute L_s over the N references of this rank; see `match_scores`.

    A query counts if its edit is usable and an item of the batch conflicts with it. An item that
    neither fits nor conflicts is left out. Rows are computed in tiles, and again in the backward
    pass: no tensor is larger than tile x M.

    Args:
        own: (N, V + A) float32, beliefs of this rank's references.
        everyone: (M, V + A) float32, those of the global batch.
        labels: (N, A) int64.
        all_labels: (M, A) int64.
        edits: of the references.
        schema: of the columns.
    """

    def tile(rows: slice) -> Tensor:
        targets = edits.targets[rows]
        scores = match_scores(own[rows], everyone, labels[rows], targets, schema)
        fits, conflicts = fits_and_conflicts(
            DrawnEdits(*(e[rows] for e in edits)), all_labels, schema.multiple
        )
        counted = fits.any(1) & conflicts.any(1)
        fits |= ~counted[:, None]  # such rows have a loss of 0, and a gradient
        most = scores.masked_fill(~(fits | conflicts), -torch.inf).logsumexp(1)
        losses = most - scores.masked_fill(~fits, -torch.inf).logsumexp(1)
        return torch.stack([(losses * counted).sum(), counted.float().sum()])

    step = tile_rows(len(all_labels), own.device)
    starts = range(0, len(own), step)
    parts: list[Any] = [
        checkpoint(tile, slice(i, i + step), use_reentrant=False, preserve_rng_state=False)
        for i in starts
    ]
    sums, counts = torch.stack(parts).sum(0).split(1)
    return Term(sums, counts.detach())
