"""Rank candidates exactly and compare each attribute with the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import FIRST, first_then_rest, fits, likeliest
from adde.serving.answers import Answer, Match, Rank
from adde.serving.gallery.base import Item
from adde.serving.gallery.scorers import MatchScorer, subspace_distances


@dataclass(frozen=True, eq=False)
class AnswerRanker:
    """Ranks candidates by an edited query."""

    schema: Schema
    rank: Rank
    query: Vector
    """(A, D) float32, L2-normalised over both axes."""
    weights: Vector
    """(A,) float32."""
    unit: bool
    """Whether distances are between unit subspaces."""
    matching: MatchScorer | None
    """None for an uncalibrated bundle."""
    first: Vector | None
    """(A,) float32 weights for the first FIRST matches, if different from the rest."""
    wanted: Mapping[str, str | None]
    """Each attribute's wanted value, for display."""
    good: Mapping[int, Labels]
    """Edited attributes to the labels that count as a success."""

    def answers(self, items: Sequence[Item]) -> tuple[Answer, ...]:
        """Rank all items: by score, then distance, then given order. By match, the first FIRST
        answers are chosen with more weight on the edits.
        """
        if not items:
            return ()
        vectors = np.stack([item.vector for item in items])
        parts = self.weights * subspace_distances(vectors, self.query, self.unit)
        if self.unit:
            parts /= self.weights.sum()
        distances = parts.sum(axis=1)
        labels = np.stack([item.labels for item in items])
        shown = np.where(labels == UNKNOWN, np.stack([i.predicted for i in items]), labels)
        probabilities, costs, scores = None, parts, 1 - distances / 2
        order = np.argsort(distances, kind="stable")
        if self.matching is not None:
            beliefs = _beliefs(items)
            shown = likeliest(beliefs, self.schema)
            probabilities = self.matching.probabilities(beliefs)
            if self.rank == "match":
                costs = self.matching.costs(probabilities)
                scores = self.matching.mean_probability(costs)
                order = np.lexsort((distances, costs.sum(axis=1)))
                if self.first is not None:
                    weighed = replace(self.matching, weights=self.first).costs(probabilities)
                    obeying = np.lexsort((distances, weighed.sum(axis=1)))
                    order = first_then_rest(obeying[:FIRST], order, len(items))
        shares = costs / np.maximum(costs.sum(axis=1, keepdims=True), 1e-30)
        answers: list[Answer] = []
        for at in order.tolist():
            item = items[int(at)]
            chances = None if probabilities is None else probabilities[at].tolist()
            matches = self._matches(item, shown[at].tolist(), shares[at].tolist(), chances)
            answers.append(
                Answer(
                    item.item_id,
                    float(scores[at]),
                    float(distances[at]),
                    self.schema.decode(item.labels),
                    item.fields,
                    matches,
                    item,
                )
            )
        return tuple(answers)

    def _matches(
        self,
        item: Item,
        shown: list[int],
        shares: list[float],
        probabilities: list[float] | None,
    ) -> dict[str, Match]:
        found: dict[str, Match] = {}
        for a, (name, wanted) in enumerate(self.wanted.items()):
            value = self.schema.text(a, shown[a])
            seen = self.schema.attributes[a].values[int(item.predicted[a])]
            found[name] = Match(
                value=value,
                predicted=bool(item.labels[a] == UNKNOWN),
                seen=seen,
                wanted=wanted,
                share=shares[a],
                probability=None if probabilities is None else probabilities[a],
                good=bool(fits(np.array(shown[a : a + 1]), self.good[a])[0])
                if a in self.good
                else value == wanted,
            )
        return found


def _beliefs(items: Sequence[Item]) -> Vector:
    rows = [item.beliefs for item in items if item.beliefs is not None]
    if len(rows) != len(items):
        raise ValueError("expected items with beliefs, found some without")
    return np.stack(rows)
