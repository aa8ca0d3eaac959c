"""The objective of each stage of ADDE: one forward pass and named loss terms.

Every rank encodes its own items and mines triplets between them and the items of all ranks. Sums
stay local and counts are added over ranks. With the gradient averaging of data parallelism, N ranks
then compute the loss and gradients of one rank.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adde import losses
from adde.distributed import RankRows, sum_over_ranks
from adde.errors import UserError
from adde.loading.augment import Augmentation, augment, draw
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.adde.adversary import adversarial, strength
from adde.methods.adde.config import FirstStage, ManipulationStage
from adde.methods.adde.cross_batch import CrossBatchQueue
from adde.methods.adde.losses import compositional, consistency, triplet_roles
from adde.methods.adde.memory import first_columns, multi_hot
from adde.methods.adde.model import Forward
from adde.methods.adde.pseudo import pseudo_classification, teach
from adde.methods.adde.score import beliefs, score_softmax
from adde.mining import (
    DrawnEdits,
    LabelGrouping,
    draw_edits,
    draw_key,
    joint_labels,
    semihard_negatives,
)
from adde.schema import UNKNOWN, Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.method import Objective, Stage
from adde.training.strategies import Strategy
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part

CROSS_BATCH = "cross_batch"
"""Prefix of the cross-batch queue's tensors in a checkpoint."""

PER_ATTRIBUTE = ("cls", "presence", "local_triplet", "adversary", "pseudo", "accuracy")
"""Terms and shares that are also logged for every attribute."""


