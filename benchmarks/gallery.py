"""A large gallery: bytes per item, build time, latency, and recall against looking at everything.

    python benchmarks/gallery.py --json docs/gallery.json
    python benchmarks/gallery.py --folder /disk/with/20/GB
    python benchmarks/gallery.py --quick

Synthetic unit vectors of 12 subspaces x 340. A subspace lies near one of ten values' prototypes, as
a trained encoder's does, and moves about it along a few directions, with a little noise in all;
values hang together as in families of variants. Made block by block and never all in memory.

`recall30` is of plain queries not seen by the build, against exact distances computed block by
block. `p50_ms_exact` is of looking at each of the first `items_exact`, as in a gallery that has no
index. `bytes_per_item` is what the index holds in memory; the vectors that candidates are ranked
anew by lie mapped on disk (`disk_bytes_per_item`).
"""

import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import tyro
from figures import publish
from tqdm import tqdm

from adde.errors import UserError, run_program
from adde.schema import Attribute, Labels, Schema, Vector
from adde.serving.asking import augmented, augmented_query
from adde.serving.embedded import EXACT_ITEMS, EmbeddedGallery
from adde.serving.gallery import Header, Item

ATTRIBUTES, WIDTH, VALUES = 12, 340, 10
DIRECTIONS = 16
"""Along which the items of one value differ; what is left is noise."""

BLOCK = 4096
K = 30
SCHEMA = Schema(
    tuple(
        Attribute(f"attribute_{a}", tuple(f"value_{v}" for v in range(VALUES)))
        for a in range(ATTRIBUTES)
    )
)


