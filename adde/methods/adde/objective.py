"""What each stage minimises: one forward pass, named loss terms, and their global mean.

Every rank encodes its own items; triplets are mined between its items and those of all ranks.
Sums stay local, counts are added over ranks, so that N ranks give the loss and, after the
average of gradients that data parallelism makes, the gradients of one.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adde import losses
from adde.distributed import RankRows, sum_over_ranks, world_size
from adde.loading.augment import DRAWS, Augmentation, augment
from adde.loading.loader import Batch
from adde.losses import Term
from adde.mining import (
    Edits,
    LabelGrouping,
    draw_edits,
    draw_key,
    joint_labels,
    semihard_negatives,
    uniform,
)
from adde.model import Forward, first_columns, multi_hot
from adde.schema import UNKNOWN, Schema
from adde.training.config import AddeStage, EncoderStage
from adde.training.cross_batch import CrossBatchMemory
from adde.training.watching.profiling import part

PER_ATTRIBUTE = ("cls", "presence", "local_triplet", "accuracy")
"""Terms and shares that are told of every attribute too: their parts are attributes, in order,
once or for several roles."""


@dataclass(frozen=True)
class Terms:
    """Loss terms by name, and shares (part, whole) that are only looked at."""

    losses: dict[str, Term]
    shares: dict[str, Term]
    attributes: tuple[str, ...] = ()
    """Names of the attributes; none leaves the figures of each one out."""


@dataclass(frozen=True)
class Objective:
    """What both stages need to know of the run."""

    schema: Schema
    augmentation: Augmentation
    margin: float
    memory: CrossBatchMemory | None = None
    edited_triplets: bool = False
    """Whether stage 3 has the term `edited_triplet`."""

    def encoder(
        self, model: Any, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Terms:
        """Stage 1: classification, local and global label triplets.

        `ranks` says how the global batch is shared out; None: as many items on every rank.
        """
        plan = self.plan("encoder", batch.labels, draws, ranks)
        return self.terms("encoder", self.encode(model, plan, batch.images), batch, plan)

    def adde(
        self, model: Any, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Terms:
        """Stage 3: manipulation triplets mined in the global batch; `ranks` as in `encoder`."""
        plan = self.plan("adde", batch.labels, draws, ranks)
        return self.terms("adde", self.encode(model, plan, batch.images), batch, plan)

    # The parts of both, for those who encode a batch in pieces

    def plan(
        self, stage: str, labels: Tensor, draws: torch.Generator, ranks: RankRows | None = None
    ) -> "Plan":
        """All that is drawn for this rank's items, of labels (b, A), before they are encoded."""
        ranks = ranks or RankRows.equal(len(labels))
        items = ranks.columns(labels.device)  # draws follow items of the global batch, not ranks
        moves = uniform(draw_key(draws), items, DRAWS)
        all_labels = ranks.gather(labels)
        columns = self._columns(labels, all_labels, items)
        if stage == "encoder":
            return Plan(ranks, moves, all_labels, columns)
        offsets = first_columns(self.schema, labels.device)
        edits = draw_edits(labels, all_labels, items, draw_key(draws), offsets)
        hot = (multi_hot(labels, self.schema), multi_hot(edits.targets, self.schema))
        if self.edited_triplets:
            columns["edited_triplet"] = self._edited_columns(labels, all_labels, edits, ranks)
        return Plan(ranks, moves, all_labels, columns, edits, hot)

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
        """What the model gives for some rows of this rank's images (b, S, S, 3) uint8, moved."""
        with part("augmentation"):
            moved = augment(images[rows], plan.moves[rows], self.augmentation)
        with part("forward"):
            return model(moved, *(hot[rows] for hot in plan.hot))

    @part("mining and losses")
    def terms(self, stage: str, out: Forward, batch: Batch, plan: "Plan") -> Terms:
        """The stage's losses of what the model gave for all of this rank's items.

        NaN and infinity are mined as zeros, so that ranks stay in step; the share of items that
        had them, `nonfinite`, tells `global_mean` that the step is void.
        """
        out, broken = _finite(out)
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
        shares["skipped"] = _skipped(batch)
        shares["nonfinite"] = broken
        with torch.no_grad():
            shares["accuracy"] = losses.accuracy(out.logits, batch.labels, self.schema.sizes)
        if out.presence is not None:
            terms["presence"] = losses.presence(out.presence, batch.labels)
        found = Terms(terms, shares, self.schema.names)
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
        roles = sum_over_ranks(losses.triplet_roles(edits, negative, has_negative, len(all_labels)))
        as_positive, as_negative = ranks.local(roles.T).unbind(1)
        usable = edits.usable.float()
        terms["cls"] = self._classification(
            out, labels, edits.targets, usable, as_positive, as_negative
        )
        terms["compositional"] = losses.compositional(
            queries,
            refs[edits.positive],
            refs[negative],
            edits.usable & has_negative,
            self.margin,
        )
        own, target = out.own_prototypes, out.target_prototypes
        terms["consistency"] = _stack(
            losses.consistency(target, out.edited, edits.targets, usable),
            losses.consistency(own, out.embeddings, labels, torch.ones_like(usable)),
            losses.consistency(own, out.embeddings, labels, as_negative),
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


def global_mean(
    terms: Terms, stage: EncoderStage | AddeStage, flag: bool = False
) -> tuple[Tensor, dict[str, float], bool]:
    """The weighted loss over all ranks, its terms and shares, and whether any rank raised `flag`.

    A term's weight is the stage's setting of the same name. Scalars are `loss`, every term and
    share by its name, and `<name>/<attribute>` of those that are told of each attribute, where the
    batch has any of it.

    One collective carries everything. The returned loss is scaled by the number of ranks, since
    data parallelism averages gradients. Where any rank's figures are not finite it is NaN on all,
    and so are its gradients, by which every strategy knows a step that must not be taken.
    """
    weights = {name: getattr(stage, name) for name in terms.losses}
    named = {**terms.losses, **terms.shares}
    packed = [torch.cat([term.counts, term.sums.detach()]) for term in named.values()]
    device = packed[0].device
    reduced = sum_over_ranks(torch.cat([*packed, torch.full((1,), float(flag), device=device)]))
    loss = torch.zeros((), device=device)
    means: dict[str, Tensor] = {}
    details: dict[str, Tensor] = {}
    for (name, term), piece in zip(named.items(), reduced[:-1].split([len(p) for p in packed])):
        found, sums = piece.chunk(2)
        counts = found.clamp(min=1)
        ratios = sums / counts
        means[name] = ratios.sum()
        if name in terms.losses:
            loss = loss + weights[name] * (term.sums / counts).sum()
        else:
            means[name] = means[name] / (found > 0).sum().clamp(min=1)
        if name in PER_ATTRIBUTE and terms.attributes:
            width = len(terms.attributes)
            known = found.view(-1, width).sum(0) > 0
            details[name] = torch.where(known, ratios.view(-1, width).sum(0), torch.nan)
    total = torch.stack([weights[name] * means[name] for name in terms.losses]).sum()
    # One transfer for all values, and not one each.
    whole = torch.stack([reduced[-1], total, *means.values()])
    flag_sum, *values = torch.cat([whole, *details.values()]).tolist()
    names = ["loss", *means, *(f"{name}/{a}" for name in details for a in terms.attributes)]
    scalars = {n: v for n, v in zip(names, values) if "/" not in n or not math.isnan(v)}
    if not_finite(scalars):
        loss = loss * math.nan
    return loss * world_size(), scalars, flag_sum > 0


def not_finite(scalars: dict[str, float]) -> list[str]:
    """Names of the scalars that are NaN or infinite, and `embeddings` where any item's are."""
    names = [name for name, value in scalars.items() if not math.isfinite(value)]
    return names + ["embeddings"] * (scalars.get("nonfinite", 0.0) > 0)


def finite_rows(out: Forward) -> Tensor:
    """(b,) bool: whether all that the model gives for an item is finite."""
    found = [v.detach().flatten(1).sum(1) for v in out if v is not None and v.ndim]
    return torch.stack(found).isfinite().all(0)


def _finite(out: Forward) -> tuple[Forward, Term]:
    """The outputs with zeros for items that are not finite where they are mined; the share of such
    items.
    """
    finite = finite_rows(out)
    items = torch.full((1,), float(len(finite)), device=finite.device)
    mined = {
        name: None if value is None else value.masked_fill(~finite.view(-1, 1, 1), 0.0)
        for name, value in (("embeddings", out.embeddings), ("edited", out.edited))
    }
    return out._replace(**mined), Term(items - finite.sum(), items)


def _skipped(batch: Batch) -> Term:
    """The share of samples that could not be read and have another in their place."""
    counted = (len(batch.faults), len(batch.labels))
    return Term(*(torch.full((1,), float(n), device=batch.labels.device) for n in counted))


def _stack(*terms: Term) -> Term:
    return Term(torch.cat([t.sums for t in terms]), torch.cat([t.counts for t in terms]))
