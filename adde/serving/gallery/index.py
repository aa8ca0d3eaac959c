"""Approximate search of large galleries: scan compact codes, then re-rank by exact scores.

By distance, every item is scanned as a row of one-byte numbers (see `subspace_pca`); by match, as
one code per attribute (see `belief_codes`). The candidates are then re-ranked by their stored
vectors. Every code is scanned, so only rounding costs recall. The number of candidates is chosen by
comparison with an exact search, for queries in all subspaces, in half of them and in one; the
measurements are kept in index.json beside the index.

Every build writes files under a new name and updates index.json last. The files that index.json
names always belong together, even if a build is interrupted or another process reads meanwhile.
"""

import importlib
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from adde.errors import UserError
from adde.files import atomic_path, read_json, write_json
from adde.schema import Labels, Schema, Vector
from adde.scoring import Calibration
from adde.serving.gallery.belief_codes import BeliefCodes
from adde.serving.gallery.scan import (
    Mask,
    Rows,
    best_match_rows,
    merge_rankings,
    nearest_rows,
    rows_showing,
    score_rows,
    top_matches,
)
from adde.serving.gallery.scorers import ROUNDING, BeliefScorer, DistanceScorer, shows_labels
from adde.serving.gallery.subspace_pca import SubspacePCA
from adde.serving.gallery.tuning import depth_for, tune

REPORT = "index.json"

EXACT_BELOW = 2_000
"""If a filter leaves at most this many items, exact search is faster and misses none."""

TRAINING_ROWS, PCA_ROWS = 100_000, 20_000
"""Maximum training rows of quantiser and centroids, and of the principal directions."""

BLOCK = 4096
"""Rows projected at a time."""

MAX_CANDIDATES = 20_000
"""Maximum candidates, unless more answers are requested."""

UNINDEXED_WARNING = 0.1
"""Warn when more than this share of the items is not in the index."""

READ_AHEAD = 1 << 24
"""Bytes read at a time when an index is opened."""

log = logging.getLogger(__name__)


