"""Metrics of obedience: how often the answers have the values that an edit asks for.

The published protocol asks only where the gallery holds an exact target. Here every edit of a known
label is asked, one, two or three at once, and answers are judged by the edited attributes alone.

Symbols: N gallery items, Q questions, A attributes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.metrics import (
    BASELINES,
    Asked,
    Edit,
    Figures,
    On,
    Places,
    Queries,
    Search,
    Watch,
    attribute_accuracy,
    baseline_rankings,
    blocks_of,
    hits_by_attribute,
    predicted_labels,
    query_metrics,
    rank_edits,
    smallest,
    summary,
    top_k,
)
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import FIRST, Calibration, ask_value, first_then_rest, match_scores, parts

ARRAYS = 4
"""Float32 arrays of questions x gallery that ranking holds at a time."""

MOST = 20_000
"""Questions of one number of edits at most."""

COUNTS = (1, 2, 3)
"""Edits at once."""

Best = Callable[[Vector, Vector, Vector, Schema, float, Sequence[int]], list[Places]]
"""As `best_matches`."""

Rank = Callable[[Asked], Places]
"""Questions to their answers, (Q, FIRST + 1) int64 gallery rows or more, best first."""


@dataclass(frozen=True)
class Edits:
    """Questions "this item, but with these values", a row each."""

    reference: Places
    """(Q,) int64 row of the item in the gallery."""
    values: Labels
    """(Q, A) int64 values asked for, UNKNOWN where an attribute is not edited."""

    def __len__(self) -> int:
        return len(self.reference)

    def __getitem__(self, rows: slice | Places) -> "Edits":
        return Edits(self.reference[rows], self.values[rows])


def all_edits(labels: Labels, count: int, most: int = MOST) -> Edits:
    """Edits of `count` known labels at once to other values, which some item has together.

    With one edit these are all there are, or `most` evenly spaced; with several, as many are drawn,
    the same for the same labels.

    Args:
        labels: (N, A) int64 of the gallery, whose items are the references too.
        count: edits at once, 1 or more.
        most: questions at most.
    """
    found = _every_edit(labels) if count == 1 else _drawn_edits(labels, count, most)
    if len(found) <= most:
        return found
    return found[np.linspace(0, len(found) - 1, most).astype(np.int64)]


def _every_edit(labels: Labels) -> Edits:
    rows: list[Places] = []
    for a in range(labels.shape[1]):
        shown = np.unique(labels[labels[:, a] != UNKNOWN, a])
        known = np.flatnonzero(labels[:, a] != UNKNOWN)
        item, value = (grid.ravel() for grid in np.meshgrid(known, shown, indexing="ij"))
        other = labels[item, a] != value
        attribute = np.full(int(other.sum()), a)
        rows.append(np.stack([item[other], attribute, value[other]], axis=1))
    table = np.concatenate(rows)
    table = table[np.lexsort(table.T[::-1])]
    return _edits(table[:, 0], table[:, 1:2], table[:, 2:3], labels.shape[1])


def _drawn_edits(labels: Labels, count: int, most: int) -> Edits:
    """An item and, for the values, another item that differs in `count` attributes or more."""
    draws = np.random.default_rng(count)
    item, other = draws.integers(len(labels), size=(2, 2 * most))
    can = (labels[item] != UNKNOWN) & (labels[other] != UNKNOWN) & (labels[item] != labels[other])
    enough = np.flatnonzero(can.sum(axis=1) >= count)[:most]
    item, other, can = item[enough], other[enough], can[enough]
    # The attributes of the largest draws among those that can be edited.
    attributes = np.argsort(-(draws.random(can.shape) * can), axis=1)[:, :count]
    values = np.take_along_axis(labels[other], attributes, axis=1)
    return _edits(item, attributes, values, labels.shape[1])


def _edits(item: Places, attributes: Places, values: Labels, width: int) -> Edits:
    table = np.full((len(item), width), UNKNOWN)
    np.put_along_axis(table, attributes, values, axis=1)
    return Edits(item, table)


def wanted_metrics(ranked: Places, labels: Labels, edits: Edits) -> dict[str, Figures]:
    """`first_wanted` and `wanted@10` of every question, (Q,) float64 each.

    The reference is left out of the answers, as it is in a search. `first_wanted`: the first answer
    shows the wanted value of every edit. `wanted@10`: share of the first min(10, items that show
    them) answers that do.

    Args:
        ranked: (Q, K) int64 gallery rows, best first; FIRST + 1 are looked at.
        labels: (N, A) int64 of the gallery; an unknown label shows nothing.
        edits: the Q questions, each with an item that shows what is asked.
    """
    found = {name: np.zeros(len(edits)) for name in ("first_wanted", "wanted@10")}
    for block in blocks_of(len(edits), labels.size):
        values = edits[block].values
        there = _shown(values, labels).sum(axis=1)
        answers = _without(ranked[block, : FIRST + 1], edits.reference[block])
        good = (labels[answers] == values[:, None]) | (values[:, None] == UNKNOWN)
        good = good.all(axis=2)
        within = np.arange(good.shape[1]) < there[:, None]
        found["first_wanted"][block] = good[:, 0]
        found["wanted@10"][block] = (good & within).sum(axis=1) / np.minimum(there, FIRST)
    return found


def _without(ranked: Places, references: Places) -> Places:
    """Rankings (Q, K) less each one's reference, or less the last where it is not among them."""
    own = ranked == references[:, None]
    own[:, -1] |= ~own.any(axis=1)
    return ranked[~own].reshape(len(ranked), -1)


