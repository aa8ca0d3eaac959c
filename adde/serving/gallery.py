"""The items that answers are drawn from: embeddings of a folder of shards, kept for next time."""

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from adde.bundle import Bundle
from adde.errors import UserError, did_you_mean
from adde.files import atomic_path, sha256_of_file
from adde.metrics import predicted_labels
from adde.schema import Labels, Vector
from adde.serving.cache import cache_folder
from adde.serving.session import Session
from adde.shards.index import INDEX_NAME, Shard, ShardIndex
from adde.shards.reader import Sample, ShardReader, iterate

Split = Literal["all", "train", "val", "test"]
BATCH = 64


@dataclass(frozen=True)
class Gallery:
    """N items in stored order, split after split."""

    index: ShardIndex
    shards: tuple[Shard, ...]
    item_ids: tuple[str, ...]
    labels: Labels
    """(N, A) int64 as the catalogue has them, UNKNOWN where it does not say."""
    predicted: Labels
    """(N, A) int64 as the classifiers see them; never UNKNOWN."""
    embeddings: Vector
    """(N, A D) float32, L2-normalised."""

    def place(self, row: int) -> tuple[Shard, int]:
        """Shard and position of an item."""
        ends = np.cumsum([shard.samples for shard in self.shards])
        number = int(np.searchsorted(ends, row, side="right"))
        shard = self.shards[number]
        return shard, row - int(ends[number]) + shard.samples

    def sample(self, row: int) -> Sample:
        """An item as stored, with its picture."""
        reader = ShardReader(self.index)
        try:
            return reader.read(*self.place(row))
        finally:
            reader.close()

    def row(self, item_id: str) -> int:
        """Row of an item, the first where several have the id. Raises UserError."""
        try:
            return self.item_ids.index(item_id)
        except ValueError:
            raise UserError(
                f"{self.index.root}: no item {item_id!r} in the gallery; "
                f"{did_you_mean(item_id, self.item_ids)}"
            ) from None


def open_gallery(bundle: Bundle, session: Session, root: Path, split: Split = "all") -> Gallery:
    """Gallery of a folder of shards; embedded once for each bundle, index and split.

    Raises:
        UserError: the shards have another schema than the bundle, the split is empty, or a
            picture does not decode.
    """
    index = ShardIndex.read(root)
    bundle.schema.require_same(index.schema, str(bundle.path), str(root))
    splits = tuple(index.splits) if split == "all" else (split,)
    shards = tuple(shard for name in splits for shard in index.split(name))
    cache = _cache_file(bundle, root, split)
    arrays = _read_cache(cache)
    if arrays is None:
        samples = (sample for name in splits for sample in iterate(index, name))
        arrays = _embed(bundle, session, samples, sum(shard.samples for shard in shards))
        _write_cache(cache, arrays)
    item_ids, labels, predicted, embeddings = arrays
    return Gallery(index, shards, item_ids, labels, predicted, embeddings)


Arrays = tuple[tuple[str, ...], Labels, Labels, Vector]
"""Item ids, labels, predicted labels, embeddings."""


def _embed(bundle: Bundle, session: Session, samples: Iterator[Sample], count: int) -> Arrays:
    attributes = len(bundle.schema.sizes)
    item_ids: list[str] = []
    labels = np.empty((count, attributes), np.int64)
    predicted = np.empty((count, attributes), np.int64)
    # Filled in place: a large gallery need not be held twice.
    vectors = np.empty((count, attributes * bundle.width), np.float32)
    with tqdm(total=count, desc="embed gallery", unit="picture", disable=None) as bar:
        while batch := list(islice(samples, BATCH)):
            rows = slice(len(item_ids), len(item_ids) + len(batch))
            pictures = np.stack([bundle.preprocess.load(s.picture, s.where) for s in batch])
            embeddings, logits = session.encode(pictures)
            vectors[rows] = np.reshape(embeddings, (len(batch), -1))
            norms = np.linalg.norm(vectors[rows], axis=1, keepdims=True)
            vectors[rows] /= np.maximum(norms, 1e-12)
            labels[rows] = [s.labels for s in batch]
            predicted[rows] = predicted_labels(logits, bundle.schema)
            item_ids += [s.item_id for s in batch]
            bar.update(len(batch))
    return tuple(item_ids), labels, predicted, vectors


def _cache_file(bundle: Bundle, root: Path, split: str) -> Path:
    key = f"{bundle.hash} {sha256_of_file(root / INDEX_NAME)} {split}"
    return cache_folder() / f"gallery-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _read_cache(path: Path) -> Arrays | None:
    try:
        # Opened here, as numpy leaves a file open that turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            item_ids = tuple(stored["item_ids"].tolist())
            return item_ids, stored["labels"], stored["predicted"], stored["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged: it is made again


def _write_cache(path: Path, arrays: Arrays) -> None:
    names = ("item_ids", "labels", "predicted", "embeddings")
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **dict(zip(names, map(np.asarray, arrays))))
    except OSError as error:
        # The answer does not depend on it: say so and go on.
        print(f"warning: {path}: the gallery is not kept for next time: {error}", file=sys.stderr)
