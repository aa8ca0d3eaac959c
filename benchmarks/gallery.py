"""Measure a large gallery: bytes per item, build time, latency, recall against exhaustive search.

    python benchmarks/gallery.py --gallery galleries/quickstart --json docs/gallery.json
    python benchmarks/gallery.py --folder /disk/with/20/GB

With --gallery, items are recombined from those of a gallery made by a trained encoder: each
subspace with its beliefs comes from another item, and values are correlated as in families of
variants. Otherwise vectors are synthetic: 12 subspaces x 340, each near one of ten values'
prototypes, moved along a few directions, with a little noise. Half of the labels are known. Items
are generated block by block and never all in RAM.

`recall30` is measured on queries that the build has not seen: the share of the first 30 answers
that are as near as the exact 30th, up to rounding. `match_recall30` is the same by match score.
`ratio` is the median time of a search by match over that by distance, measured in turn.
`bytes_per_item` and `match_bytes_per_item` are the sizes of the two indexes, memory-mapped; the
vectors for re-ranking are mapped from disk (`disk_bytes_per_item`).

`complete_...` completes outfits of three items by a drawn table, as `Searcher.complete` asks: one
category of the first attribute, ranked by the product with the beliefs. It reads what a search by
match reads. `filtered_...` is a search by match in one category.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from figures import publish
from tqdm import tqdm

from adde.errors import UserError, run_program
from adde.outfits import value_features
from adde.schema import UNKNOWN, Attribute, Labels, Schema, Vector
from adde.scoring import Calibration, ask_value, likeliest, match_scores, parts, with_known
from adde.serving.gallery.base import Header, Item
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.scorers import (
    DistanceScorer,
    MatchScorer,
    OutfitScorer,
    RankOptions,
    augmented,
    with_unit_subspaces,
)
from adde.serving.outfits import with_absence

ATTRIBUTES, WIDTH, VALUES = 12, 340, 10
DIRECTIONS = 16
"""Directions along which the items of one value differ, apart from noise."""

BLOCK = 4096
K = 30
SCHEMA = Schema(
    tuple(
        Attribute(f"attribute_{a}", tuple(f"value_{v}" for v in range(VALUES)))
        for a in range(ATTRIBUTES)
    )
)


class Catalogue:
    """A synthetic catalogue, generated block by block: vectors, labels, beliefs."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0)
        self.schema, self.width = SCHEMA, WIDTH
        self.calibration = Calibration((1.0,) * ATTRIBUTES, (), 0.03, 2.0)
        self._means = draws.normal(size=(ATTRIBUTES, VALUES, WIDTH)).astype(np.float32)
        spread = draws.normal(size=(ATTRIBUTES, DIRECTIONS, WIDTH)).astype(np.float32)
        # SubspacePCA of falling weight, as principal components have.
        self._spread = (
            spread * (0.3 / np.sqrt(1 + np.arange(DIRECTIONS, dtype=np.float32)))[:, None]
        )

    def block(self, number: int, count: int) -> list[Item]:
        """Generate the items of a block, deterministic in its number."""
        draws = np.random.default_rng((1, number))
        values = self._values(draws, count)
        vectors, labels, beliefs = self._random_items(draws, values)
        vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
        labels = np.where(draws.random(labels.shape) < 0.5, labels, UNKNOWN)
        predicted = likeliest(beliefs, self.schema).clip(0)
        return [
            Item(f"item-{number * BLOCK + row}", *rest, norm=1.0, beliefs=belief)
            for row, (*rest, belief) in enumerate(zip(labels, predicted, vectors, beliefs))
        ]

    def _values(self, draws: np.random.Generator, count: int) -> Labels:
        """Draw values (count, A) of families of variants."""
        sizes = np.array(self.schema.sizes)
        families = draws.integers(sizes, size=(max(1, count // 8), len(sizes)))
        values = families[draws.integers(len(families), size=count)]
        changed = draws.random(values.shape) < 0.1
        return np.where(changed, draws.integers(sizes, size=values.shape), values)

    def _random_items(
        self, draws: np.random.Generator, values: Labels
    ) -> tuple[Vector, Labels, Vector]:
        count = len(values)
        places = draws.normal(size=(count, ATTRIBUTES, DIRECTIONS)).astype(np.float32)
        vectors = draws.standard_normal((count, ATTRIBUTES, WIDTH), np.float32) * np.float32(0.05)
        for a in range(ATTRIBUTES):
            vectors[:, a] += self._means[a][values[:, a]] + places[:, a] @ self._spread[a]
        # Logits of a classifier with 5 % errors.
        wrong = draws.random(values.shape) < 0.05
        seen = np.where(wrong, draws.integers(VALUES, size=values.shape), values)
        logits = 1.5 * draws.standard_normal((count, SCHEMA.num_values), np.float32)
        logits += 6 * SCHEMA.multi_hot(seen)
        return vectors, values, self.calibration.beliefs(logits, None, SCHEMA)


class Recombined(Catalogue):
    """Items recombined from those of a gallery, each subspace from one that has the value."""

    def __init__(self, folder: Path) -> None:
        with closing(EmbeddedGallery(folder)) as gallery:
            header, state = gallery.header, gallery._current_state()
            if header.calibration is None or state.beliefs is None:
                raise UserError(f"{folder}: expected a gallery of a calibrated bundle")
            self.schema, self.width = header.schema, header.width
            self.calibration = Calibration.from_json(header.calibration, header.schema, str(folder))
            rows = np.flatnonzero(state.live)
            used = len(self.schema.sizes) * self.width
            self._vectors = state.rows[rows, :used].reshape(len(rows), -1, self.width)
            self._beliefs = state.beliefs[rows]
        shown = likeliest(self._beliefs, self.schema)
        self._having = [
            [np.flatnonzero(column == value) for value in range(size)]
            for column, size in zip(shown.T, self.schema.sizes)
        ]

    def _random_items(
        self, draws: np.random.Generator, values: Labels
    ) -> tuple[Vector, Labels, Vector]:
        vectors = np.empty((len(values), len(self.schema.sizes), self.width), np.float32)
        beliefs = np.empty((len(values), self._beliefs.shape[1]), np.float32)
        for a, part in enumerate(parts(self.schema)):
            donors = np.empty(len(values), np.int64)
            for value, having in enumerate(self._having[a]):
                some = np.flatnonzero(values[:, a] == value)
                every = having if len(having) else len(self._vectors)
                donors[some] = draws.choice(every, len(some))
            vectors[:, a] = self._vectors[donors, a]
            beliefs[:, part] = self._beliefs[donors, part]
        return vectors, values, beliefs


@dataclass
class Query:
    """An edited item that is not in the gallery, with weights of its attributes."""

    near: DistanceScorer
    match: MatchScorer
    first: Vector | None
    """Weights of the first matches, if attributes other than the edited one count."""


def make_queries(catalogue: Catalogue, count: int) -> dict[str, list[Query]]:
    """Make edited items with one subspace of another; all, half or one of the attributes count."""
    schema, attributes = catalogue.schema, len(catalogue.schema.sizes)
    items = catalogue.block(2**30, 2 * count)
    draws = np.random.default_rng(2)
    asked: dict[str, list[Query]] = {"": [], "_half": [], "_one": []}
    for item, other in zip(items[:count], items[count:]):
        order = draws.permutation(attributes)
        edited, vector = int(order[0]), item.vector.copy()
        vector[edited] = other.vector[edited]
        vector /= np.linalg.norm(vector)
        assert item.beliefs is not None
        wanted = item.beliefs[None].copy()
        ask_value(wanted, parts(schema)[edited], int(other.predicted[edited]))
        for kind, alike in zip(asked, (attributes, attributes // 2, 1)):
            weights = np.isin(np.arange(attributes), order[:alike]).astype(np.float32)
            match = MatchScorer(wanted[0], weights, catalogue.calibration.epsilon, schema)
            first = weights.copy()
            first[edited] *= catalogue.calibration.edit_weight
            # As `like` asks, which compares unit subspaces.
            near = DistanceScorer(vector, weights, unit=kind != "")
            asked[kind].append(Query(near, match, first if alike > 1 else None))
    return asked


@dataclass
class Outfit:
    """An outfit of items that are not in the gallery, and the category that it lacks."""

    near: Vector
    """(A, D) float32, for ties."""
    score: OutfitScorer
    category: int


def make_outfits(catalogue: Catalogue, count: int) -> list[Outfit]:
    """Make outfits of three items each, completed by one drawn table."""
    schema, draws = catalogue.schema, np.random.default_rng(3)
    items = catalogue.block(2**30 + 1, 3 * count)
    values = value_features(certain(schema, items), schema)
    table = draws.normal(size=(schema.num_values, schema.num_values)).astype(np.float32)
    weights = np.ones(len(schema.sizes), np.float32)
    found: list[Outfit] = []
    for at in range(0, 3 * count, 3):
        query = with_absence(values[at : at + 3].mean(axis=0) @ table, schema)
        near = np.sum([item.vector for item in items[at : at + 3]], axis=0)
        category = int(draws.integers(schema.sizes[0]))
        score = OutfitScorer(query, weights, schema)
        found.append(Outfit(near / np.linalg.norm(near), score, category))
    return found


def fill(gallery: EmbeddedGallery, catalogue: Catalogue, items: int) -> None:
    """Insert the catalogue."""
    for at in tqdm(range(0, items, BLOCK), "insert", unit="block", disable=None):
        gallery.upsert(catalogue.block(at // BLOCK, min(BLOCK, items - at)))


def truth(
    catalogue: Catalogue, queries: Sequence[Query], outfits: Sequence[Outfit], items: int
) -> tuple[Vector, Vector, Vector]:
    """Compute the exact K-th nearness and K-th best score of each query over all items, and each
    outfit's K-th best in its category.
    """
    count, schema, epsilon = len(queries), catalogue.schema, catalogue.calibration.epsilon
    asked = np.stack([query.near.vector for query in queries])
    unit = np.array([query.near.unit for query in queries])
    wanted = np.stack([query.match.wanted for query in queries])
    weights = np.stack([query.match.weights for query in queries])
    nearest = np.full((count, K), -np.inf, np.float32)
    best = nearest.copy()
    products = np.stack([outfit.score.query for outfit in outfits])
    sought = np.array([outfit.category for outfit in outfits])
    fitting = np.full((len(outfits), K), -np.inf, np.float32)
    for at in tqdm(range(0, items, BLOCK), "look at all", unit="block", disable=None):
        block = catalogue.block(at // BLOCK, min(BLOCK, items - at))
        vectors = augmented(np.stack([item.vector for item in block]))
        scores = np.where(
            unit[:, None],
            asked @ with_unit_subspaces(vectors, len(schema.sizes), catalogue.width).T,
            asked @ vectors.T,
        )
        nearest = largest(np.hstack([nearest, scores]))
        beliefs = certain(schema, block)
        best = largest(np.hstack([best, match_scores(wanted, weights, beliefs, schema, epsilon)]))
        known = np.stack([item.labels[0] for item in block])
        scores = np.where(known == sought[:, None], products @ beliefs.T, -np.inf)
        fitting = largest(np.hstack([fitting, scores]))
    return nearest.min(axis=1), best.min(axis=1), fitting.min(axis=1)


def largest(scores: Vector) -> Vector:
    """Select the K largest of scores (Q, N), unsorted: (Q, K)."""
    return np.partition(scores, scores.shape[1] - K, axis=1)[:, -K:]


def right(scores: Vector, floor: float) -> int:
    """Count the answers that are at least as good as the exact K-th, up to rounding."""
    return min(K, int((scores >= floor - 1e-5 * max(1, abs(floor))).sum()))


def certain(schema: Schema, items: Sequence[Item]) -> Vector:
    """Return beliefs of items as a gallery stores them."""
    beliefs = [item.beliefs for item in items if item.beliefs is not None]
    return with_known(np.stack(beliefs), np.stack([item.labels for item in items]), schema)


class Asking(NamedTuple):
    """Milliseconds and answers of each query."""

    distance_ms: list[float]
    match_ms: list[float]
    nearest: list[list[Item]]
    best: list[list[Item]]


def ask(gallery: EmbeddedGallery, queries: Sequence[Query]) -> Asking:
    """Search for each query by distance, then by match as for an edit."""
    found = Asking([], [], [], [])
    for query in queries:
        near, match = query.near, query.match
        for asked, milliseconds, answers in (
            (RankOptions(unit=near.unit), found.distance_ms, found.nearest),
            (
                RankOptions(match.wanted, match.epsilon, first=query.first),
                found.match_ms,
                found.best,
            ),
        ):
            start = time.perf_counter()
            items = gallery.nearest(near.query, near.weights, K, {}, None, asked)
            milliseconds.append(1000 * (time.perf_counter() - start))
            answers.append(items)
    return found


def complete(
    gallery: EmbeddedGallery, outfits: Sequence[Outfit], queries: Sequence[Query], floors: Vector
) -> dict[str, float]:
    """Complete each outfit, then search by match in the same category."""
    attribute = gallery.header.schema.attributes[0]
    times: dict[str, list[float]] = {"complete": [], "filtered": []}
    hits = 0
    for outfit, query, floor in zip(outfits, queries, floors):
        filters = {attribute.name: attribute.values[outfit.category]}
        match, weights = query.match, outfit.score.weights
        for name, near, asked in (
            ("complete", outfit.near, RankOptions(completing=outfit.score.query)),
            (
                "filtered",
                query.near.query,
                RankOptions(match.wanted, match.epsilon, first=query.first),
            ),
        ):
            start = time.perf_counter()
            items = gallery.nearest(near, weights, K, filters, None, asked)
            times[name].append(1000 * (time.perf_counter() - start))
            if name == "complete":
                beliefs = np.stack([item.beliefs for item in items if item.beliefs is not None])
                hits += right(outfit.score(beliefs), float(floor))
    figures = {"complete_recall30": hits / (K * len(outfits))}
    for name, milliseconds in times.items():
        figures[f"{name}_p50_ms"] = float(np.median(milliseconds))
        figures[f"{name}_p99_ms"] = float(np.percentile(milliseconds, 99))
    return figures


def measure(catalogue: Catalogue, folder: Path, items: int, count: int) -> dict[str, float]:
    """Measure all figures."""
    queries, outfits = make_queries(catalogue, count), make_outfits(catalogue, count)
    calibration = catalogue.calibration
    header = Header(
        "embedded", "benchmark", catalogue.schema, catalogue.width, None, "benchmark",
        calibration.to_json(),
    )  # fmt: skip
    with closing(EmbeddedGallery.create(folder / "gallery", header)) as gallery:
        started = time.perf_counter()
        fill(gallery, catalogue, items)
        filled = time.perf_counter()
        gallery.build_index()
        built = time.perf_counter()
    asked = [query for every in queries.values() for query in every]
    nearest, least, fitting = truth(catalogue, asked, outfits, items)
    figures: dict[str, float] = {"items": items}
    with closing(EmbeddedGallery(folder / "gallery")) as gallery:
        assert gallery.index is not None
        report = gallery.index.report
        figures["bytes_per_item"] = report["bytes_per_item"]
        figures["match_bytes_per_item"] = report["match_bytes_per_item"]
        for number, (kind, every) in enumerate(queries.items()):
            own = slice(number * count, (number + 1) * count)
            found = ask(gallery, every)
            hits, matched = 0, 0
            for query, near, floor, items_found, best in zip(
                every, nearest[own], least[own], found.nearest, found.best
            ):
                rows = augmented(np.stack([item.vector for item in items_found]))
                hits += right(query.near(rows), float(near))
                beliefs = np.stack([item.beliefs for item in best if item.beliefs is not None])
                matched += right(query.match(beliefs), float(floor))
            figures |= {
                f"recall30{kind}": hits / (K * count),
                f"match_recall30{kind}": matched / (K * count),
                f"p50_ms{kind}": float(np.median(found.distance_ms)),
                f"match_p50_ms{kind}": float(np.median(found.match_ms)),
                f"ratio{kind}": float(np.median(found.match_ms) / np.median(found.distance_ms)),
                f"p99_ms{kind}": float(np.percentile(found.distance_ms, 99)),
                f"match_p99_ms{kind}": float(np.percentile(found.match_ms, 99)),
            }
        figures |= complete(gallery, outfits, queries[""], fitting)
    figures |= {
        "insert_s": filled - started,
        "build_s": built - filled,
        "numbers_per_item": sum(report["directions"]),
    }
    for rank in ("distance", "match"):
        for kind, settings in report[rank].items():
            figures[f"depth_{rank}_{kind}"] = settings["depth"]
    stored = sum(file.stat().st_size for file in (folder / "gallery").iterdir())
    return figures | {"disk_bytes_per_item": stored / items}


def benchmark(
    items: int = 1_000_000,
    gallery: Path | None = None,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    """Build a gallery, query it, and remove it.

    Args:
        items: number of items; a synthetic one takes 17 KB of disk.
        gallery: of a calibrated bundle, to recombine its items; default: synthetic.
        folder: on a disk with enough space; default: that of temporary files.
        json: file of the figures.
    """
    catalogue = Catalogue() if gallery is None else Recombined(gallery)
    numbers = len(catalogue.schema.sizes) * (catalogue.width + 4) + catalogue.schema.num_values
    room, needed = shutil.disk_usage(folder or tempfile.gettempdir()).free, 4.5 * numbers * items
    if room < needed:
        raise UserError(f"--folder: expected {needed / 1e9:.0f} GB free, found {room / 1e9:.0f}")
    with tempfile.TemporaryDirectory(prefix="adde-gallery-", dir=folder) as temporary:
        figures = measure(catalogue, Path(temporary), items, 100)
    publish(figures, ("faiss-cpu", "numpy"), json)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(benchmark))
