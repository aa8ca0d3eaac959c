"""What each stage of ADDE minimises: one forward pass and named loss terms.

Every rank encodes its own items; triplets are mined between its items and those of all ranks.
Sums stay local, counts are added over ranks, so that N ranks give the loss and, after the
average of gradients that data parallelism makes, the gradients of one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adde import losses
from adde.distributed import RankRows, sum_over_ranks
from adde.loading.augment import DRAWS, Augmentation, augment
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.adde.cross_batch import CrossBatchMemory
from adde.methods.adde.losses import compositional, consistency, triplet_roles
from adde.methods.adde.memory import first_columns, multi_hot
from adde.methods.adde.model import Forward
from adde.mining import (
    Edits,
    LabelGrouping,
    draw_edits,
    draw_key,
    joint_labels,
    semihard_negatives,
    uniform,
)
from adde.schema import UNKNOWN, Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part

CROSS_BATCH = "cross_batch"
"""Prefix of the cross-batch memory's tensors in a checkpoint."""

PER_ATTRIBUTE = ("cls", "presence", "local_triplet", "accuracy")
"""Terms and shares that are logged for every attribute too."""


@dataclass(frozen=True)
class AddeObjective(Objective):
    """The losses of both stages."""

    schema: Schema
    augmentation: Augmentation
    margin: float
    memory: CrossBatchMemory | None = None
    edited_triplets: bool = False
    """Whether stage 3 has the term `edited_triplet`."""

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> "Plan":
        """As `Objective.plan`; of the batch its labels (b, A) are all that is looked at."""
        labels = batch.labels
        ranks = ranks or RankRows.equal(len(labels))
        items = ranks.columns(labels.device)  # draws follow items of the global batch, not ranks
        moves = uniform(draw_key(draws), items, DRAWS)
        all_labels = ranks.gather(labels)
        columns = self._columns(labels, all_labels, items)
        if "compositional" not in stage.weights:
            return Plan(ranks, moves, all_labels, columns)
        offsets = first_columns(self.schema, labels.device)
        edits = draw_edits(labels, all_labels, items, draw_key(draws), offsets)
        hot = (multi_hot(labels, self.schema), multi_hot(edits.targets, self.schema))
        if self.edited_triplets:
            columns["edited_triplet"] = self._edited_columns(labels, all_labels, edits, ranks)
        return Plan(ranks, moves, all_labels, columns, edits, hot)

    def state(self) -> dict[str, Tensor]:
        """The cross-batch memory's."""
        state = self.memory.state() if self.memory is not None else {}
        return {f"{CROSS_BATCH}/{name}": value for name, value in state.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """The same."""
        if self.memory is not None:
            self.memory.restore(checkpoint.tensors(CROSS_BATCH))

    def _columns(self, labels: Tensor, all_labels: Tensor, items: Tensor) -> "dict[str, Columns]":
        ref_labels = all_labels
        if self.memory is not None:
            ref_labels = self.memory.labels_beside(all_labels)
        joint = joint_labels(ref_labels, self.schema.sizes)[:, None]
        return {
            "local_triplet": Columns.of(labels, ref_labels, items),
            "global_triplet": Columns.of(joint[items], joint, items),
        }

    def _edited_columns(
        self, labels: Tensor, all_labels: Tensor, edits: Edits, ranks: RankRows
    ) -> "Columns":
        """Joint labels of all items, then those that all edited queries are to have."""
        targets = ranks.gather(edits.targets.where(edits.usable[:, None], UNKNOWN))
        joint = joint_labels(torch.cat([all_labels, targets]), self.schema.sizes)[:, None]
        items = ranks.columns(labels.device)
        own = torch.cat([items, items + len(all_labels)])
        return Columns.of(joint[own], joint, own)

    def encode(
        self, model: Any, plan: "Plan", images: Tensor, rows: slice = slice(None)
    ) -> Forward:
        """As `Objective.encode`; the images are augmented."""
        with part("augmentation"):
            moved = augment(images[rows], plan.moves[rows], self.augmentation)
        with part("forward"):
            return model(moved, *(hot[rows] for hot in plan.hot))

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: "Plan") -> Terms:
        """As `Objective.terms`. NaN and infinity are mined as zeros, so that ranks stay in step."""
        with part("mining and losses"):
            return self._terms(out, batch, plan)

    def _terms(self, out: Forward, batch: Batch, plan: "Plan") -> Terms:
        out, finite = _finite(out)
        context = _Context(
            out.embeddings,
            batch.labels,
            plan.ranks.gather(out.embeddings),
            plan.all_labels,
            plan.ranks,
        )
        terms, shares = self._label_triplets(context, plan.columns)
        if self.memory is not None:
            self.memory.push(context.all_embeddings, context.all_labels)
        shares |= item_shares(batch, finite)
        with torch.no_grad():
            shares["accuracy"] = losses.accuracy(out.logits, batch.labels, self.schema.sizes)
        if out.presence is not None:
            terms["presence"] = losses.presence(out.presence, batch.labels)
        found = Terms(terms, shares, dict.fromkeys(PER_ATTRIBUTE, self.schema.names))
        if plan.edits is None:
            terms["cls"] = losses.classification(out.logits, batch.labels, self.schema.sizes)
            return found
        if "edited_triplet" in plan.columns:
            terms["edited_triplet"] = self._edited_triplets(out, context, plan)
        return self._manipulation_terms(out, context, plan.edits, found)

    def _edited_triplets(self, out: Forward, context: "_Context", plan: "Plan") -> Term:
        """Triplets of whole embeddings under joint labels among items and edited queries."""
        assert out.edited is not None
        own = torch.cat([out.embeddings, out.edited]).flatten(1)[:, None]
        everyone = torch.cat([context.all_embeddings, plan.ranks.gather(out.edited)])
        refs, columns = everyone.flatten(1)[:, None], plan.columns["edited_triplet"]
        return losses.label_triplets(own, refs=refs, margin=self.margin, **vars(columns))[0]

    def _manipulation_terms(
        self, out: Forward, context: "_Context", edits: Edits, found: Terms
    ) -> Terms:
        terms, shares = found.losses, found.shares
        labels, all_labels, ranks = context.labels, context.all_labels, context.ranks
        assert out.edited is not None
        assert out.own_prototypes is not None and out.target_prototypes is not None
        assert out.off_block is not None
        queries = losses.normalise(out.edited.flatten(1))
        refs = losses.normalise(context.all_embeddings.flatten(1))
        negative, has_negative = semihard_negatives(
            queries, edits.targets, edits.positive, refs, all_labels
        )
        roles = sum_over_ranks(triplet_roles(edits, negative, has_negative, len(all_labels)))
        as_positive, as_negative = ranks.local(roles.T).unbind(1)
        usable = edits.usable.float()
        terms["cls"] = self._classification(
            out, labels, edits.targets, usable, as_positive, as_negative
        )
        terms["compositional"] = compositional(
            queries,
            refs[edits.positive],
            refs[negative],
            edits.usable & has_negative,
            self.margin,
        )
        own, target = out.own_prototypes, out.target_prototypes
        terms["consistency"] = _stack(
            consistency(target, out.edited, edits.targets, usable),
            consistency(own, out.embeddings, labels, torch.ones_like(usable)),
            consistency(own, out.embeddings, labels, as_negative),
        )
        terms["memory"] = Term(out.off_block[None], torch.ones(1, device=labels.device))
        everyone = torch.full((1,), float(len(labels)), device=labels.device)
        shares["exact_targets"] = Term(edits.exact.float().sum()[None], everyone)
        shares["usable_edits"] = Term(usable.sum()[None], everyone)
        return found

    def _classification(
        self,
        out: Forward,
        labels: Tensor,
        targets: Tensor,
        usable: Tensor,
        as_positive: Tensor,
        as_negative: Tensor,
    ) -> Term:
        """CE of reference, positive, negative and edited query, each a mean of its own.

        An item is encoded once, on its own rank: as positive and negative it counts as often as
        the references of all ranks chose it.
        """
        assert out.edited_logits is not None
        sizes = self.schema.sizes
        return _stack(
            losses.classification(out.logits, labels, sizes),
            losses.classification(out.logits, labels, sizes, as_positive),
            losses.classification(out.logits, labels, sizes, as_negative),
            losses.classification(out.edited_logits, targets, sizes, usable),
        )

    def _label_triplets(
        self, context: "_Context", columns: "dict[str, Columns]"
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        refs = context.all_embeddings
        if self.memory is not None:
            refs, _ = self.memory.beside(refs, context.all_labels)
        local, local_active = losses.label_triplets(
            context.embeddings, refs=refs, margin=self.margin, **vars(columns["local_triplet"])
        )
        whole, whole_active = losses.label_triplets(
            context.embeddings.flatten(1)[:, None],
            refs=refs.flatten(1)[:, None],
            margin=self.margin,
            **vars(columns["global_triplet"]),
        )
        items = torch.full((1,), float(len(context.labels)), device=refs.device)
        shares = {
            # Mined pairs of each item: fewer where accumulation cuts the batch mining sees.
            "pairs_local": Term(local.counts.sum()[None], items),
            "pairs_global": Term(whole.counts, items),
            "active_local": Term(local_active.sum()[None].float(), local.counts.sum()[None]),
            "active_global": Term(whole_active.float(), whole.counts),
        }
        return {"local_triplet": local, "global_triplet": whole}, shares


@dataclass(frozen=True)
class Columns:
    """Labels of a triplet term's anchors (N, G) and columns (M, G), which column each anchor is
    (N,), and how they group; what `losses.label_triplets` takes.
    """

    labels: Tensor
    ref_labels: Tensor
    self_index: Tensor
    grouping: LabelGrouping

    @classmethod
    def of(cls, labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> "Columns":
        """Works out the grouping."""
        grouping = LabelGrouping(labels.T, ref_labels.T, self_index)
        return cls(labels, ref_labels, self_index, grouping)


@dataclass(frozen=True)
class Plan:
    """What is drawn for a rank's b items of the global batch of M."""

    ranks: RankRows
    moves: Tensor
    """(b, DRAWS) float32, of the augmentation."""
    all_labels: Tensor
    """(M, A) int64."""
    columns: dict[str, Columns]
    """Of each triplet term, by its name."""
    edits: Edits | None = None
    """Of stage 3."""
    hot: tuple[Tensor, ...] = ()
    """Multi-hot labels before and after the edit, (b, V) float32 each."""


@dataclass(frozen=True)
class _Context:
    """This rank's embeddings (b, A, D) and labels (b, A) beside those of all ranks."""

    embeddings: Tensor
    labels: Tensor
    all_embeddings: Tensor
    all_labels: Tensor
    ranks: RankRows


def _finite(out: Forward) -> tuple[Forward, Tensor]:
    """The outputs with zeros where items are mined that are not finite; (b,) bool which are."""
    finite = finite_rows(out)
    mined = {
        name: None if value is None else value.masked_fill(~finite.view(-1, 1, 1), 0.0)
        for name, value in (("embeddings", out.embeddings), ("edited", out.edited))
    }
    return out._replace(**mined), finite


def _stack(*terms: Term) -> Term:
    return Term(torch.cat([t.sums for t in terms]), torch.cat([t.counts for t in terms]))
