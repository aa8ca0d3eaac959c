"""Rankings of a gallery for edit queries: by edited embeddings, by baselines, by the match score.

All of them see pictures alone: labels of the gallery are not used.

Symbols: N gallery items, Q queries, A attributes, V columns, E width of a whole embedding, k
answers per query.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.metrics import EditQueries, Watch, blocks_of, predicted_labels, smallest, unit
from adde.schema import UNKNOWN, Labels, Rows, Schema, Vector
from adde.scoring import FIRST, Calibration, ask_value, first_then_rest, match_scores, parts

Edit = Callable[[Vector, Vector], Vector]
"""Maps embeddings (Q, A, D) and indicator (Q, V) to L2-normalised queries (Q, A D), all float32."""

BASELINES = ("random", "no_edit", "classifier", "classifier_soft")
BASELINE_ARRAYS = 8
"""Float32 arrays of queries x gallery in memory while the baselines rank."""

MATCH_ARRAYS = 3
"""Float32 arrays of queries x gallery in memory while the match score ranks, without the scores of
each weight."""


class Ranker:
    """The arithmetic of rankings in numpy; `adde.training.ranking` runs it on a GPU.

    Args:
        watch: passes on the blocks of each ranking.
    """

    def __init__(self, watch: Watch = iter) -> None:
        self.blocks: Watch = watch

    def put(self, array: npt.NDArray[Any]) -> Any:
        """Return an array in the form that the other methods take."""
        return array

    def products(self, rows: Any, columns: Any) -> Any:
        """Multiply rows (Q, E) and columns (N, E): (Q, N)."""
        return rows @ columns.T

    def smallest(self, costs: Any, k: int) -> Rows:
        """As `adde.metrics.smallest`."""
        return smallest(costs, k)

    def match_scores(
        self, wanted: Vector, weights: Vector, beliefs: Any, schema: Schema, epsilon: float
    ) -> Any:
        """Compute `adde.scoring.match_scores` of beliefs that were `put`."""
        return match_scores(wanted, weights, beliefs, schema, epsilon)


NUMPY = Ranker()


def top_k(queries: Vector, gallery: Vector, k: int = 50, ranker: Ranker = NUMPY) -> Rows:
    """Rank gallery rows by ascending squared Euclidean distance, ties to the lowest row.

    Args:
        queries: (Q, E) float32.
        gallery: (N, E) float32.
        k: answers wanted; all N if the gallery is smaller.
        ranker: does the arithmetic.

    Returns:
        (Q, min(k, N)) int64.
    """
    norms, columns = ranker.put(np.einsum("ne,ne->n", gallery, gallery)), ranker.put(gallery)
    ranked = np.zeros((len(queries), min(k, len(gallery))), np.int64)
    for block in blocks_of(len(queries), len(gallery)):
        products = ranker.products(ranker.put(queries[block]), columns)
        ranked[block] = ranker.smallest(norms - 2 * products, k)
    return ranked


def rank_edits(
    queries: EditQueries,
    embeddings: Vector,
    logits: Vector,
    schema: Schema,
    edit: Edit,
    k: int = 50,
    ranker: Ranker = NUMPY,
) -> Rows:
    """Rank by distance to the edited embedding of the reference: (Q, min(k, N)) int64.

    The edit removes the predicted value, not the labelled one.

    Args:
        queries: the Q queries.
        embeddings: (N, A, D) float32 of the gallery.
        logits: (N, V) float32 of the gallery.
        schema: of the columns.
        edit: such as the prototype memory's.
        k: answers per query.
        ranker: does the arithmetic.
    """
    predicted = predicted_labels(logits, schema)
    gallery = unit(embeddings.reshape(len(embeddings), -1))
    ranked = np.zeros((len(queries), min(k, len(gallery))), np.int64)
    for block in ranker.blocks(blocks_of(len(queries), gallery.shape[1] + schema.num_values)):
        part = queries[block]
        own = predicted[part.reference]
        indicator = schema.indicator(own, edited_labels(own, part))
        ranked[block] = top_k(edit(embeddings[part.reference], indicator), gallery, k, ranker)
    return ranked


def rank_baselines(
    queries: EditQueries,
    embeddings: Vector,
    logits: Vector,
    schema: Schema,
    k: int = 50,
    ranker: Ranker = NUMPY,
    names: Sequence[str] = BASELINES,
) -> dict[str, Rows]:
    """Rank by each baseline (docs/architecture.md): (Q, min(k, N)) int64 by name.

    * random: queries and gallery are independent random vectors.
    * no_edit: distance to the reference's own embedding.
    * classifier: number of attributes whose predicted value equals the wanted one; ties by
      distance to the reference's embedding. The wanted values are the reference's predicted ones
      with the requested values in their place.
    * classifier_soft: sum of the log-probabilities of the wanted values.

    Arguments as in `rank_edits`.
    """
    predicted = predicted_labels(logits, schema)
    gallery = ranker.put(unit(embeddings.reshape(len(embeddings), -1)))
    predicted_hot = ranker.put(schema.multi_hot(predicted))
    log_probabilities = ranker.put(_log_softmax(logits, schema))
    random = np.random.default_rng(0)
    random_gallery = ranker.put(random.standard_normal((len(gallery), 16), dtype=np.float32))
    shape = (len(queries), min(k, len(gallery)))
    ranked = {name: np.zeros(shape, np.int64) for name in names}
    for block in ranker.blocks(blocks_of(len(queries), BASELINE_ARRAYS * len(gallery))):
        part = queries[block]
        wanted = ranker.put(schema.multi_hot(edited_labels(predicted[part.reference], part)))
        # Queries are ordered by reference, so a block has far fewer references than queries.
        items, query = map(ranker.put, np.unique(part.reference, return_inverse=True))
        distances = None
        if {"no_edit", "classifier"} & set(names):
            distances = (2 - 2 * ranker.products(gallery[items], gallery))[query.reshape(-1)]
        for name in names:
            if name == "random":
                drawn = random.standard_normal((len(part), 16), dtype=np.float32)
                costs = ranker.products(ranker.put(drawn), random_gallery)
            elif name == "no_edit":
                costs = distances
            elif name == "classifier":
                # Squared distances of unit vectors stay below 8, so one match outweighs them.
                costs = distances - 8 * ranker.products(wanted, predicted_hot)
            else:
                costs = -ranker.products(wanted, log_probabilities)
            ranked[name][block] = ranker.smallest(costs, k)
    return ranked


def rank_matches(
    queries: EditQueries,
    beliefs: Vector,
    schema: Schema,
    calibration: Calibration,
    k: int = 50,
    first: int = FIRST,
    ranker: Ranker = NUMPY,
) -> Rows:
    """Rank by the match score: (Q, min(k, N)) int64, ties to the lowest row.

    Args:
        queries: the Q queries.
        beliefs: (N, V + A) float32 of the gallery.
        schema: of the columns.
        calibration: epsilon and the weight of an edit.
        k: answers per query.
        first: answers ranked with the weight of an edit; the others weigh all attributes alike.
        ranker: does the arithmetic.
    """
    weights = (calibration.edit_weight,)
    epsilon = calibration.epsilon
    return rank_matches_by_weight(queries, beliefs, schema, epsilon, weights, k, first, ranker)[0]


def rank_matches_by_weight(
    queries: EditQueries,
    beliefs: Vector,
    schema: Schema,
    epsilon: float,
    edit_weights: Sequence[float],
    k: int = 50,
    first: int = FIRST,
    ranker: Ranker = NUMPY,
) -> list[Rows]:
    """Rank as `rank_matches` does, once for each of several weights of an edit."""
    k = min(k, len(beliefs))
    ranked = [np.zeros((len(queries), k), np.int64) for _ in edit_weights]
    stored, arrays = ranker.put(beliefs), MATCH_ARRAYS + len(edit_weights)
    for block in ranker.blocks(blocks_of(len(queries), arrays * len(beliefs))):
        wanted, edited = wanted_beliefs(queries[block], beliefs, schema)
        heavier = [at for at, weight in enumerate(edit_weights) if weight != 1]
        weights = np.ones((1 + len(heavier), *edited.shape), np.float32)
        for weighed, at in zip(weights[1:], heavier):
            weighed[edited] = edit_weights[at]
        close, *obeying = ranker.match_scores(wanted, weights, stored, schema, epsilon)
        close = ranker.smallest(-close, k)
        for found in ranked:
            found[block] = close
        for at, scores in zip(heavier, obeying):
            ranked[at][block] = first_then_rest(ranker.smallest(-scores, first), close, k)
    return ranked


def wanted_beliefs(
    queries: EditQueries, beliefs: Vector, schema: Schema
) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """Translate queries for the match score.

    Args:
        queries: the Q queries.
        beliefs: (N, V + A) float32 of the gallery, whose items are the references.
        schema: of the columns.

    Returns:
        wanted (Q, V + A) float32: the requested value of an edited attribute, the reference's own
        beliefs of any other; and (Q, A) bool, whether an attribute is edited.
    """
    wanted, values = beliefs[queries.reference], queries.values
    for a, part in enumerate(parts(schema)):
        edited = np.flatnonzero(values[:, a] != UNKNOWN)
        rows = wanted[edited]
        ask_value(rows, part, values[edited, a])
        wanted[edited] = rows
    return wanted, values != UNKNOWN


def edited_labels(labels: Labels, queries: EditQueries) -> Labels:
    """Replace labels (Q, A) int64 by each query's requested values."""
    values = queries.values
    return np.where(values == UNKNOWN, labels, values)


def _log_softmax(logits: Vector, schema: Schema) -> Vector:
    parts = np.split(logits, schema.offsets[1:], axis=1)
    shifted = [part - part.max(axis=1, keepdims=True) for part in parts]
    return np.concatenate(
        [part - np.log(np.exp(part).sum(axis=1, keepdims=True)) for part in shifted], axis=1
    )
