"""Embed samples of shards: read, decode ahead in threads, encode in batches, in stored order.

Where items have several pictures, the gallery has one entry per item: its embeddings and logits are
the means of those of its pictures, a label is the first known one, and its picture is the first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np

from adde.bundle import Bundle
from adde.metrics import predicted_labels
from adde.preprocess import Picture
from adde.schema import UNKNOWN, Labels, Vector
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

Place = tuple[Shard, int]
"""A shard, and the position of a sample in it."""

Embed = Callable[[ShardIndex, Split, int], Iterator[list[Item]]]
"""Index, split and number of samples to skip -> items of the rest, in stored order."""


def shards_of(index: ShardIndex, split: Split) -> list[Shard]:
    """Return the shards of a split, or of all splits."""
    names = tuple(index.splits) if split == "all" else (split,)
    return [shard for name in names for shard in index.split(name)]


def sample_ids(index: ShardIndex, split: Split, most: int) -> list[str]:
    """Return items of at most `most` samples, evenly spaced over the split's stored order.

    Raises:
        UserError: the split is empty, or a sample cannot be read; names it.
    """
    shards = shards_of(index, split)
    every = -(-sum(shard.samples for shard in shards) // most)
    places = _places(index, split)
    reader = ShardReader(index)
    try:
        return [reader.read(*place).item for place in islice(places, 0, None, every)]
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

    Where items have several pictures, `start` and `stop` count items, in the order of their first
    pictures.

    Raises:
        UserError: a sample cannot be read, or its picture does not decode; names it.
    """
    if index.most_pictures > 1:
        yield from _merged(bundle, session, index, split, slice(start, stop))
        return
    samples = _samples(index, islice(_places(index, split), start, stop))
    for batch, pictures in _decoded(bundle, samples):
        yield [
            Item(sample.item_id, sample.labels, place=place, **embedded._asdict())
            for (sample, place), embedded in zip(batch, embed(session, bundle, pictures))
        ]


def count_items(index: ShardIndex, split: Split) -> int:
    """Return the number of items that `embed_here` yields.

    Raises:
        UserError: a sample cannot be read; names it.
    """
    if index.most_pictures > 1:
        return len(_pictures_of_items(index, split))
    return sum(shard.samples for shard in shards_of(index, split))


def _places(index: ShardIndex, split: Split) -> Iterator[Place]:
    shards = shards_of(index, split)
    return ((shard, position) for shard in shards for position in range(shard.samples))


def _pictures_of_items(index: ShardIndex, split: Split) -> list[list[Place]]:
    """Group the places of samples by item, in the order of first pictures."""
    found: dict[str, list[Place]] = {}
    reader = ShardReader(index)
    try:
        for place in _places(index, split):
            found.setdefault(reader.read(*place).item, []).append(place)
    finally:
        reader.close()
    return list(found.values())


def _merged(
    bundle: Bundle, session: Session, index: ShardIndex, split: Split, items: slice
) -> Iterator[list[Item]]:
    """Yield items, each merged from all of its pictures; about BATCH pictures at a time."""
    groups = _pictures_of_items(index, split)[items]
    samples = _samples(index, (place for group in groups for place in group))
    waiting: list[LocatedSample] = []
    outputs: list[tuple[Vector, ...]] = []
    done = 0
    for batch, pictures in _decoded(bundle, samples):
        waiting += batch
        encoded = session.encode(pictures)
        outputs += list(zip(*(output for output in encoded if output is not None)))
        ready: list[Item] = []
        while done < len(groups) and len(groups[done]) <= len(waiting):
            count = len(groups[done])
            parts = [np.mean(rows, axis=0)[None] for rows in zip(*outputs[:count])]
            ready.append(_merge(bundle, waiting[:count], parts))
            del waiting[:count], outputs[:count]
            done += 1
        if ready:
            yield ready


def _merge(bundle: Bundle, pictures: Sequence[LocatedSample], outputs: list[Vector]) -> Item:
    """Make the item of some pictures and of the mean outputs (1, ...) of the encoder."""
    (embedded,) = _embeddings(bundle, outputs[0], outputs[1], *outputs[2:])
    labels = pictures[0][0].labels.copy()
    for sample, _ in pictures[1:]:
        labels = np.where(labels == UNKNOWN, sample.labels, labels)
    first, place = pictures[0]
    return Item(first.item, labels, place=place, **embedded._asdict())


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
    return _embeddings(bundle, *session.encode(pictures))


def _embeddings(
    bundle: Bundle, embeddings: Vector, logits: Vector, presence: Vector | None = None
) -> list[PictureEmbedding]:
    norms = np.maximum(np.sqrt(np.square(embeddings).sum(axis=(1, 2))), 1e-12)
    unit = embeddings / norms[:, None, None]
    beliefs: Iterable[Vector | None] = repeat(None)
    if bundle.calibration is not None:
        beliefs = bundle.calibration.beliefs(logits, presence, bundle.schema)
    predicted = predicted_labels(logits, bundle.schema)
    return list(map(PictureEmbedding, unit, norms.tolist(), predicted, beliefs))


def _samples(index: ShardIndex, places: Iterable[Place]) -> Iterator[LocatedSample]:
    reader = ShardReader(index)
    try:
        for shard, position in places:
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
