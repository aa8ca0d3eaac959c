"""Embed samples of shards: read, decode ahead in threads, encode in batches, in stored order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np

from adde.bundle import Bundle
from adde.metrics import predicted_labels
from adde.preprocess import Picture
from adde.schema import Labels, Vector
from adde.serving.gallery.base import Item, PictureSpan, Split
from adde.serving.onnx.cores import cores
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import Sample, ShardReader
from adde.shards.shard import Shard

BATCH = 64
AHEAD = 3
"""Batches decoded while one is encoded."""

LocatedSample = tuple[Sample, PictureSpan]

Embed = Callable[[ShardIndex, Split, int], Iterator[list[Item]]]
"""Index, split and number of samples to skip -> items of the rest, in stored order."""


def shards_of(index: ShardIndex, split: Split) -> list[Shard]:
    """Return the shards of a split, or of all splits."""
    names = tuple(index.splits) if split == "all" else (split,)
    return [shard for name in names for shard in index.split(name)]


def sample_ids(index: ShardIndex, split: Split, most: int) -> list[str]:
    """Return item ids of at most `most` samples, evenly spaced over the split's stored order.

    Raises:
        UserError: the split is empty, or a sample cannot be read; names it.
    """
    shards = shards_of(index, split)
    every = -(-sum(shard.samples for shard in shards) // most)
    places = ((shard, position) for shard in shards for position in range(shard.samples))
    reader = ShardReader(index)
    try:
        return [reader.read(*place).item_id for place in islice(places, 0, None, every)]
    finally:
        reader.close()


def embed_here(
    bundle: Bundle,
    session: Session,
    index: ShardIndex,
    split: Split,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[list[Item]]:
    """Yield the items of samples `start` to `stop`, in batches.

    Raises:
        UserError: a sample cannot be read, or its picture does not decode; names it.
    """
    samples = _samples(index, shards_of(index, split), start, stop)
    for batch, pictures in _decoded(bundle, samples):
        yield [
            Item(sample.item_id, sample.labels, place=place, **embedded._asdict())
            for (sample, place), embedded in zip(batch, embed(session, bundle, pictures))
        ]


class PictureEmbedding(NamedTuple):
    """The parts of an `Item` that come from its picture."""

    vector: Vector
    """(A, D) float32, L2-normalised over both axes."""
    norm: float
    predicted: Labels
    """(A,) int64."""
    beliefs: Vector | None
    """(V + A,) float32 as predicted; None for an uncalibrated bundle."""


def embed(session: Session, bundle: Bundle, pictures: Picture) -> list[PictureEmbedding]:
    """Embed pictures (B, S, S, 3) uint8."""
    embeddings, logits, presence = session.encode(pictures)
    norms = np.maximum(np.sqrt(np.square(embeddings).sum(axis=(1, 2))), 1e-12)
    unit = embeddings / norms[:, None, None]
    beliefs: Iterable[Vector | None] = repeat(None)
    if bundle.calibration is not None:
        beliefs = bundle.calibration.beliefs(logits, presence, bundle.schema)
    predicted = predicted_labels(logits, bundle.schema)
    return list(map(PictureEmbedding, unit, norms.tolist(), predicted, beliefs))


def _samples(
    index: ShardIndex, shards: Sequence[Shard], start: int, stop: int | None
) -> Iterator[LocatedSample]:
    reader = ShardReader(index)
    places = ((shard, position) for shard in shards for position in range(shard.samples))
    try:
        for shard, position in islice(places, start, stop):
            offset, size = shard.members[position].tolist()[:2]
            yield reader.read(shard, position), (shard.name, offset, size)
    finally:
        reader.close()


def _decoded(
    bundle: Bundle, samples: Iterator[LocatedSample]
) -> Iterator[tuple[list[LocatedSample], Picture]]:
    """Yield batches with their decoded pictures; threads decode some batches ahead."""

    def load(stored: LocatedSample) -> Picture:
        return bundle.preprocess.load(stored[0].picture, stored[0].where)

    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[tuple[list[LocatedSample], list[Future[Picture]]]] = deque()
        while True:
            while len(ahead) < AHEAD and (batch := list(islice(samples, BATCH))):
                ahead.append((batch, [pool.submit(load, stored) for stored in batch]))
            if not ahead:
                return
            batch, futures = ahead.popleft()
            yield batch, np.stack([future.result() for future in futures])
