"""What a model is worth: its embeddings of a split, and the figures that follow from them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adde import edits, metrics
from adde.distributed import RankRows, rank, sum_over_ranks, world_size
from adde.loading.loader import Batch, BatchStream
from adde.mining.distances import full_precision
from adde.model import ADDE, Encoding
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import parts
from adde.shards.batches import Batches, OnFault
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder
from adde.training.watching.tracking import PictureRow


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


class Evaluator:
    """Encodes splits, each rank its share, in batches that stream through `workers` processes.

    Samples that cannot be read end it, or with `on_fault` `skip` are told and left out.
    `get_on` is called after every batch.
    """

    def __init__(
        self,
        index: ShardIndex,
        batch_size: int,
        workers: int,
        device: torch.device,
        on_fault: OnFault = "raise",
        timeout: float = 0.0,
        get_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._get_on = get_on
        self.index, self._batch_size = index, batch_size
        self._workers, self._device = workers, device
        self._on_fault: OnFault = on_fault
        self._timeout = timeout

    @torch.no_grad()
    def encode(self, model: ADDE, split: str) -> Encoded:
        """Embeddings, logits and labels of a whole split, on every rank."""
        # A rank may have no item of a small split, and still gathers with the others.
        parts = [_no_rows(model, self._device)]
        for batch, rows in self._batches(model, split):
            with full_precision(batch.images):
                encoding = model.encode(batch.images)
            parts.append(_row(encoding, batch.labels, rows))
        columns = [torch.cat(column) for column in zip(*parts)]
        ranks = RankRows.of(len(columns[0]), self._device)
        columns = [ranks.gather(column).cpu().numpy() for column in columns]
        labels, rows, embeddings, logits, *presence = columns
        return Encoded(embeddings, logits, presence[0] if presence else None, labels, rows)

    @torch.no_grad()
    def prototypes(self, model: ADDE) -> tuple[Tensor, Tensor]:
        """Stage 2: mean r_a over all training items that have the value (DESIGN 4).

        Returns:
            (V, D) float32 prototypes, zero for a value that no training item has, and the (V,)
            number of items of each value.
        """
        schema = model.schema
        sums = torch.zeros(schema.num_values, model.settings.width, dtype=torch.float64)
        sums = sums.to(self._device)
        counts = torch.zeros(schema.num_values, dtype=torch.float64, device=self._device)
        of_column = torch.from_numpy(schema.attribute_of_column).to(self._device)
        offsets = torch.tensor(schema.offsets, device=self._device)
        for batch, _ in self._batches(model, "train"):
            with full_precision(batch.images):
                embeddings = model.encode(batch.images).embeddings
            known = batch.labels != UNKNOWN
            columns = (batch.labels + offsets)[known]
            sums.index_add_(0, columns, embeddings[known].double())
            counts += torch.bincount(columns, minlength=len(of_column))
        sums, counts = sum_over_ranks(sums), sum_over_ranks(counts)
        return (sums / counts.clamp(min=1)[:, None]).float(), counts.long()

    def watch(self, blocks: Iterable[Any]) -> Iterator[Any]:
        """The blocks of a ranking, each of which gets the run on as a batch does."""
        for block in blocks:
            yield block
            self._get_on()

    def _batches(self, model: ADDE, split: str) -> Iterator[tuple[Batch, Tensor]]:
        """This rank's batches of what can be read, and where in the split their items stand."""
        samples = tuple(shard.samples for shard in self.index.split(split))
        places = StoredOrder(samples, self._batch_size, rank(), world_size())
        batches = Batches(self.index, split, model.preprocess, places, self._on_fault)
        stream = BatchStream(
            batches, range(len(places)), self._workers, self._device, self._timeout, rank()
        )
        # Alone in eval mode, and back, so that no caller forgets it.
        was_training = model.training
        model.eval()
        try:
            quiet = True if rank() else None
            first, _ = places.bounds
            for batch in tqdm(
                stream, f"encode {split}", len(places), leave=False, disable=quiet, unit="batch"
            ):
                for fault in batch.faults:
                    tqdm.write(f"rank {rank()}, encoding {split}: skipped {fault}")
                rows = torch.arange(first, first + len(batch.labels), device=self._device)
                first += len(rows)
                if batch.stood_in:
                    whole = torch.ones_like(rows, dtype=torch.bool)
                    whole[batch.stood_in] = False
                    batch, rows = batch.only(whole), rows[whole]
                yield batch, rows
                self._get_on()
        finally:
            stream.close()
            model.train(was_training)


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


