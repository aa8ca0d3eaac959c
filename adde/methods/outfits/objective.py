"""The objective of a head: rank the missing item of an outfit above random items.

A batch's items are the missing ones; their features are looked up by item id.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adde.distributed import RankRows
from adde.loading.loader import Batch
from adde.losses import Term
from adde.methods.outfits.config import OutfitsConfig
from adde.methods.outfits.model import Question, Scored
from adde.mining import draw_key, uniform
from adde.shards.outfit_lists import OutfitData
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares


@dataclass(frozen=True)
class Plan:
    """b questions, as rows of the encoded items."""

    present: Tensor
    """(b, L) int64 items that are there, -1 where there is none."""
    candidates: Tensor
    """(b, 1 + M) int64: the missing item, then the negatives."""
    valid: Tensor
    """(b, 1 + M) bool; a negative that is the missing item does not count."""
    usable: Tensor
    """(b,) bool: the item is in a training outfit, and its category has another item."""


class OutfitObjective(Objective):
    """The ranking loss over the training outfits.

    Args:
        config: of the run.
        item_ids: N of the encoded items.
        features: (N, ...) what represents them; see `Head.wants`.
        given: the outfits as rows.
        device: where they are kept.
    """

    def __init__(
        self,
        config: OutfitsConfig,
        item_ids: tuple[str, ...],
        features: Tensor,
        given: OutfitData,
        device: torch.device,
    ) -> None:
        self._config = config
        self._features = features.to(device)
        self._categories = torch.from_numpy(given.categories).to(device)
        self._row = {item: row for row, item in enumerate(item_ids)}
        self._members, self._of_item = _laid_out(given, len(item_ids), device)
        self._pools = _pools(given, device)

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """Draw one of each item's outfits, and the negatives."""
        device = self._features.device
        rows = torch.tensor([self._row[item] for item in batch.item_ids], device=device)
        items = (ranks or RankRows.equal(len(rows))).columns(device)
        chances = uniform(draw_key(draws), items, 1 + self._config.negatives)
        outfits = self._of_item.draw(rows, chances[:, :1])[:, 0]
        members = self._members[outfits]
        present = members.where(members != rows[:, None], -1)
        kinds = self._categories[rows]
        negatives = self._pools.draw(kinds.clamp(min=0), chances[:, 1:])
        candidates = torch.cat([rows[:, None], negatives], 1)
        valid = torch.cat([torch.ones_like(rows[:, None]).bool(), negatives != rows[:, None]], 1)
        usable = (self._of_item.counts[rows] > 0) & valid[:, 1:].any(1)
        return Plan(present, candidates, valid, usable)

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Scored:
        """Score the candidates; the images are empty."""
        present, candidates = plan.present[rows], plan.candidates[rows]
        categories = self._categories[present.clamp(min=0)].where(present >= 0, -1)
        there = present.clamp(min=0)
        target = self._categories[candidates[:, 0]].clamp(min=0)
        question = Question(self._features[there], categories, target)
        return model(question, self._features[candidates])

    def terms(self, stage: Stage, out: Scored, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`."""
        usable = plan.usable.float()
        counts = (plan.present >= 0).sum(1)
        losses = self._losses(out.scores, counts, plan.valid)
        asked = usable.sum()[None]
        items = torch.full_like(asked, float(len(usable)))
        found = {"ranking": Term((losses * usable).sum()[None], asked)}
        if out.drift is not None:
            found["drift"] = Term(out.drift[None], torch.ones_like(asked))
        with torch.no_grad():
            others = out.scores[:, 1:].masked_fill(~plan.valid[:, 1:], -torch.inf)
            best = (out.scores[:, :1] > others).all(1).float() * usable
        shares = {
            "first": Term(best.sum()[None], asked),
            "questions": Term(asked, items),
            **item_shares(batch, finite_rows(out)),
        }
        return Terms(found, shares)

    def _losses(self, scores: Tensor, counts: Tensor, valid: Tensor) -> Tensor:
        """(b,) of scores (b, 1 + M), the missing item's first."""
        if self._config.loss == "softmax":
            # A sum over the outfit's items: each adds its evidence.
            logits = (scores * counts[:, None]).masked_fill(~valid, -torch.inf)
            return logits.logsumexp(1) - logits[:, 0]
        margins = scores[:, 1:] - scores[:, :1] + self._config.margin
        if self._config.loss == "min":
            return margins.masked_fill(~valid[:, 1:], -torch.inf).amax(1).relu()
        there = valid[:, 1:].float()
        return (margins.relu() * there).sum(1) / there.sum(1).clamp(min=1)


@dataclass(frozen=True)
class _Lists:
    """Lists of rows, one behind the other."""

    starts: Tensor
    counts: Tensor
    rows: Tensor

    @classmethod
    def of(cls, keys: Any, rows: Any, count: int, device: torch.device) -> "_Lists":
        """Put each of `rows` into the list of its key, below `count`."""
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=count)
        arrays = (np.cumsum(counts) - counts, counts, np.append(np.asarray(rows)[order], 0))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def draw(self, keys: Tensor, chances: Tensor) -> Tensor:
        """(b, n) entries of the lists of keys (b,) at chances (b, n) in [0, 1); any where a list is
        empty.
        """
        places = (chances * self.counts[keys][:, None]).long()
        return self.rows[(self.starts[keys][:, None] + places).clamp(max=len(self.rows) - 1)]


def _laid_out(given: OutfitData, items: int, device: torch.device) -> tuple[Tensor, _Lists]:
    """Training outfits (O, L) as rows, padded with -1; and the outfits that each item is in."""
    outfits = given.outfits["train"]
    members = np.full((len(outfits), max(map(len, outfits))), -1, np.int64)
    for number, outfit in enumerate(outfits):
        members[number, : len(outfit)] = outfit
    numbers = np.repeat(np.arange(len(outfits)), [len(outfit) for outfit in outfits])
    of_item = _Lists.of(np.concatenate([*outfits]), numbers, items, device)
    return torch.from_numpy(members).to(device), of_item


def _pools(given: OutfitData, device: torch.device) -> _Lists:
    """Items of training outfits by category."""
    rows = np.unique(np.concatenate([*given.outfits["train"]]))
    return _Lists.of(given.categories[rows], rows, int(given.categories.max()) + 1, device)