@dataclass
class AddeObjective(Objective):
    """The losses of both stages."""

    schema: Schema
    augmentation: Augmentation
    margin: float
    queue: CrossBatchQueue | None = None
    edited_triplets: bool = False
    """Whether stage 3 has the term `edited_triplet`."""
    adjustment: Tensor | None = None
    """(V,) float32, added to the logits of pictures in cross-entropies; None: nothing is."""
    progress: tuple[int, int] = (0, 1)
    """The next step of the stage, and their number."""
    strategy: weakref.ref[Strategy] | None = None
    """What trains the current stage; None unless the stage has pseudo-labels."""

    def begin_stage(self, stage: Stage, strategy: Strategy) -> None:
        """As `Objective.begin_stage`.

        Raises:
            UserError: the strategy has no averaged weights on each rank for pseudo-labels.
        """
        self.strategy = None
        if not stage.weights.get("pseudo"):
            return
        if strategy.sharded:
            raise UserError(
                "encoder.pseudo.weight: expected averaged weights whole on every rank, found a "
                "strategy that shards them; use one process or launch/ddp.yaml, or set it to 0"
            )
        self.strategy = weakref.ref(strategy)  # its optimiser must go before the next one comes

    def begin_step(self, step: int, steps: int) -> None:
        """As `Objective.begin_step`."""
        self.progress = step, steps

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> "Plan":
        """As `Objective.plan`; reads pictures to erase with colours of the batch, and to label."""
        labels = batch.labels
        ranks = ranks or RankRows.equal(len(labels))
        items = ranks.columns(labels.device)  # draws depend on the item, not the rank
        moves = draw(batch.images, self.augmentation, draw_key(draws), ranks)
        all_labels = ranks.gather(labels)
        columns = self._columns(labels, all_labels, items)
        reversal = None
        if stage.weights.get("adversary"):
            reversal = torch.tensor(strength(*self.progress), device=labels.device)
        if not isinstance(stage, ManipulationStage):
            taught = self._teach(stage, batch)
            return Plan(ranks, moves, all_labels, columns, reversal=reversal, taught=taught)
        offsets = first_columns(self.schema, labels.device)
        edits = draw_edits(
            labels,
            all_labels,
            items,
            draw_key(draws),
            offsets,
            stage.edits,
            self.schema.multiple,
        )
        hot = (multi_hot(labels, self.schema), multi_hot(edits.targets, self.schema))
        if self.edited_triplets:
            columns["edited_triplet"] = self._edited_columns(labels, all_labels, edits, ranks)
        return Plan(ranks, moves, all_labels, columns, edits, hot, reversal)

    def _teach(self, stage: Stage, batch: Batch) -> Tensor | None:
        """Return targets of unknown labels, once they are due and averaged weights exist."""
        if not isinstance(stage, FirstStage) or not stage.pseudo.weight or self.strategy is None:
            return None
        step, steps = self.progress
        if step < stage.pseudo.start * steps:
            return None
        rest = (batch.images, batch.labels, self.schema.sizes, stage.pseudo.confidence)
        strategy = self.strategy()
        assert strategy is not None  # the run holds it for the whole stage
        return strategy.forward_averaged(lambda teacher: teach(teacher, *rest))

    def state(self) -> dict[str, Tensor]:
        """Return the state of the cross-batch queue."""
        state = self.queue.state() if self.queue is not None else {}
        return {f"{CROSS_BATCH}/{name}": value for name, value in state.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the cross-batch queue."""
        if self.queue is not None:
            self.queue.restore(checkpoint.tensors(CROSS_BATCH))

    def _columns(self, labels: Tensor, all_labels: Tensor, items: Tensor) -> "dict[str, Columns]":
        ref_labels = all_labels
        if self.queue is not None:
            ref_labels = self.queue.labels_with_batch(all_labels)
        joint = joint_labels(ref_labels, self.schema.sizes, self.schema.multiple)[:, None]
        return {
            "local_triplet": Columns.of(labels, ref_labels, items),
            "global_triplet": Columns.of(joint[items], joint, items),
        }

    def _edited_columns(
        self, labels: Tensor, all_labels: Tensor, edits: DrawnEdits, ranks: RankRows
    ) -> "Columns":
        """Prepare the joint labels of all items, then the targets of all edited queries."""
        targets = ranks.gather(edits.targets.where(edits.usable[:, None], UNKNOWN))
        every = torch.cat([all_labels, targets])
        joint = joint_labels(every, self.schema.sizes, self.schema.multiple)[:, None]
        items = ranks.columns(labels.device)
        own = torch.cat([items, items + len(all_labels)])
        return Columns.of(joint[own], joint, own)

    def encode(
        self, model: Any, plan: "Plan", images: Tensor, rows: slice = slice(None)
    ) -> Forward:
        """As `Objective.encode`, with augmentation."""
        with part("augmentation"):
            moved = augment(images[rows], plan.moves[rows], self.augmentation)
        with part("forward"):
            hot = [hot[rows] for hot in plan.hot]
            if plan.reversal is None:
                return model(moved, *hot)
            return model(moved, *(hot or (None, None)), plan.reversal)

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: "Plan") -> Terms:
        """As `Objective.terms`. Non-finite embeddings are mined as zeros to keep ranks in step."""
        with part("mining and losses"):
            return self._terms(stage, out, batch, plan)

    def _terms(self, stage: Stage, out: Forward, batch: Batch, plan: "Plan") -> Terms:
        out, finite = _finite(out)
        context = _Context(
            out.embeddings,
            batch.labels,
            plan.ranks.gather(out.embeddings),
            plan.all_labels,
            plan.ranks,
        )
        terms, shares = self._label_triplets(context, plan.columns)
        if self.queue is not None:
            self.queue.push(context.all_embeddings, context.all_labels)
        shares |= item_shares(batch, finite)
        with torch.no_grad():
            shares["accuracy"] = losses.accuracy(
                out.logits, batch.labels, self.schema.sizes, self.schema.multiple
            )
        if out.presence is not None:
            terms["presence"] = losses.presence(out.presence, batch.labels)
        if out.adversary is not None:
            terms["adversary"] = adversarial(out.adversary, batch.labels, self.schema)
        found = Terms(terms, shares, dict.fromkeys(PER_ATTRIBUTE, self.schema.names))
        if plan.edits is None:
            terms["cls"] = self._classify(out.logits, batch.labels)
            if stage.weights.get("pseudo"):
                targets = torch.zeros_like(out.logits) if plan.taught is None else plan.taught
                given = (targets, batch.labels, self.schema.sizes)
                terms["pseudo"], shares["pseudo_labels"] = pseudo_classification(out.logits, *given)
            return found
        if "edited_triplet" in plan.columns:
            terms["edited_triplet"] = self._edited_triplets(out, context, plan)
        return self._manipulation_terms(stage, out, context, plan.edits, found)

    def _edited_triplets(self, out: Forward, context: "_Context", plan: "Plan") -> Term:
        """Mine whole embeddings of items and edited queries together, under joint labels."""
        assert out.edited is not None
        own = torch.cat([out.embeddings, out.edited]).flatten(1)[:, None]
        everyone = torch.cat([context.all_embeddings, plan.ranks.gather(out.edited)])
        refs, columns = everyone.flatten(1)[:, None], plan.columns["edited_triplet"]
        return losses.label_triplets(own, refs=refs, margin=self.margin, **vars(columns))[0]

    def _manipulation_terms(
        self, stage: Stage, out: Forward, context: "_Context", edits: DrawnEdits, found: Terms
    ) -> Terms:
        terms, shares = found.losses, found.shares
        labels, all_labels, ranks = context.labels, context.all_labels, context.ranks
        assert out.edited is not None
        assert out.own_prototypes is not None and out.target_prototypes is not None
        assert out.off_block is not None
        queries = losses.normalise(out.edited.flatten(1))
        refs = losses.normalise(context.all_embeddings.flatten(1))
        negative, has_negative = edits.positive, torch.zeros_like(edits.usable)
        if stage.weights["compositional"]:
            negative, has_negative = semihard_negatives(
                queries, edits.targets, edits.positive, refs, all_labels, self.schema.multiple
            )
            terms["compositional"] = compositional(
                queries,
                refs[edits.positive],
                refs[negative],
                edits.usable & has_negative,
                self.margin,
            )
        if stage.weights["score"]:
            own = beliefs(out.logits, out.presence, self.schema)
            given = (own, ranks.gather(own), labels, all_labels, edits, self.schema)
            terms["score"] = score_softmax(*given)
        roles = sum_over_ranks(triplet_roles(edits, negative, has_negative, len(all_labels)))
        as_positive, as_negative = ranks.local(roles.T).unbind(1)
        usable = edits.usable.float()
        terms["cls"] = self._classification(
            out, labels, edits.targets, usable, as_positive, as_negative
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
        """Compute the cross-entropies of reference, positive, negative and edited query.

        Each is a mean of its own. An item is encoded once, on its own rank; as a positive or
        negative it counts as often as the references of all ranks chose it.
        """
        assert out.edited_logits is not None
        sizes, multiple = self.schema.sizes, self.schema.multiple
        return _stack(
            self._classify(out.logits, labels),
            self._classify(out.logits, labels, as_positive),
            self._classify(out.logits, labels, as_negative),
            losses.classification(out.edited_logits, targets, sizes, usable, multiple),
        )

    def _classify(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Term:
        """Compute the cross-entropy of pictures, with adjusted logits."""
        if self.adjustment is not None:
            logits = logits + self.adjustment
        sizes, multiple = self.schema.sizes, self.schema.multiple
        return losses.classification(logits, labels, sizes, weights, multiple)

    def _label_triplets(
        self, context: "_Context", columns: "dict[str, Columns]"
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        refs = context.all_embeddings
        if self.queue is not None:
            refs, _ = self.queue.with_batch(refs, context.all_labels)
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
            # Mined pairs per item; gradient accumulation lowers it, as it splits the batch.
            "pairs_local": Term(local.counts.sum()[None], items),
            "pairs_global": Term(whole.counts, items),
            "active_local": Term(local_active.sum()[None].float(), local.counts.sum()[None]),
            "active_global": Term(whole_active.float(), whole.counts),
        }
        return {"local_triplet": local, "global_triplet": whole}, shares


@dataclass(frozen=True)
class Columns:
    """Arguments of `losses.label_triplets` that are known before the forward pass.

    Labels of the anchors (N, G) and references (M, G), each anchor's own reference (N,), grouping.
    """

    labels: Tensor
    ref_labels: Tensor
    self_index: Tensor
    grouping: LabelGrouping

    @classmethod
    def of(cls, labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> "Columns":
        """Compute the grouping and bundle it with the labels."""
        grouping = LabelGrouping(labels.T, ref_labels.T, self_index)
        return cls(labels, ref_labels, self_index, grouping)


@dataclass(frozen=True)
class Plan:
    """Random choices for a rank's b items of the global batch of M."""

    ranks: RankRows
    moves: Tensor
    """(b, n) float32, parameters of the augmentation; see `adde.loading.augment.draw`."""
    all_labels: Tensor
    """(M, A) int64."""
    columns: dict[str, Columns]
    """By triplet term."""
    edits: DrawnEdits | None = None
    """None in stage 1."""
    hot: tuple[Tensor, ...] = ()
    """Multi-hot labels before and after the edit, (b, V) float32 each; empty in stage 1."""
    reversal: Tensor | None = None
    """Scalar, strength of the gradient reversal; None without."""
    taught: Tensor | None = None
    """(b, V) float32, targets of pseudo-labels; None without."""


@dataclass(frozen=True)
class _Context:
    """This rank's embeddings (b, A, D) and labels (b, A), and those of all ranks."""

    embeddings: Tensor
    labels: Tensor
    all_embeddings: Tensor
    all_labels: Tensor
    ranks: RankRows


def _finite(out: Forward) -> tuple[Forward, Tensor]:
    """Replace non-finite items by zeros for mining; also return (b,) bool, which are finite."""
    finite = finite_rows(out)
    mined = {
        name: None if value is None else value.masked_fill(~finite.view(-1, 1, 1), 0.0)
        for name, value in (("embeddings", out.embeddings), ("edited", out.edited))
    }
    return out._replace(**mined), finite


def _stack(*terms: Term) -> Term:
    return Term(torch.cat([t.sums for t in terms]), torch.cat([t.counts for t in terms]))
