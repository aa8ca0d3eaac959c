"""Search in galleries too large to look at every item: faiss, then exact distances.

Inverted lists with product quantisation in which no quantiser spans two subspaces, so that a
weight on one attribute is a weight on its quantisers. Candidates are ranked anew by their stored
vectors. The number of lists looked at is the smallest that reaches TARGET_RECALL against looking
at everything, for plain queries and for queries in one subspace alone; what was measured lies
beside the index in index.json.
"""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.files import atomic_path, read_json, write_json
from adde.metrics import smallest
from adde.schema import Vector
from adde.serving.gallery import augmented_query

INDEX, REPORT = "index.faiss", "index.json"

TARGET_RECALL = 0.99
RECALL_AT = 30
QUERIES = 100
"""Of each kind, for measuring recall."""

SUBVECTOR = 8
"""Numbers that one byte of a quantiser stands for."""

OVERSAMPLE = 8
"""Candidates per item wanted, ranked anew by their vectors."""

FEW = 20_000
"""Where a filter leaves this many or fewer, looking at each is quicker and misses none."""

TRAINING = 100_000
"""Rows that centroids are found from, at most."""

BLOCK = 8192
"""Rows laid out for faiss at a time."""

BLOCK_BYTES = 64 << 20
"""Vectors scored at a time."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass
class Index:
    """A faiss index over the first `count` rows of a gallery; later rows are looked at."""

    faiss: Any
    lists: Any
    shape: tuple[int, int]
    count: int
    probes: int
    report: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Index | None":
        """The index of a gallery's folder, mapped; None where it has none."""
        return cls._read(folder) if (folder / REPORT).exists() else None

    @classmethod
    def _read(cls, folder: Path) -> "Index":
        report = read_json(folder / REPORT)
        faiss = _faiss()
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        try:
            lists = faiss.read_index(str(folder / INDEX), flags)
        except RuntimeError as error:
            raise UserError(
                f"{folder / INDEX}: expected a faiss index, found: {error}; build it again"
            ) from None
        shape = (report["attributes"], report["width"])
        return cls(faiss, lists, shape, report["rows"], report["probes"], report)

    @classmethod
    def build(cls, folder: Path, rows: Vector, live: Mask, shape: tuple[int, int]) -> "Index":
        """Builds, measures and writes the index of a gallery's rows."""
        faiss = _faiss()
        start = time.perf_counter()
        count, block = len(rows), _block(shape)
        lists = max(1, min(int(4 * np.sqrt(count)), count // 40))
        quantisers = shape[0] * block // SUBVECTOR
        bits = 8 if count >= 10_000 else 4  # fewer rows than centroids teach nothing
        made = faiss.index_factory(
            shape[0] * block, f"IVF{lists},PQ{quantisers}x{bits}", faiss.METRIC_INNER_PRODUCT
        )
        # One k-means per quantiser, of which there are hundreds: at faiss's own 256 rows and 25
        # rounds they would take most of the build, and candidates are ranked anew anyway.
        made.pq.cp.max_points_per_centroid, made.pq.cp.niter = 64, 10
        draws = np.random.default_rng(0)
        sample = np.sort(draws.permutation(count)[:TRAINING])
        made.train(_blocks(rows[sample], shape))
        for at in range(0, count, BLOCK):
            made.add(_blocks(rows[at : at + BLOCK], shape))
        index = cls(faiss, made, shape, count, 1, {})
        seconds = time.perf_counter() - start
        index._measure(rows, live)
        index.report |= {
            "kind": f"IVF{lists},PQ{quantisers}x{bits}",
            "attributes": shape[0],
            "width": shape[1],
            "rows": count,
            "probes": index.probes,
            "build_seconds": round(seconds, 1),
            "bytes_per_item": quantisers * bits / 8 + 8,
        }
        with atomic_path(folder / INDEX) as temporary:
            faiss.write_index(made, str(temporary))
        write_json(folder / REPORT, index.report)
        # Mapped from now on, as after a restart.
        return cls._read(folder)

    def search(self, vector: Vector, allowed: Mask, rows: Vector, k: int) -> Rows | None:
        """The k allowed rows found nearest, best first; None where each should be looked at."""
        if int(allowed[: self.count].sum()) <= FEW and len(rows) > FEW:
            return None
        return self._probe(vector, allowed, rows, k)

    def _probe(self, vector: Vector, allowed: Mask, rows: Vector, k: int) -> Rows:
        chosen = self.faiss.IDSelectorBitmap(np.packbits(allowed[: self.count], bitorder="little"))
        parameters = self.faiss.SearchParametersIVF(sel=chosen, nprobe=self.probes)
        attributes, width = self.shape
        query = np.append(vector, np.float32(0))[None]
        laid = _blocks(query, self.shape)
        wanted = min(OVERSAMPLE * k, self.count)
        found = self.lists.search(laid, wanted, params=parameters)[1][0]
        later = np.flatnonzero(allowed[self.count :]) + self.count
        candidates = np.sort(np.append(found[found >= 0], later))
        used = attributes * width + attributes
        scores = rows[candidates][:, :used] @ vector
        return candidates[np.argsort(-scores, kind="stable")[:k]]

    def _measure(self, rows: Vector, live: Mask) -> None:
        queries = self._queries(rows, np.flatnonzero(live))
        k = min(RECALL_AT, int(live.sum()))
        every = nearest_of_all(
            rows, live, np.stack([q for some in queries.values() for q in some]), k
        )
        truth = {
            kind: [set(found.tolist()) for found in part]
            for kind, part in zip(queries, np.split(every, len(queries)))
        }
        while True:
            for kind, some in queries.items():
                hits = sum(
                    len(right.intersection(self._probe(query, live, rows, k).tolist()))
                    for query, right in zip(some, truth[kind])
                )
                self.report[f"recall{RECALL_AT}_{kind}"] = hits / (k * len(some))
            worst = min(value for name, value in self.report.items() if name.startswith("recall"))
            if worst >= TARGET_RECALL or self.probes >= self.lists.nlist:
                return
            self.probes = min(2 * self.probes, self.lists.nlist)

    def _queries(self, rows: Vector, live: Rows) -> dict[str, list[Vector]]:
        """Stored items with one subspace of another, as an edit makes them; two ways to weigh."""
        attributes, width = self.shape
        draws = np.random.default_rng(1)
        queries: dict[str, list[Vector]] = {"plain": [], "one_subspace": []}
        for _ in range(QUERIES):
            one, other = rows[draws.choice(live, 2)][:, : attributes * width]
            edited = one.reshape(self.shape).copy()
            number = draws.integers(attributes)
            edited[number] = other.reshape(self.shape)[number]
            edited /= max(float(np.linalg.norm(edited)), 1e-12)
            alone = np.eye(attributes, dtype=np.float32)[number]
            queries["plain"].append(augmented_query(edited, np.ones(attributes, np.float32)))
            queries["one_subspace"].append(augmented_query(edited, alone))
        return queries


def nearest_of_all(rows: Vector, allowed: Mask, vectors: Vector, k: int) -> Rows:
    """As `exact` for vectors (Q, A D + A) at once, in one pass over the rows: (Q, k), unordered."""
    used, count = vectors.shape[1], len(vectors)
    best = np.full((count, k), -np.inf, np.float32)
    found = np.zeros((count, k), np.int64)
    step = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
    for at in range(0, len(rows), step):
        scores = vectors @ np.ascontiguousarray(rows[at : at + step, :used]).T
        scores[:, ~allowed[at : at + step]] = -np.inf
        numbers: Rows = np.tile(np.arange(at, at + scores.shape[1], dtype=np.int64), (count, 1))
        scores, numbers = np.hstack([best, scores]), np.hstack([found, numbers])
        first = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, first, axis=1)
        found = np.take_along_axis(numbers, first, axis=1)
    return found


def exact(rows: Vector, allowed: Mask, vector: Vector, k: int) -> npt.NDArray[np.int64]:
    """The k allowed rows of largest product with `vector`, best first, ties to the lowest row."""
    padded = np.append(vector, np.zeros(rows.shape[1] - len(vector), np.float32))
    chosen = np.flatnonzero(allowed)
    costs = np.empty(len(chosen), np.float32)
    step = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
    few = len(chosen) < len(rows) // 4
    if few:
        for at in range(0, len(chosen), step):
            costs[at : at + step] = rows[chosen[at : at + step]] @ padded
    else:
        costs = np.concatenate([rows[at : at + step] @ padded for at in range(0, len(rows), step)])[
            chosen
        ]
    return chosen[smallest(-costs[None], k)[0]]


def _block(shape: tuple[int, int]) -> int:
    """Numbers of one attribute in the index: its subspace, its squared length, filled up."""
    return -(-(shape[1] + 1) // SUBVECTOR) * SUBVECTOR


def _blocks(rows: Vector, shape: tuple[int, int]) -> Vector:
    """Stored rows (N, A D + A + 1) -> (N, A block): each attribute's numbers together."""
    attributes, width = shape
    laid = np.zeros((len(rows), attributes, _block(shape)), np.float32)
    split = attributes * width
    laid[:, :, :width] = rows[:, :split].reshape(-1, attributes, width)
    laid[:, :, width] = rows[:, split : split + attributes]
    return laid.reshape(len(rows), -1)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError(
            "a gallery of this size needs faiss, which is not installed: pip install 'adde[serve]'"
        ) from None
