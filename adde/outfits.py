"""Outfits: which item goes with those that are there, and do all of them go together.

Three questions, as the literature on Polyvore Outfits asks them:

- fill in the blank (FITB): an outfit with one item missing, and four answers of which one is the
  item. Answers that score alike share the credit, so that a constant score gets one in four.
- compatibility: outfits that somebody put together, and others in which every item was replaced
  by a random one of its category; the area under the ROC curve, ties averaged.
- retrieval: an outfit with one item missing, and all items of that item's category in the same
  split, at most POOL of them; recall@10, 30 and 50, mean over categories (Lin et al., CSA-Net,
  CVPR 2020, whose own lists of candidates are not published).

An outfit has one truth, while other items may go with it as well: figures are to be compared with
each other and with the `oracle` where there is one, not with 100 %.

Symbols: N items, C categories, V columns, S styles, M candidates.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adde.metrics import Figures
from adde.schema import UNKNOWN, Labels, Rows, Schema, Vector
from adde.scoring import parts

RECALL_RANKS = (10, 30, 50)

POOL = 3_000
"""Candidates of a retrieval question, as CSA-Net has them."""

SMOOTHING = 0.5
"""Pairs of items that are added to each count of `cooccurrence`."""


class Scorer(ABC):
    """Scores items by how well they go together; larger is better."""

    @abstractmethod
    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """Score how well each candidate goes with an outfit, both rows of items: (M,) float64."""

    def compatibility(self, outfit: Rows) -> float:
        """Score how well the items of an outfit of at least two go together.

        Here: the mean over its items of how each completes the others, which is the mean over all
        pairs where `complete` is a mean over the outfit's items.
        """
        each = [self.complete(np.delete(outfit, i), outfit[i : i + 1]) for i in range(len(outfit))]
        return float(np.mean(each))


class RandomScorer(Scorer):
    """Draws its scores."""

    def __init__(self) -> None:
        self._draws = np.random.default_rng(0)

    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """Random numbers."""
        return self._draws.random(len(candidates))


class SimilarityScorer(Scorer):
    """Mean cosine of embeddings: what looks alike goes together.

    Args:
        embeddings: (N, A, D) or (N, E) float32.
    """

    def __init__(self, embeddings: Vector) -> None:
        flat = embeddings.reshape(len(embeddings), -1)
        self._unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)

    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """Mean cosine with the outfit's items."""
        return (self._unit[candidates] @ self._unit[outfit].mean(axis=0)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class BilinearScorer(Scorer):
    """S(O, g) = mean over the outfit's items i of phi(i) B[c(i), c(g)] phi(g).

    The mean is one query per category: q = mean_i B[c(i), c(g)]^T phi(i), S = q phi(g).

    Attributes:
        features: (N, V) float32, phi.
        categories: (N,) int64, c.
        table: (C, C, V, V) float32, B.
    """

    features: Vector
    categories: Rows
    table: Vector

    def query(self, outfit: Rows, category: int) -> Vector:
        """(V,) float32 q of an outfit for candidates of a category."""
        tables = self.table[self.categories[outfit], category]
        return np.einsum("iu,iuv->v", self.features[outfit], tables) / np.float32(len(outfit))

    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """See the class."""
        found = np.empty(len(candidates))
        categories = self.categories[candidates]
        for category in np.unique(categories):
            rows = categories == category
            found[rows] = self.features[candidates[rows]] @ self.query(outfit, int(category))
        return found


@dataclass(frozen=True, eq=False)
class StyleScorer(Scorer):
    """The optimal scores of outfits drawn from latent styles: an oracle, as it knows the tables.

    An outfit's style is drawn, then each item from P(item | style, category), independently. The
    wrong answers and the replaced items are drawn from P(item | category), so that the likelihood
    ratio decides best (Neyman and Pearson).

    Attributes:
        prior: (S,) float64 probabilities of the styles.
        likelihood: (N, S) float64 log P(item | style, category).
    """

    prior: Figures
    likelihood: Figures

    @classmethod
    def of_tables(
        cls, prior: Figures, values: Figures, labels: Labels, categories: Rows, schema: Schema
    ) -> "StyleScorer":
        """From tables of values: what an item shows is drawn attribute by attribute.

        Args:
            prior: (S,) float64.
            values: (S, C, V) float64 P(value | style, category); whatever where a category has
                not the attribute.
            labels: (N, A) int64 of the items; UNKNOWN where there is nothing to see.
            categories: (N,) int64.
            schema: of the columns.
        """
        rows, attributes = np.nonzero(labels != UNKNOWN)
        columns = np.asarray(schema.offsets)[attributes] + labels[rows, attributes]
        likelihood = np.zeros((len(labels), len(prior)))
        np.add.at(likelihood, rows, np.log(values[:, categories[rows], columns]).T)
        return cls(prior, likelihood)

    @cached_property
    def _alone(self) -> Figures:
        """(N,) log P(item | category)."""
        return _log_sum(self.likelihood + np.log(self.prior))

    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """Log P(candidate | outfit) - log P(candidate)."""
        posterior = np.log(self.prior) + self.likelihood[outfit].sum(axis=0)
        posterior -= _log_sum(posterior)
        return _log_sum(self.likelihood[candidates] + posterior) - self._alone[candidates]

    def compatibility(self, outfit: Rows) -> float:
        """Log P(outfit) less that of its items drawn apart."""
        together = _log_sum(np.log(self.prior) + self.likelihood[outfit].sum(axis=0))
        return float(together - self._alone[outfit].sum())


def value_features(beliefs: Vector, schema: Schema) -> Vector:
    """(N, V) float32 of beliefs (N, V + A): the probability of each value, absence left out."""
    return np.concatenate([beliefs[:, part][:, :-1] for part in parts(schema)], axis=1)


def cooccurrence(
    features: Vector,
    categories: Rows,
    num_categories: int,
    outfits: Iterable[Rows],
    schema: Schema,
) -> Vector:
    """(C, C, V, V) float32 pointwise mutual information of values that items of an outfit show.

    B[c, d, u, v] = log (n + k) / (e + k), where n counts pairs of an item of category c with value
    u and another of category d with value v, e is how many there were if the two were
    independent, and k is SMOOTHING: values that are rare in the data score near 0. Pairs in which
    either attribute is unknown do not count.

    Args:
        features: (N, V) float32 probabilities of values: of labels `Schema.multi_hot`, else
            `value_features`.
        categories: (N,) int64.
        num_categories: C.
        outfits: rows of the items of each training outfit.
        schema: of the columns.
    """
    counts = np.zeros((num_categories, num_categories, schema.num_values, schema.num_values))
    for first, second, rows, others in _pairs(categories, outfits):
        counts[first, second] = features[rows].T.astype(np.float64) @ features[others]
    of_rows = np.add.reduceat(counts, schema.offsets, axis=3)  # (C, C, V, A)
    of_columns = np.add.reduceat(counts, schema.offsets, axis=2)  # (C, C, A, V)
    totals = np.add.reduceat(of_rows, schema.offsets, axis=2)  # (C, C, A, A)
    attribute = schema.attribute_of_column
    expected = of_rows[..., attribute] * of_columns[:, :, attribute]
    expected /= np.maximum(totals[:, :, attribute][..., attribute], 1e-12)
    return np.log((counts + SMOOTHING) / (expected + SMOOTHING)).astype(np.float32)


def _pairs(categories: Rows, outfits: Iterable[Rows]) -> Iterable[tuple[int, int, Rows, Rows]]:
    """Rows of all ordered pairs of two items of one outfit, by their categories."""
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for outfit in outfits:
        rows, kinds = outfit.tolist(), categories[outfit].tolist()
        for i, (row, kind) in enumerate(zip(rows, kinds)):
            for j, (other, second) in enumerate(zip(rows, kinds)):
                if i != j:
                    firsts, seconds = found[kind, second]
                    firsts.append(row)
                    seconds.append(other)
    for (first, second), (firsts, seconds) in found.items():
        yield first, second, np.array(firsts, np.int64), np.array(seconds, np.int64)


class Blank(NamedTuple):
    """A question of FITB: rows of the items that are there and of the answers, and which answer is
    the item that was taken out.
    """

    outfit: Rows
    answers: Rows
    truth: int


class Hidden(NamedTuple):
    """A question of retrieval: rows of the items that are there, the row of the missing one, and
    those of all candidates, it among them.
    """

    outfit: Rows
    truth: int
    candidates: Rows


@dataclass(frozen=True, eq=False)
class OutfitBenchmark:
    """The questions of a split; rows index all items that the scorers know.

    Attributes:
        blanks: FITB.
        fitting: outfits that somebody put together.
        clashing: the same with every item replaced.
        hidden: retrieval.
        categories: (N,) int64 that retrieval averages over.
    """

    blanks: Sequence[Blank]
    fitting: Sequence[Rows]
    clashing: Sequence[Rows]
    hidden: Sequence[Hidden]
    categories: Rows


def hide_items(
    outfits: Sequence[Rows], item_ids: Sequence[str], categories: Rows, most: int = POOL
) -> list[Hidden]:
    """Make a retrieval question of each outfit, by the protocol above.

    The hidden item is chosen by a hash of the outfit's item ids, and a category's candidates are
    the `most` items with the least hash of their own id: the same on every run and machine.

    Args:
        outfits: rows of the items of each outfit of the split, at least two.
        item_ids: N.
        categories: (N,) int64.
        most: candidates of a category; the hidden item is added where it is none of them.
    """
    pools = _pools(outfits, item_ids, categories, most)
    questions: list[Hidden] = []
    for outfit in outfits:
        rows: list[int] = outfit.tolist()
        place = _hash("\n".join(item_ids[row] for row in rows)) % len(rows)
        truth, rest = int(outfit[place]), np.delete(outfit, place)
        candidates = np.union1d(np.setdiff1d(pools[int(categories[truth])], rest), [truth])
        questions.append(Hidden(rest, truth, candidates))
    return questions


def _pools(
    outfits: Sequence[Rows], item_ids: Sequence[str], categories: Rows, most: int
) -> dict[int, Rows]:
    by_category: dict[int, list[int]] = defaultdict(list)
    for row in np.unique(np.concatenate([*outfits, np.zeros(0, np.int64)])).tolist():
        by_category[int(categories[row])].append(row)
    return {
        category: np.array(sorted(rows, key=lambda row: _hash(item_ids[row]))[:most], np.int64)
        for category, rows in by_category.items()
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big")


def fill_in_the_blank(scorer: Scorer, blanks: Sequence[Blank]) -> float:
    """Return the share of questions whose missing item scores best; ties share the credit."""
    credit = 0.0
    for blank in blanks:
        scores = scorer.complete(blank.outfit, blank.answers)
        best = scores == scores.max()
        credit += float(best[blank.truth] / best.sum())
    return credit / len(blanks)


def compatibility_auc(scorer: Scorer, fitting: Sequence[Rows], clashing: Sequence[Rows]) -> float:
    """Return the probability that an outfit scores higher than a clashing one; ties count half."""
    wrong = np.sort([scorer.compatibility(outfit) for outfit in clashing])
    right = np.array([scorer.compatibility(outfit) for outfit in fitting])
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / (2 * len(wrong)))


def retrieval_recall(
    scorer: Scorer, hidden: Sequence[Hidden], categories: Rows
) -> dict[str, float]:
    """Return recall@k: the share of hidden items found, averaged over their categories.

    Where several candidates score like the hidden one, it is found as often as it would be if
    their order were drawn.
    """
    found: dict[int, list[list[float]]] = defaultdict(list)
    for question in hidden:
        scores = scorer.complete(question.outfit, question.candidates)
        own = scores[question.candidates == question.truth][0]
        better, alike = int((scores > own).sum()), int((scores == own).sum())
        credit = [min(1.0, max(0.0, (k - better) / alike)) for k in RECALL_RANKS]
        found[int(categories[question.truth])].append(credit)
    means = np.mean([np.mean(credits, axis=0) for credits in found.values()], axis=0)
    return {f"recall@{k}": float(mean) for k, mean in zip(RECALL_RANKS, means)}


def outfit_figures(scorers: Mapping[str, Scorer], benchmark: OutfitBenchmark) -> dict[str, Any]:
    """Return `fitb`, `auc` and `recall@k` of each scorer, as far as such questions were given, and
    the number of `questions` of each kind.
    """
    asked = {
        "fitb": len(benchmark.blanks),
        "auc": len(benchmark.fitting) * bool(benchmark.clashing),
        "recall": len(benchmark.hidden),
    }
    found: dict[str, Any] = {"questions": asked, "scorers": {}}
    for name, scorer in scorers.items():
        figures: dict[str, float] = {}
        if asked["fitb"]:
            figures["fitb"] = fill_in_the_blank(scorer, benchmark.blanks)
        if asked["auc"]:
            figures["auc"] = compatibility_auc(scorer, benchmark.fitting, benchmark.clashing)
        if asked["recall"]:
            figures |= retrieval_recall(scorer, benchmark.hidden, benchmark.categories)
        found["scorers"][name] = figures
    return found


def as_text(figures: Mapping[str, Any]) -> str:
    """Format the figures as a table: one line a scorer, in percent except the AUC."""
    asked, scorers = figures["questions"], figures["scorers"]
    columns = list(next(iter(scorers.values())))
    width = max(map(len, scorers))
    lines = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, of_scorer in scorers.items():
        cells = (
            f"{of_scorer[column]:11.3f}" if column == "auc" else f"{100 * of_scorer[column]:11.1f}"
            for column in columns
        )
        lines.append(f"{name:{width}}" + "".join(cells))
    told = ", ".join(f"{name} {count:,}" for name, count in asked.items())
    return "\n".join([*lines, f"questions: {told}"])


def _log_sum(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log of the sum of exponentials over the last axis."""
    most = values.max(axis=-1, keepdims=True)
    return np.log(np.exp(values - most).sum(axis=-1)) + most[..., 0]
