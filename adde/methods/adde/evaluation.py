"""Evaluation of an ADDE: its outputs on a split, and the figures computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adde import metrics
from adde.distributed import rank, sum_over_ranks, world_size
from adde.edits import MAX_QUERIES, judge
from adde.methods.adde.memory import multi_hot
from adde.methods.adde.model import ADDE
from adde.metrics import EditQueries, Queries
from adde.mining.distances import full_precision
from adde.ranking import (
    BASELINES,
    NUMPY,
    Edit,
    Ranker,
    rank_baselines,
    rank_edits,
    rank_matches,
)
from adde.schema import Labels, Rows, Schema, Vector
from adde.scoring import DEFAULTS, FIRST, Calibration
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder
from adde.training.evaluation import Evaluator
from adde.training.ranking import ranker_for
from adde.training.watching.displays import PictureRow

ANSWERS = 50
"""Answers of a query that are judged."""

SHOWN = 10
"""Answers of a query that are shown as pictures."""


@dataclass(frozen=True)
class Encoded:
    """A split in stored order."""

    embeddings: Vector
    """(N, A, D) float32."""
    logits: Vector
    """(N, V) float32."""
    presence: Vector | None
    """(N, A) float32 logits; None where the model has no such output."""
    labels: Labels
    """(N, A) int64."""
    rows: Rows
    """(N,) int64 positions in the split's stored order, without the unreadable samples."""
    items: Rows | None = None
    """(N,) int64 numbers, equal for pictures of one item; None if each item has one picture."""


def represent(model: ADDE, images: Tensor) -> dict[str, Tensor]:
    """Encode a batch of pictures: embeddings, logits and, if the model has it, presence."""
    encoding = model.encode(images)._asdict()
    return {name: value for name, value in encoding.items() if value is not None}


def encode_split(evaluator: Evaluator, model: ADDE, split: str) -> Encoded:
    """Encode a split with all ranks; every rank gets the whole result."""
    found = evaluator.encode(represent, model, split)
    outputs = {"presence": None, **found.outputs}
    return Encoded(**outputs, labels=found.labels, rows=found.rows, items=found.items)


@torch.no_grad()
def prototypes(evaluator: Evaluator, model: ADDE) -> tuple[Tensor, Tensor]:
    """Compute stage 2: the mean r_a over all training items that have the value (equation 9).

    An item with several values counts in the mean of each.

    Must run on all ranks.

    Returns:
        (V, D) float32 prototypes, zero for a value that no training item has, and the (V,) int64
        number of items of each value.
    """
    schema, device = model.schema, evaluator.device
    sums = torch.zeros(schema.num_values, model.settings.width, dtype=torch.float64, device=device)
    counts = torch.zeros(schema.num_values, dtype=torch.float64, device=device)
    of_column = torch.from_numpy(schema.attribute_of_column).to(device)
    for batch, _ in evaluator.batches(model, "train"):
        with full_precision(batch.images):
            embeddings = model.encode(batch.images).embeddings
        rows, columns = multi_hot(batch.labels, schema).nonzero(as_tuple=True)
        sums.index_add_(0, columns, embeddings[rows, of_column[columns]].double())
        counts += torch.bincount(columns, minlength=len(of_column))
    sums, counts = sum_over_ranks(sums), sum_over_ranks(counts)
    return (sums / counts.clamp(min=1)[:, None]).float(), counts.long()


def memory_edit(model: ADDE) -> Edit:
    """Return the edit of the model's prototype memory, in numpy."""
    weight = model.memory.weight.detach().float().cpu().numpy()
    return lambda embeddings, indicator: metrics.unit(
        embeddings.reshape(len(embeddings), -1) + indicator @ weight.T
    )


def no_edit(embeddings: Vector, indicator: Vector) -> Vector:
    """Return the embeddings unchanged, in the form of edited queries."""
    return metrics.unit(embeddings.reshape(len(embeddings), -1))


def attribute_accuracy(encoded: Encoded, schema: Schema) -> dict[str, float]:
    """Compute `accuracy`, the mean over attributes, and `accuracy/<attribute>`."""
    predicted = metrics.predicted_labels(encoded.logits, schema, encoded.labels)
    accuracy = metrics.attribute_accuracy(predicted, encoded.labels, schema.names)
    of_each = {f"accuracy/{name}": accuracy[name] for name in accuracy if name != "mean"}
    return {"accuracy": accuracy["mean"], **of_each}


def queries_of(labels: Labels) -> Queries:
    """Return `metrics.manipulation_queries`, cached: the same split is evaluated many times."""
    return _queries_of(labels.tobytes(), labels.shape[1])


@lru_cache(maxsize=2)
def _queries_of(content: bytes, attributes: int) -> Queries:
    labels = np.frombuffer(content, np.int64).reshape(-1, attributes)
    return metrics.manipulation_queries(labels)