def _shown(values: Labels, labels: Labels) -> Any:
    """(Q, N) bool: the item shows all values that are asked for."""
    shown = np.ones((len(values), len(labels)), np.bool_)
    for a in range(labels.shape[1]):
        asked = np.flatnonzero(values[:, a] != UNKNOWN)
        shown[asked] &= values[asked, a, None] == labels[:, a]
    return shown


def judge(ranks: dict[str, Rank], labels: Labels, schema: Schema, most: int = MOST) -> Any:
    """Ranking -> number of edits -> `first_wanted` and `wanted@10` as in `metrics.summary`.

    For single edits also under `by_attribute`, with the `macro` mean over attributes.
    """
    result: dict[str, dict[str, Any]] = {name: {} for name in ranks}
    for count in COUNTS[: len(schema.names)]:
        edits = all_edits(labels, count, most)
        for name, rank in ranks.items():
            found = wanted_metrics(rank(edits), labels, edits)
            row = summary(found, edits.reference)
            if count == 1:
                row["by_attribute"] = _by_attribute(found, edits, schema)
            result[name][str(count)] = row
    return result


def _by_attribute(
    found: dict[str, Figures], edits: Edits, schema: Schema
) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for a, name in enumerate(schema.names):
        rows = edits.values[:, a] != UNKNOWN
        if rows.any():
            result[name] = {figure: float(values[rows].mean()) for figure, values in found.items()}
    macro = {f: float(np.mean([row[f] for row in result.values()])) for f in found if result}
    return {**result, "macro": macro} if result else {}


def ask(asked: Asked, beliefs: Vector, schema: Schema) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """Questions as the match score takes them: wanted (Q, V + A) float32, and which attributes are
    edited, (Q, A) bool. An unedited attribute wants the reference's own beliefs.

    Args:
        asked: the questions.
        beliefs: (N, V + A) float32 of the gallery, whose items are the references.
        schema: of the columns.
    """
    wanted, values = beliefs[asked.reference], asked.values
    for a, part in enumerate(parts(schema)):
        edited = np.flatnonzero(values[:, a] != UNKNOWN)
        rows = wanted[edited]
        ask_value(rows, part, values[edited, a])
        wanted[edited] = rows
    return wanted, values != UNKNOWN