class Catalogue:
    """Unit vectors (n, A, D) of a catalogue that exists only while it is drawn."""

    def __init__(self, seed: int = 0) -> None:
        draws = np.random.default_rng(seed)
        self._means = draws.normal(size=(ATTRIBUTES, VALUES, WIDTH)).astype(np.float32)
        spread = draws.normal(size=(ATTRIBUTES, DIRECTIONS, WIDTH)).astype(np.float32)
        # Directions of falling weight, as principal components have.
        self._spread = (
            spread * (0.3 / np.sqrt(1 + np.arange(DIRECTIONS, dtype=np.float32)))[:, None]
        )

    def block(self, number: int, count: int) -> tuple[Vector, Labels]:
        """Vectors (count, A, D) and labels (count, A) of a block; same number, same items."""
        draws = np.random.default_rng((1, number))
        families = draws.integers(VALUES, size=(max(1, count // 8), ATTRIBUTES))
        labels = families[draws.integers(len(families), size=count)]
        changed = draws.random((count, ATTRIBUTES)) < 0.1
        labels = np.where(changed, draws.integers(VALUES, size=labels.shape), labels)
        places = draws.normal(size=(count, ATTRIBUTES, DIRECTIONS)).astype(np.float32)
        vectors = draws.standard_normal((count, ATTRIBUTES, WIDTH), np.float32) * np.float32(0.05)
        for a in range(ATTRIBUTES):
            vectors[:, a] += self._means[a][labels[:, a]] + places[:, a] @ self._spread[a]
        vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
        return vectors, labels.astype(np.int64)


def fill(gallery: EmbeddedGallery, catalogue: Catalogue, start: int, items: int) -> None:
    """Inserts the catalogue from a block's first item."""
    for at in tqdm(range(start, items, BLOCK), "insert", unit="block", disable=None):
        vectors, labels = catalogue.block(at // BLOCK, min(BLOCK, items - at))
        gallery.upsert(
            [
                Item(f"item-{at + row}", labels[row], labels[row], vectors[row], 1.0)
                for row in range(len(vectors))
            ]
        )


def make_queries(catalogue: Catalogue, count: int) -> Vector:
    """Edited items that are not in the gallery: one subspace is another's; (count, A, D)."""
    vectors, _ = catalogue.block(2**30, 2 * count)
    queries, others = vectors[:count].copy(), vectors[count:]
    edited = np.random.default_rng(2).integers(ATTRIBUTES, size=count)
    queries[np.arange(count), edited] = others[np.arange(count), edited]
    return queries / np.linalg.norm(queries, axis=(1, 2), keepdims=True)


def ask_for(queries: Vector, alike: int) -> Vector:
    """Weights (Q, A) of 1 for so many subspaces of each query, of 0 for the others."""
    draws = np.random.default_rng(3)
    order = draws.permuted(np.tile(np.arange(ATTRIBUTES), (len(queries), 1)), axis=1)
    return (order < alike).astype(np.float32)


def exact(catalogue: Catalogue, asked: Vector, items: int) -> list[set[str]]:
    """Ids of the K nearest of each query (Q, A D + A), from every vector, block by block."""
    best = np.full((len(asked), K), -np.inf, np.float32)
    rows = np.zeros((len(asked), K), np.int64)
    for at in tqdm(range(0, items, BLOCK), "look at all", unit="block", disable=None):
        vectors, _ = catalogue.block(at // BLOCK, min(BLOCK, items - at))
        scores = np.concatenate([best, asked @ augmented(vectors).T], axis=1)
        known = np.broadcast_to(np.arange(at, at + len(vectors)), (len(asked), len(vectors)))
        names = np.concatenate([rows, known], axis=1)
        first = np.argpartition(-scores, K, axis=1)[:, :K]
        best, rows = (np.take_along_axis(array, first, axis=1) for array in (scores, names))
    return [{f"item-{row}" for row in found} for found in rows]


def ask(
    gallery: EmbeddedGallery, queries: Vector, weights: Vector
) -> tuple[list[float], list[set[str]]]:
    """For each query its milliseconds, and the ids of the first K."""
    milliseconds, answers = [], []
    for query, weight in zip(queries, weights):
        start = time.perf_counter()
        found = gallery.nearest(query, weight, K, {})
        milliseconds.append(1000 * (time.perf_counter() - start))
        answers.append({item.item_id for item in found[:K]})
    return milliseconds, answers


def measure(folder: Path, items: int, count: int) -> dict[str, float]:
    """All figures."""
    catalogue = Catalogue()
    queries = make_queries(catalogue, count)
    kinds = {"": ATTRIBUTES, "_half": ATTRIBUTES // 2, "_one": 1}
    weights = {kind: ask_for(queries, alike) for kind, alike in kinds.items()}
    header = Header("embedded", "synthetic", SCHEMA, WIDTH, None, "synthetic")
    with closing(EmbeddedGallery.create(folder / "gallery", header)) as gallery:
        without_index = min(items, EXACT_ITEMS // BLOCK * BLOCK)
        started = time.perf_counter()
        fill(gallery, catalogue, 0, without_index)
        insert_s = time.perf_counter() - started
        milliseconds, _ = ask(gallery, queries, weights[""])
        started = time.perf_counter()
        fill(gallery, catalogue, without_index, items)
        filled = time.perf_counter()
        insert_s += filled - started
        gallery.build_index()
        build_s = time.perf_counter() - filled
    asked = [augmented_query(q, w) for every in weights.values() for q, w in zip(queries, every)]
    truth = exact(catalogue, np.stack(asked), items)
    figures: dict[str, float] = {
        "items": items,
        "items_exact": without_index,
        "p50_ms_exact": float(np.median(milliseconds)),
    }
    with closing(EmbeddedGallery(folder / "gallery")) as gallery:
        assert gallery.index is not None
        report = gallery.index.report
        figures["bytes_per_item"] = report["bytes_per_item"]
        for number, (kind, every) in enumerate(weights.items()):
            wanted = truth[number * count : (number + 1) * count]
            milliseconds, found = ask(gallery, queries, every)
            hits = sum(len(one & other) for one, other in zip(found, wanted))
            figures["recall30" + kind] = hits / (K * count)
            figures["p50_ms" + kind] = float(np.median(milliseconds))
            figures["p99_ms" + kind] = float(np.percentile(milliseconds, 99))
    figures |= {
        "insert_s": insert_s,
        "build_s": build_s,
        "numbers_per_item": sum(report["directions"]),
        "rerank_depth": report["depth"],
        "lists": report["lists"],
    }
    for kind, settings in report["kinds"].items():
        figures[f"probes_{kind}"] = settings["probes"]
    stored = sum(file.stat().st_size for file in (folder / "gallery").iterdir())
    return figures | {"disk_bytes_per_item": stored / items}


def benchmark(
    items: int = 1_000_000,
    folder: Path | None = None,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Builds a gallery of synthetic vectors, asks it, and removes it.

    Args:
        items: vectors; each takes 17 KB of disk.
        folder: a disk with room for them; default: that of temporary files.
        json: file of the figures.
        quick: 10,000 items.
    """
    items = 10_000 if quick else items
    room, needed = shutil.disk_usage(folder or tempfile.gettempdir()).free, 18_000 * items
    if room < needed:
        raise UserError(f"--folder: expected {needed / 1e9:.0f} GB free, found {room / 1e9:.0f}")
    with tempfile.TemporaryDirectory(prefix="adde-gallery-", dir=folder) as temporary:
        figures = measure(Path(temporary), items, 100)
    publish(figures, ("faiss-cpu", "numpy"), json)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(benchmark))