def retrieval(
    model: ADDE, encoded: Encoded, device: torch.device, most: int = 0
) -> dict[str, float]:
    """Compute `metrics.retrieval_metrics` of the edited embeddings; each rank asks its share.

    Must run on all ranks, which all get the result.

    Args:
        model: its prototype memory edits.
        encoded: the split, the same on every rank.
        device: ranks the gallery.
        most: see `metrics.Queries.spread`.
    """
    queries = queries_of(encoded.labels).spread(most)
    mine = queries[rank() :: world_size()]
    watch = partial(tqdm, desc="rank", unit="block", leave=False, disable=rank() > 0 or None)
    ranked = rank_edits(
        mine,
        encoded.embeddings,
        encoded.logits,
        model.schema,
        memory_edit(model),
        ANSWERS + metrics.extra_answers(encoded.items),
        ranker_for(device, watch),
    )
    ranked = metrics.other_items(ranked, mine.reference, encoded.items, ANSWERS)
    figures = metrics.retrieval_metrics(ranked, encoded.labels, mine)
    sums = torch.tensor(
        [figures[name] * len(mine) for name in metrics.METRIC_NAMES],
        dtype=torch.float64,
        device=device,
    )
    sums = sum_over_ranks(sums) / max(1, len(queries))
    return {**dict(zip(metrics.METRIC_NAMES, sums.tolist())), "queries": len(queries)}


def evaluate_split(
    encoded: Encoded,
    schema: Schema,
    edit: Edit,
    calibration: Calibration,
    queries: Queries,
    most: int = MAX_QUERIES,
    ranker: Ranker = NUMPY,
) -> dict[str, Any]:
    """Compute the content of metrics.json except `split` and `checkpoint`.

    Args:
        encoded: the split, gallery and references.
        schema: of the catalogue.
        edit: of the prototype memory.
        calibration: of the match score.
        queries: of the published protocol.
        most: maximum number of queries for each number of edits at once.
        ranker: does the arithmetic.
    """
    logits, labels = encoded.logits, encoded.labels
    beliefs = calibration.beliefs(logits, encoded.presence, schema)
    extra = metrics.extra_answers(encoded.items)
    k = ANSWERS + extra

    def others(asked: EditQueries, ranked: Rows) -> Rows:
        return metrics.other_items(ranked, asked.reference, encoded.items, ANSWERS)

    def match(asked: EditQueries, first: int = FIRST) -> Rows:
        return others(
            asked,
            rank_matches(asked, beliefs, schema, calibration, k, first + extra, ranker),
        )

    def adde(asked: EditQueries) -> Rows:
        return others(asked, rank_edits(asked, encoded.embeddings, logits, schema, edit, k, ranker))

    def baselines(asked: EditQueries, names: Sequence[str] = BASELINES) -> dict[str, Rows]:
        found = rank_baselines(asked, encoded.embeddings, logits, schema, k, ranker, names)
        return {name: others(asked, ranked) for name, ranked in found.items()}

    rankings = {"match": match(queries), "adde": adde(queries), **baselines(queries)}
    rows = {
        name: metrics.summary(metrics.query_metrics(ranked, labels, queries), queries.reference)
        for name, ranked in rankings.items()
    }
    judged = {
        "match": partial(match, first=FIRST + 1),
        "adde": adde,
        "classifier_soft": lambda asked: baselines(asked, ["classifier_soft"])["classifier_soft"],
    }
    predicted = metrics.predicted_labels(logits, schema, labels)
    return {
        "match": rows["match"],
        "adde": rows["adde"],
        "baselines": {name: rows[name] for name in BASELINES},
        "edits": judge(judged, labels, schema, most),
        "calibration": calibration.to_json(),
        "attribute_accuracy": metrics.attribute_accuracy(predicted, labels, schema.names),
        "by_attribute": metrics.hits_by_attribute(rankings["match"], labels, queries, schema),
    }


def picture_rows(
    index: ShardIndex, split: str, schema: Schema, encoded: Encoded, rows: int
) -> list[PictureRow]:
    """Show a few queries, evenly spaced, with their ten best answers before and after the edit.

    Before the edit they are the nearest; after it they are ranked by the match score, which is
    calibrated only at the end of a run. Pictures are the stored bytes.
    """
    labels = encoded.labels
    queries = queries_of(labels)
    if not len(queries) or not rows:
        return []
    some = queries[np.unique(np.linspace(0, len(queries) - 1, rows).astype(np.int64))]
    k = SHOWN + metrics.extra_answers(encoded.items)
    calibration = Calibration((1.0,) * len(schema.sizes), (), **DEFAULTS)
    beliefs = calibration.beliefs(encoded.logits, None, schema)
    ranked, unedited = (
        metrics.other_items(found, some.reference, encoded.items, SHOWN)
        for found in (
            rank_matches(some, beliefs, schema, calibration, k, k),
            rank_edits(some, encoded.embeddings, encoded.logits, schema, no_edit, k),
        )
    )
    shards, reader = index.split(split), ShardReader(index)
    samples = tuple(shard.samples for shard in shards)
    places = StoredOrder(samples, sum(samples))(0)[encoded.rows].tolist()

    def picture(row: int) -> bytes:
        shard, position = places[row]
        return reader.read(shards[shard], position).picture

    def shown(answers: list[int], row: int) -> list[tuple[bytes, bool]]:
        asked = some[np.full(len(answers), row)]
        matches: Any = metrics.target_matches(labels[answers], asked).all(axis=1)
        return [(picture(answer), good) for answer, good in zip(answers, matches.tolist())]

    result: list[PictureRow] = []
    for row, (answers, before) in enumerate(zip(ranked.tolist(), unedited.tolist())):
        reference, attribute = int(some.reference[row]), int(some.attribute[row])
        own = schema.text(attribute, int(labels[reference, attribute])) or "unknown"
        new = schema.attributes[attribute].values[int(some.value[row])]

        edit = f"{schema.names[attribute]}: {own} -> {new}"
        lines = {
            name: shown(found, row) for name, found in (("before", before), ("after", answers))
        }
        result.append(PictureRow(edit, picture(reference), lines))
    reader.close()
    return result
