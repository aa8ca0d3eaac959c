"""What an ADDE is worth: its outputs on a split, and the figures that follow from them."""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adde import metrics
from adde.distributed import rank, sum_over_ranks, world_size
from adde.methods.adde.model import ADDE
from adde.mining.distances import full_precision
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder
from adde.training.evaluation import Evaluator
from adde.training.ranking import top_k_on
from adde.training.watching.displays import PictureRow


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
    rows: Labels
    """(N,) int64 places in the split's stored order, from which unreadable samples are left out."""


def represent(model: ADDE, images: Tensor) -> dict[str, Tensor]:
    """Embeddings, logits and presence of a batch of pictures."""
    encoding = model.encode(images)._asdict()
    return {name: value for name, value in encoding.items() if value is not None}


def encode_split(evaluator: Evaluator, model: ADDE, split: str) -> Encoded:
    """A split's embeddings, logits, presence and labels, on every rank."""
    found = evaluator.encode(represent, model, split)
    outputs = {"presence": None, **found.outputs}
    return Encoded(**outputs, labels=found.labels, rows=found.rows)


@torch.no_grad()
def prototypes(evaluator: Evaluator, model: ADDE) -> tuple[Tensor, Tensor]:
    """Stage 2: mean r_a over all training items that have the value (equation 9); on all ranks.

    Returns:
        (V, D) float32 prototypes, zero for a value that no training item has, and the (V,) int64
        number of items of each value.
    """
    schema, device = model.schema, evaluator.device
    sums = torch.zeros(schema.num_values, model.settings.width, dtype=torch.float64, device=device)
    counts = torch.zeros(schema.num_values, dtype=torch.float64, device=device)
    of_column = torch.from_numpy(schema.attribute_of_column).to(device)
    offsets = torch.tensor(schema.offsets, device=device)
    for batch, _ in evaluator.batches(model, "train"):
        with full_precision(batch.images):
            embeddings = model.encode(batch.images).embeddings
        known = batch.labels != UNKNOWN
        columns = (batch.labels + offsets)[known]
        sums.index_add_(0, columns, embeddings[known].double())
        counts += torch.bincount(columns, minlength=len(of_column))
    sums, counts = sum_over_ranks(sums), sum_over_ranks(counts)
    return (sums / counts.clamp(min=1)[:, None]).float(), counts.long()


class MemoryEdit:
    """The memory's edit in numpy: (Q, A, D), (Q, V) -> L2-normalised queries (Q, A D) float32."""

    def __init__(self, model: ADDE) -> None:
        self._weight = model.memory.weight.detach().float().cpu().numpy()

    def __call__(self, embeddings: Vector, indicator: Vector) -> Vector:
        """The normalised r' of each row."""
        queries = embeddings.reshape(len(embeddings), -1) + indicator @ self._weight.T
        return queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)


class NoEdit:
    """The embeddings as they are, as queries of the same form."""

    def __call__(self, embeddings: Vector, indicator: Vector) -> Vector:
        """The normalised r of each row."""
        queries = embeddings.reshape(len(embeddings), -1)
        return queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)


def attribute_accuracy(encoded: Encoded, schema: Schema) -> dict[str, float]:
    """`accuracy`, the mean over attributes, and `accuracy/<attribute>`."""
    predicted = metrics.predicted_labels(encoded.logits, schema)
    accuracy = metrics.attribute_accuracy(predicted, encoded.labels, schema.names)
    of_each = {f"accuracy/{name}": accuracy[name] for name in accuracy if name != "mean"}
    return {"accuracy": accuracy["mean"], **of_each}


def queries_of(labels: Labels) -> metrics.Queries:
    """`metrics.manipulation_queries`, remembered: a split is evaluated again and again."""
    return _queries_of(labels.tobytes(), labels.shape[1])


@lru_cache(maxsize=2)
def _queries_of(content: bytes, attributes: int) -> metrics.Queries:
    labels = np.frombuffer(content, np.int64).reshape(-1, attributes)
    return metrics.manipulation_queries(labels)


def retrieval(
    model: ADDE, encoded: Encoded, device: torch.device, most: int = 0
) -> dict[str, float]:
    """`metrics.retrieval_metrics` of the edited embeddings, each rank asking its share; on all.

    Args:
        model: whose memory edits.
        encoded: the split, the same on every rank.
        device: ranks the gallery.
        most: see `metrics.Queries.spread`.
    """
    queries = queries_of(encoded.labels).spread(most)
    mine = queries[rank() :: world_size()]
    ranked = metrics.rank_edits(
        mine,
        encoded.embeddings,
        encoded.logits,
        model.schema,
        MemoryEdit(model),
        search=top_k_on(device),
        watch=partial(tqdm, desc="rank", unit="block", leave=False, disable=rank() > 0 or None),
    )
    figures = metrics.retrieval_metrics(ranked, encoded.labels, mine)
    sums = torch.tensor(
        [figures[name] * len(mine) for name in metrics.METRIC_NAMES],
        dtype=torch.float64,
        device=device,
    )
    sums = sum_over_ranks(sums) / max(1, len(queries))
    return {**dict(zip(metrics.METRIC_NAMES, sums.tolist())), "queries": len(queries)}


def picture_rows(
    index: ShardIndex, split: str, model: ADDE, encoded: Encoded, rows: int
) -> list[PictureRow]:
    """A few queries spread over all of a split's, each with its ten best answers as stored, and
    those it had before the edit.
    """
    schema, labels = model.schema, encoded.labels
    queries = queries_of(labels)
    if not len(queries) or not rows:
        return []
    some = queries[np.unique(np.linspace(0, len(queries) - 1, rows).astype(np.int64))]
    ranked = metrics.rank_edits(
        some, encoded.embeddings, encoded.logits, schema, MemoryEdit(model), k=10
    )
    unedited = metrics.rank_edits(some, encoded.embeddings, encoded.logits, schema, NoEdit(), k=10)
    shards, reader = index.split(split), ShardReader(index)
    samples = tuple(shard.samples for shard in shards)
    places = StoredOrder(samples, sum(samples))(0)[encoded.rows].tolist()

    def picture(row: int) -> bytes:
        shard, position = places[row]
        return reader.read(shards[shard], position).picture

    def shown(answers: list[int], wanted: Labels) -> list[tuple[bytes, bool]]:
        matches = (labels[answers] == wanted).all(axis=1).tolist()
        return [(picture(answer), good) for answer, good in zip(answers, matches)]

    result: list[PictureRow] = []
    for row, (answers, before) in enumerate(zip(ranked.tolist(), unedited.tolist())):
        reference, attribute = int(some.reference[row]), int(some.attribute[row])
        own = schema.decode(labels[reference])[schema.names[attribute]] or "unknown"
        new = schema.attributes[attribute].values[int(some.value[row])]

        edit = f"{schema.names[attribute]}: {own} -> {new}"
        lines = {
            name: shown(found, some.targets[row])
            for name, found in (("before", before), ("after", answers))
        }
        result.append(PictureRow(edit, picture(reference), lines))
    reader.close()
    return result