def _row(encoding: Encoding, labels: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """What `encode` gathers of a batch: labels, rows, and what the model gave."""
    return labels, rows, *(output for output in encoding if output is not None)


def _no_rows(model: ADDE, device: torch.device) -> tuple[Tensor, ...]:
    """`_row` of no item."""
    schema = model.schema
    attributes = len(schema.sizes)

    def none(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((0, *shape), dtype=dtype, device=device)

    presence = None if model.presence is None else none(attributes)
    encoding = Encoding(none(attributes, model.settings.width), none(schema.num_values), presence)
    return _row(encoding, none(attributes, dtype=torch.int64), none(dtype=torch.int64))


def top_k_on(device: torch.device) -> metrics.Search:
    """`metrics.top_k`, on a GPU where there is one."""
    return metrics.top_k if device.type == "cpu" else partial(top_k, device)


def top_k(device: torch.device, queries: Vector, gallery: Vector, k: int) -> metrics.Places:
    """As `metrics.top_k`, ties to the lowest row; products and sorting on `device`."""
    rows = torch.from_numpy(gallery).to(device)
    norms = rows.square().sum(1)
    found = [torch.empty((0, min(k, len(rows))), dtype=torch.int64, device=device)]
    with full_precision(rows):
        for block in metrics.blocks_of(len(queries), len(rows)):
            part = torch.from_numpy(queries[block]).to(device)
            found.append(_smallest(torch.addmm(norms, part, rows.mT, alpha=-2.0), k))
    return torch.cat(found).cpu().numpy()


def ranked_on(device: torch.device) -> metrics.On:
    """Where `metrics.baseline_rankings` takes products and sorts: a GPU where there is one."""
    return metrics.HERE if device.type == "cpu" else placed_on(device)


def placed_on(device: torch.device) -> metrics.On:
    """Products and sorting on `device`, ties to the lowest row."""
    return metrics.On(
        lambda array: torch.from_numpy(array).to(device),
        lambda costs, k: _smallest(costs, k).cpu().numpy(),
    )


def best_matches_on(device: torch.device) -> edits.Best:
    """`adde.edits.best_matches`, on a GPU where there is one."""
    return edits.best_matches if device.type == "cpu" else partial(best_matches, device)


def best_matches(
    device: torch.device,
    wanted: Vector,
    weights: Vector,
    beliefs: Vector,
    schema: Schema,
    epsilon: float,
    counts: Sequence[int],
) -> list[metrics.Places]:
    """As `adde.edits.best_matches`; products, logarithms and sorting on `device`."""
    asked, weighed, items = (torch.from_numpy(a).to(device) for a in (wanted, weights, beliefs))
    costs = torch.zeros((*weighed.shape[:2], len(items)), device=device)
    with full_precision(items):
        for a, part in enumerate(parts(schema)):
            probability = (asked[:, part] @ items[:, part].mT).clamp(0, 1)
            costs -= weighed[..., a, None] * (epsilon + probability).clamp(min=1e-30).log()
    return [_smallest(one, k).cpu().numpy() for one, k in zip(costs, counts)]


def _smallest(costs: Tensor, k: int) -> Tensor:
    """As `metrics.smallest`."""
    chosen = costs.topk(min(k, costs.shape[1]), largest=False, sorted=False).indices.sort(1).values
    order = costs.gather(1, chosen).argsort(dim=1, stable=True)
    ranked = chosen.gather(1, order)
    # topk keeps any of those equal to the last one in; there, sort the whole row.
    tied = (costs <= costs.gather(1, ranked[:, -1:])).sum(1) > ranked.shape[1]
    ranked[tied] = costs[tied].argsort(dim=1, stable=True)[:, : ranked.shape[1]]
    return ranked


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
        after_and_before = (shown(found, some.targets[row]) for found in (answers, before))
        result.append(PictureRow(picture(reference), edit, *after_and_before))
    reader.close()
    return result