def rank_matches(
    asked: Asked,
    beliefs: Vector,
    schema: Schema,
    calibration: Calibration,
    k: int = 50,
    first: int = FIRST,
    watch: Watch = iter,
    best: Best | None = None,
) -> Places:
    """(Q, k) answers by the match score on pictures alone, ties to the lowest row.

    Args:
        asked: the questions.
        beliefs: (N, V + A) float32 of the gallery.
        schema: of the columns.
        calibration: epsilon and the weight of an edit.
        k: ranks wanted.
        first: answers that are ranked with the weight of an edit.
        watch: is told of the blocks.
        best: finds the best rows; None: `best_matches`.
    """
    best = best or best_matches
    k = min(k, len(beliefs))
    obeys = calibration.edit_weight != 1
    found = np.zeros((len(asked), k), np.int64)
    for block in watch(blocks_of(len(asked), ARRAYS * len(beliefs))):
        wanted, edited = ask(asked[block], beliefs, schema)
        weights = np.ones((1 + obeys, *edited.shape), np.float32)
        weights[1:, edited] = calibration.edit_weight
        counts = (k, first)[: len(weights)]
        close, *obeying = best(wanted, weights, beliefs, schema, calibration.epsilon, counts)
        found[block] = first_then_rest(obeying[0], close, k) if obeying else close
    return found


def best_matches(
    wanted: Vector,
    weights: Vector,
    beliefs: Vector,
    schema: Schema,
    epsilon: float,
    counts: Sequence[int],
) -> list[Places]:
    """The best `counts` rows under each of several weights, (Q, count) each, ties to the lowest.

    Args:
        wanted: see `match_scores`, as the others.
        weights: (W, Q, A) float32.
        beliefs: (N, V + A) float32.
        schema: of the columns.
        epsilon: of the calibration.
        counts: W numbers of rows wanted.
    """
    scores = match_scores(wanted, weights, beliefs, schema, epsilon)
    return [smallest(-one, count) for one, count in zip(scores, counts)]


def evaluate_split(
    embeddings: Vector,
    logits: Vector,
    presence: Vector | None,
    labels: Labels,
    schema: Schema,
    edit: Edit,
    calibration: Calibration,
    queries: Queries,
    search: Search = top_k,
    watch: Watch = iter,
    most: int = MOST,
    best: Best | None = None,
    on: On | None = None,
) -> dict[str, Any]:
    """The content of metrics.json but for the split's name.

    Args:
        embeddings: (N, A, D) float32.
        logits: (N, V) float32.
        presence: (N, A) float32 logits; None where the model has none.
        labels: (N, A) int64.
        schema: of the catalogue.
        edit: the memory's edit.
        calibration: of the match score.
        queries: of the published protocol.
        search: ranks ADDE's queries.
        watch: is told of the blocks of all rankings.
        most: edits of known labels that are judged, of each number at once.
        best: finds the best matches; None: `best_matches`.
        on: ranks the baselines; None: numpy.
    """
    beliefs = calibration.beliefs(logits, presence, schema)

    def match(asked: Asked, first: int = FIRST) -> Places:
        return rank_matches(
            asked, beliefs, schema, calibration, first=first, watch=watch, best=best
        )

    def adde(asked: Asked) -> Places:
        return rank_edits(asked, embeddings, logits, schema, edit, search=search, watch=watch)

    def baselines(asked: Asked, names: Sequence[str] = BASELINES) -> dict[str, Places]:
        return baseline_rankings(asked, embeddings, logits, schema, watch=watch, names=names, on=on)

    def soft(asked: Asked) -> Places:
        return baselines(asked, ("classifier_soft",))["classifier_soft"]

    rankings = {"match": match(queries), "adde": adde(queries)}
    rows = {
        name: summary(query_metrics(ranked, labels, queries), queries.reference)
        for name, ranked in {**rankings, **baselines(queries)}.items()
    }
    asking = {"match": partial(match, first=FIRST + 1), "adde": adde, "classifier_soft": soft}
    return {
        **{name: rows[name] for name in rankings},
        "baselines": {name: rows[name] for name in BASELINES},
        "edits": judge(asking, labels, schema, most),
        "calibration": calibration.to_json(),
        "attribute_accuracy": attribute_accuracy(
            predicted_labels(logits, schema), labels, schema.names
        ),
        "by_attribute": hits_by_attribute(rankings["match"], labels, queries, schema),
    }
