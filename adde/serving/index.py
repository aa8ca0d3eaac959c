"""Search in galleries too large to look at every item: faiss, then exact distances.

Inverted lists of items in few numbers (`adde.serving.compact`), each number a byte. The candidates
they give are ranked anew by their stored vectors. How many lists are looked at and how many
candidates are taken is measured against looking at everything, for queries in all subspaces alike,
in half of them and in one alone; what was measured lies beside the index in index.json.

Each build writes files of its own name, which index.json says last: what it names belongs together,
whenever the build is interrupted and whenever another process reads.
"""

import importlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from adde.errors import UserError
from adde.files import atomic_path, read_json, write_json
from adde.schema import Vector
from adde.serving.compact import Directions
from adde.serving.looking import Mask, Rows
from adde.serving.tuning import tune

REPORT = "index.json"

FEW = 2_000
"""Where a filter leaves this many or fewer, looking at each is quicker and misses none."""

TRAINING, DIRECTED = 100_000, 20_000
"""Rows that centroids are found from, and directions, at most."""

ROUNDS = 10
"""Of k-means."""

BLOCK = 4096
"""Rows made compact at a time."""


@dataclass
class Index:
    """A faiss index over the first `count` rows of a gallery; later rows are looked at."""

    faiss: Any
    lists: Any
    directions: Directions
    report: dict[str, Any]

    @property
    def count(self) -> int:
        """Rows that it knows."""
        return self.report["rows"]

    @classmethod
    def open(cls, folder: Path) -> "Index | None":
        """The index of a gallery's folder, mapped; None where it has none."""
        return cls._read(folder) if (folder / REPORT).exists() else None

    @classmethod
    def _read(cls, folder: Path) -> "Index":
        while True:
            report = read_json(folder / REPORT)
            try:
                return cls._load(folder, report)
            except UserError:
                if read_json(folder / REPORT) == report:  # else it was replaced meanwhile
                    raise

    @classmethod
    def _load(cls, folder: Path, report: dict[str, Any]) -> "Index":
        faiss = _faiss()
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        path = folder / f"{report.get('files')}.faiss"
        try:
            lists = faiss.read_index(str(path), flags)
            with np.load(path.with_suffix(".npz")) as arrays:
                directions = Directions(**arrays)
        except (RuntimeError, OSError, ValueError, TypeError, BadZipFile) as error:
            raise UserError(
                f"{path}: expected a faiss index and its .npz, found: {error}; build it again"
            ) from None
        return cls(faiss, lists, directions, report)

    @classmethod
    def build(cls, folder: Path, rows: Vector, live: Mask, shape: tuple[int, int]) -> "Index":
        """Builds, measures and writes the index of a gallery's rows."""
        faiss = _faiss()
        start = time.perf_counter()
        count = len(rows)
        sample = np.sort(np.random.default_rng(0).permutation(count)[:TRAINING])
        some = sample[:: -(-len(sample) // DIRECTED)]
        directions = Directions.of(_vectors(rows, some, shape), shape)
        train = np.vstack([directions.rows(rows[part]) for part in _parts(sample)])
        lists = max(1, min(int(2 * np.sqrt(count)), len(sample) // 40))
        # Rows go to the list that is nearest; how near a weighed query is to one, is a product.
        near = faiss.IndexFlatL2(directions.size)
        made = faiss.IndexIVFScalarQuantizer(
            near,
            directions.size,
            lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        made.cp.niter, made.cp.max_points_per_centroid = ROUNDS, len(sample)
        made.train(train)
        for part in tqdm(_parts(np.arange(count)), "build index", unit="block", disable=None):
            made.add(directions.rows(rows[part[0] : part[-1] + 1]))
        weighed = faiss.IndexFlatIP(directions.size)
        weighed.add(directions.with_lengths(near.reconstruct_n(0, lists)))
        made.quantizer, made.own_fields = weighed, False
        report = {
            "kind": f"IVF{lists},SQ8",
            "attributes": shape[0],
            "width": shape[1],
            "directions": directions.kept.tolist(),
            "rows": count,
            "lists": lists,
            "bytes_per_item": made.code_size + 8,
            "build_seconds": round(time.perf_counter() - start, 1),
        }
        index = cls(faiss, made, directions, report)
        index.report |= tune(index, near, rows, live)
        return index._write(folder)

    def _write(self, folder: Path) -> "Index":
        """Puts it in the place of the one in a folder; mapped from now on, as after a restart."""
        path = folder / f"index-{uuid.uuid4().hex[:8]}.faiss"
        try:
            with atomic_path(path) as temporary:
                self.faiss.write_index(self.lists, str(temporary))
            with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
                np.savez(file, **vars(self.directions))
            # faiss is silent about the last bytes, which reach the disk when it closes the file.
            written = Index._load(folder, {**self.report, "files": path.stem})
            write_json(folder / REPORT, written.report)
        except RuntimeError as error:
            raise UserError(f"{path}: the index could not be written: {error}") from error
        finally:
            _remove_unnamed(folder)
        return written

    def search(self, vector: Vector, allowed: Mask, rows: Vector, k: int) -> Rows | None:
        """The k allowed rows found nearest, best first; None where each should be looked at."""
        known = allowed[: self.count]
        left = int(np.count_nonzero(known))
        if left <= FEW and len(rows) > FEW:
            return None
        settings = self._settings(vector)
        # A filter leaves fewer in each list, so that as many more lists are looked at.
        probes = min(self.report["lists"], -(-settings["probes"] * self.count // max(left, 1)))
        chosen = None if left == self.count else known
        found = self.candidates(vector, k * self.report["depth"], probes, chosen)
        later = np.flatnonzero(allowed[self.count :]) + self.count
        candidates = np.sort(np.append(found, later))
        scores = rows[candidates][:, : len(vector)] @ vector
        return candidates[np.argsort(-scores, kind="stable")[:k]]

    def candidates(self, vector: Vector, most: int, probes: int, chosen: Mask | None) -> Rows:
        """Rows in the order of their bytes' products with an `augmented_query`, best first."""
        bits = None if chosen is None else np.packbits(chosen, bitorder="little")
        selector = None if bits is None else self.faiss.IDSelectorBitmap(bits)
        parameters = self.faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        query = self.directions.query(vector)
        found = self.lists.search(query, min(most, self.count), params=parameters)[1][0]
        return found[found >= 0]

    def _settings(self, vector: Vector) -> dict[str, Any]:
        """What was measured for weights as uneven as these, or more so."""
        weights = -vector[-len(self.directions.kept) :].astype(np.float64)
        even = weights.sum() ** 2 / np.square(weights).sum()
        kinds = self.report["kinds"].values()
        least = [kind for kind in kinds if kind["attributes"] <= even * (1 + 1e-6)]
        return max(least, key=lambda kind: kind["attributes"])


def _remove_unnamed(folder: Path) -> None:
    """Removes what index.json does not name: of a build before, or of one that was interrupted."""
    report = folder / REPORT
    named = read_json(report)["files"] if report.exists() else None
    for path in folder.glob("index-*"):
        if path.stem != named:
            path.unlink()


def _parts(rows: Rows) -> list[Rows]:
    return [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]


def _vectors(rows: Vector, sample: Rows, shape: tuple[int, int]) -> Iterator[Vector]:
    """The vectors (N, A, D) of some stored rows, in blocks."""
    for part in _parts(sample):
        yield rows[part, : shape[0] * shape[1]].reshape(-1, *shape)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError(
            "a gallery of this size needs faiss, which is not installed: pip install 'adde[serve]'"
        ) from None