@dataclass
class Index:
    """Codes of the first `count` rows of a gallery; later rows are always scored exactly."""

    faiss: Any
    flat: Any
    """faiss index of the compact rows."""
    directions: SubspacePCA
    codes: BeliefCodes | None
    """None for an uncalibrated bundle."""
    report: dict[str, Any]
    warned: bool = False

    @property
    def count(self) -> int:
        """Number of indexed rows."""
        return self.report["rows"]

    @classmethod
    def open(cls, folder: Path) -> "Index | None":
        """Open the index of a gallery's folder, memory-mapped; None if it has none."""
        return cls._read(folder) if (folder / REPORT).exists() else None

    @classmethod
    def _read(cls, folder: Path) -> "Index":
        while True:
            report = read_json(folder / REPORT)
            try:
                return cls._load(folder, report)
            except UserError:
                if read_json(folder / REPORT) == report:  # otherwise replaced meanwhile: try again
                    raise

    @classmethod
    def _load(cls, folder: Path, report: dict[str, Any]) -> "Index":
        faiss = _faiss()
        path = folder / f"{report.get('files')}.faiss"
        if "distance" not in report:
            raise UserError(
                f"{folder / REPORT}: expected an index of this version, found an older one; "
                "build the gallery again"
            )
        try:
            _read_ahead(path)
            flat = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
            with np.load(path.with_suffix(".npz")) as arrays:
                directions = SubspacePCA(*(arrays[name] for name in SubspacePCA.__annotations__))
                centroids = [arrays[name] for name in arrays if name.startswith("centroids")]
            codes = (
                BeliefCodes(centroids, np.load(path.with_suffix(".npy"), "r"))
                if centroids
                else None
            )
        except (RuntimeError, OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(
                f"{path}: expected a faiss index and its .npz and .npy, found: {error}; "
                "build it again"
            ) from None
        return cls(faiss, flat, directions, codes, report)

    @classmethod
    def build(
        cls,
        folder: Path,
        rows: Vector,
        beliefs: Vector | None,
        live: Mask,
        schema: Schema,
        calibration: Calibration | None,
    ) -> "Index":
        """Build, tune and write the index of a gallery's rows.

        Args:
            folder: the gallery's folder.
            rows: (N, A D + A + 1) as stored.
            beliefs: (N, V + A) as stored; None for an uncalibrated bundle.
            live: (N,) True for rows that are live items.
            schema: the gallery's schema.
            calibration: the bundle's calibration.
        """
        faiss = _faiss()
        start = time.perf_counter()
        count, attributes = len(rows), len(schema.sizes)
        shape = attributes, (rows.shape[1] - attributes - 1) // attributes
        sample = np.sort(np.random.default_rng(0).permutation(count)[:TRAINING_ROWS])
        some = sample[:: -(-len(sample) // PCA_ROWS)]
        directions = SubspacePCA.fit(_vectors(rows, some, shape), shape)
        flat = faiss.IndexScalarQuantizer(
            directions.size, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        flat.train(np.vstack([directions.project_rows(rows[part]) for part in _parts(sample)]))
        for part in tqdm(_parts(np.arange(count)), "build index", unit="block", disable=None):
            flat.add(directions.project_rows(rows[part[0] : part[-1] + 1]))
        codes = None if beliefs is None else BeliefCodes.fit(beliefs, sample, schema, faiss)
        report = {
            "kind": "SQ8",
            "attributes": shape[0],
            "width": shape[1],
            "directions": directions.kept.tolist(),
            "rows": count,
            "bytes_per_item": flat.code_size,
            "match_bytes_per_item": 0 if codes is None else codes.codes[:, :1].nbytes,
            "build_seconds": round(time.perf_counter() - start, 1),
        }
        index = cls(faiss, flat, directions, codes, report)
        report |= tune(index, rows, beliefs, live, schema, calibration)
        return index._write(folder)

    def _write(self, folder: Path) -> "Index":
        """Write the index over the one in `folder` and reopen it, mapped as after a restart."""
        path = folder / f"index-{uuid.uuid4().hex[:8]}.faiss"
        arrays = dict(vars(self.directions))
        try:
            with atomic_path(path) as temporary:
                self.faiss.write_index(self.flat, str(temporary))
            if self.codes is not None:
                # Zero-padded numbers keep the order on loading.
                arrays |= {f"centroids_{a:06}": c for a, c in enumerate(self.codes.centroids)}
                codes = path.with_suffix(".npy")
                with atomic_path(codes) as temporary, temporary.open("wb") as file:
                    np.save(file, self.codes.codes)
            with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            # faiss does not report a failure to write the last bytes, which happens when it closes
            # the file; loading the file does.
            written = Index._load(folder, {**self.report, "files": path.stem})
            write_json(folder / REPORT, written.report)
        except RuntimeError as error:
            raise UserError(f"{path}: the index could not be written: {error}") from error
        finally:
            _remove_stale_files(folder)
        return written

    def nearest(self, near: DistanceScorer, allowed: Mask, rows: Vector, k: int) -> Rows:
        """Return the k nearest allowed rows that the scan finds, nearest first."""
        if self._prefer_exact(allowed, len(rows)):
            return nearest_rows(rows, allowed, near, k)
        depth = depth_for(self.report["distance"], near.weights)
        found = self.candidates(near, allowed, max(k, min(k * depth, MAX_CANDIDATES)))
        chosen = np.zeros_like(allowed)
        chosen[found] = True
        chosen[self.count :] = allowed[self.count :]
        return nearest_rows(rows, chosen, near, k)

    def matches(
        self,
        asked: Sequence[tuple[BeliefScorer, int]],
        near: DistanceScorer,
        allowed: Mask,
        rows: Vector,
        beliefs: Vector,
    ) -> Rows:
        """As `best_match_rows`, from the candidates that the scan finds."""
        if self.codes is None or self._prefer_exact(allowed, len(rows)):
            return best_match_rows(beliefs, rows, allowed, asked, near)
        most = [
            max(k, min(k * depth_for(self.report["match"], match.weights), MAX_CANDIDATES))
            for match, k in asked
        ]
        matches = [match for match, _ in asked]
        scanned = self.codes.scan(matches, allowed[: self.count], most)
        later = np.flatnonzero(allowed[self.count :]) + self.count
        best: list[Rows] = []
        for (match, k), count, (found, scores) in zip(asked, most, scanned):
            found = np.append(
                self._nearest_ties(found, scores, match, near, count, len(rows)), later
            )
            best.append(top_matches(found, score_rows(beliefs, found, match), rows, match, near, k))
        return merge_rankings(best)

    def _nearest_ties(
        self,
        found: Rows,
        scores: Vector,
        match: BeliefScorer,
        near: DistanceScorer,
        most: int,
        count: int,
    ) -> Rows:
        """Keep at most `most` rows of a scan: among those tied for the last place, the nearest."""
        if len(found) > most:
            last = scores.min()
            above = scores > last + 2 * ROUNDING * float(match.weights.sum())
            tied = np.zeros(count, np.bool_)
            tied[found[~above]] = True
            nearest = self.candidates(near, tied, most - int(np.count_nonzero(above)))
            found = np.sort(np.append(found[above], nearest))
        return found

    def rows_showing(
        self, beliefs: Vector, allowed: Mask, must: Mapping[int, Labels], schema: Schema
    ) -> Mask:
        """Mask (N,) of allowed rows that show one of the labels of every attribute of `must`."""
        if self.codes is None:
            return rows_showing(beliefs, allowed, must, schema)
        passed = allowed.copy()
        for a, labels in must.items():
            passed[: self.count] &= np.isin(self.codes.likeliest(a), labels)
        passed[self.count :] = False
        left = np.flatnonzero(allowed[self.count :]) + self.count
        passed[left] = shows_labels(beliefs[left], must, schema)
        return passed

    def candidates(self, near: DistanceScorer, allowed: Mask, most: int) -> Rows:
        """Return indexed rows by the product of their codes with the query, best first."""
        known = allowed[: self.count]
        selector = None
        if not known.all():
            bits = np.packbits(known, bitorder="little")
            selector = self.faiss.IDSelectorBitmap(bits)
        parameters = self.faiss.SearchParameters(sel=selector)
        query = self.directions.project_query(near.vector)
        found = self.flat.search(query, min(most, self.count), params=parameters)[1][0]
        return found[found >= 0]

    def _prefer_exact(self, allowed: Mask, count: int) -> bool:
        left = int(np.count_nonzero(allowed[: self.count]))
        later = count - self.count
        if later > UNINDEXED_WARNING * count and not self.warned:
            self.warned = True
            log.warning(
                "%d of the gallery's %d items are not in its index and are scanned exactly; "
                "build_index() adds them",
                later,
                count,
            )
        return left <= EXACT_BELOW


def _remove_stale_files(folder: Path) -> None:
    """Remove index files that index.json does not name: of an earlier or interrupted build."""
    report = folder / REPORT
    named = read_json(report)["files"] if report.exists() else None
    for path in folder.glob("index-*"):
        if path.stem != named:
            path.unlink()


def _read_ahead(path: Path) -> None:
    """Read a file into the page cache: faiss maps it for random access, without read-ahead."""
    with path.open("rb") as file:
        while file.read(READ_AHEAD):
            pass


def _parts(rows: Rows) -> list[Rows]:
    return [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]


def _vectors(rows: Vector, sample: Rows, shape: tuple[int, int]) -> Iterator[Vector]:
    """Yield the vectors (N, A, D) of some stored rows, in blocks."""
    for part in _parts(sample):
        yield rows[part, : shape[0] * shape[1]].reshape(-1, *shape)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError(
            "a gallery of this size needs faiss, which is not installed: pip install 'adde[serve]'"
        ) from None
