"""A folder of shards becomes a gallery: embedded once, and from where it was when interrupted."""

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import atomic_path, cache_folder, sha256_of_file
from adde.metrics import predicted_labels
from adde.preprocess import Picture
from adde.schema import Labels, Schema, Vector
from adde.serving.embedded import EmbeddedGallery
from adde.serving.gallery import (
    GALLERY_NAME,
    BusyError,
    Gallery,
    Header,
    Item,
    Place,
    UnavailableError,
)
from adde.serving.session import Session
from adde.shards.index import INDEX_NAME, Shard, ShardIndex
from adde.shards.reader import Sample, ShardReader

Split = Literal["all", "train", "val", "test"]
BATCH = 64
AHEAD = 3
"""Batches that are decoded while one is embedded."""

Stored = tuple[Sample, Place]


def build_gallery(
    bundle: Bundle,
    session: Session,
    shards: Path,
    out: Path,
    split: Split = "all",
    create: Callable[[Path, Header], Gallery] = EmbeddedGallery.create,
    reopen: Callable[[Path], Gallery] | None = None,
) -> None:
    """Embeds a folder of shards into the gallery `out`, replacing one that is there.

    Until it is done it lies beside `out` as `.<name>.building`, from where the next call with
    the same bundle, shards and split goes on.

    Raises:
        UserError: the shards have another schema than the bundle, the split is empty, an item id
            appears twice, or a picture does not decode.
    """
    index = ShardIndex.read(shards)
    bundle.schema.require_same(index.schema, str(bundle.path), str(shards))
    chosen = _shards(index, split)
    total = sum(shard.samples for shard in chosen)
    source = f"{sha256_of_file(shards / INDEX_NAME)} {split}"
    partial = out.with_name(f".{out.name}.building")
    gallery = _resume(partial, bundle, source, reopen or _writable)
    if gallery is None:
        header = Header.of(bundle, "embedded", shards, source)
        gallery = create(partial, header)
    with closing(gallery):
        _embed(bundle, session, _samples(index, chosen, len(gallery)), gallery, total)
        gallery.finish()
    with atomic_path(out) as temporary:
        partial.rename(temporary)


def open_gallery(folder: Path, bundle: Bundle, writable: bool = False) -> Gallery:
    """Opens a gallery of either engine. Raises UserError where another bundle embedded it."""
    header = Header.read(folder)
    header.require_bundle(bundle, folder)
    if header.engine == "milvus":
        from adde.serving.milvus import MilvusGallery  # pymilvus is no part of the base install

        return MilvusGallery.open(folder)
    return EmbeddedGallery(folder, writable)


def open_or_build(bundle: Bundle, session: Session, folder: Path, split: Split = "all") -> Gallery:
    """Opens a gallery, or the one of a folder of shards, which is embedded once and kept."""
    if (folder / GALLERY_NAME).exists():
        return open_gallery(folder, bundle)
    key = f"{bundle.hash} {sha256_of_index(folder)} {folder.resolve()} {split}"
    kept = cache_folder() / f"gallery-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    try:
        return open_gallery(kept, bundle)
    except UserError:
        pass  # not there, or damaged: it is made again
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # The answer does not depend on it: say so and go on.
        print(f"warning: {kept}: the gallery is not kept for next time: {error}", file=sys.stderr)
        temporary = tempfile.TemporaryDirectory(prefix="adde-gallery-")
        atexit.register(temporary.cleanup)
        kept = Path(temporary.name) / "gallery"
    build_gallery(bundle, session, folder, kept, split)
    return open_gallery(kept, bundle)


def sha256_of_index(folder: Path) -> str:
    """Hash of what a folder of shards says it holds. Raises UserError where it is none."""
    if not (folder / INDEX_NAME).exists():
        raise UserError(
            f"{folder}: expected a gallery ({GALLERY_NAME}) or a folder of shards ({INDEX_NAME}), "
            "found neither"
        )
    return sha256_of_file(folder / INDEX_NAME)


def embed(
    session: Session, schema: Schema, pictures: Picture
) -> list[tuple[Vector, float, Labels]]:
    """Pictures (B, S, S, 3) -> for each its unit vector (A, D), norm and predicted labels (A,)."""
    embeddings, logits = session.encode(pictures)
    norms = np.maximum(np.sqrt(np.square(embeddings).sum(axis=(1, 2))), 1e-12)
    unit = embeddings / norms[:, None, None]
    return list(zip(unit, norms.tolist(), predicted_labels(logits, schema)))


def _shards(index: ShardIndex, split: Split) -> list[Shard]:
    names = tuple(index.splits) if split == "all" else (split,)
    return [shard for name in names for shard in index.split(name)]


def _samples(index: ShardIndex, shards: Sequence[Shard], skip: int) -> Iterator[Stored]:
    reader = ShardReader(index)
    places = ((shard, position) for shard in shards for position in range(shard.samples))
    try:
        for shard, position in islice(places, skip, None):
            offset, size = shard.members[position][:2]
            yield reader.read(shard, position), (shard.name, offset, size)
    finally:
        reader.close()


def _embed(
    bundle: Bundle, session: Session, samples: Iterator[Stored], gallery: Gallery, total: int
) -> None:
    done = len(gallery)
    bar = tqdm(total=total, initial=done, desc="embed gallery", unit="picture", disable=None)
    with bar:
        for batch, pictures in _decoded(bundle, samples):
            items = [
                Item(sample.item_id, sample.labels, seen, vector, norm, place=place)
                for (sample, place), (vector, norm, seen) in zip(
                    batch, embed(session, bundle.schema, pictures)
                )
            ]
            gallery.upsert(items)
            done += len(items)
            if len(gallery) != done:
                raise UserError(
                    f"expected every item id once, found one of {items[0].item_id!r} to "
                    f"{items[-1].item_id!r} a second time; build the shards again"
                )
            bar.update(len(items))


def _decoded(bundle: Bundle, samples: Iterator[Stored]) -> Iterator[tuple[list[Stored], Picture]]:
    """Batches with their pictures, some of them decoded ahead by threads."""

    def load(stored: Stored) -> Picture:
        return bundle.preprocess.load(stored[0].picture, stored[0].where)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ahead: deque[tuple[list[Stored], list[Future[Picture]]]] = deque()
        while True:
            while len(ahead) < AHEAD and (batch := list(islice(samples, BATCH))):
                ahead.append((batch, [pool.submit(load, stored) for stored in batch]))
            if not ahead:
                return
            batch, futures = ahead.popleft()
            yield batch, np.stack([future.result() for future in futures])


def _writable(folder: Path) -> Gallery:
    return EmbeddedGallery(folder, writable=True)


def _resume(
    partial: Path, bundle: Bundle, source: str, reopen: Callable[[Path], Gallery]
) -> Gallery | None:
    """The interrupted gallery of the same bundle and source; any other is removed."""
    if not partial.exists():
        return None
    try:
        header = Header.read(partial)
        if (header.bundle, header.source) == (bundle.hash, source):
            return reopen(partial)
    except (BusyError, UnavailableError):
        raise  # later it may be of use
    except UserError:
        pass  # of no use any more
    shutil.rmtree(partial)
    return None
