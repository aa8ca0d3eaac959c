"""Queries, candidates and triplets of conditional similarity that come with a data set.

Layout of similarity.json: {"schema_hash": "...", "splits": {"test": {"queries": {attribute: [item
ids]}, "candidates": {attribute: [item ids]}, "triplets": {attribute: [[anchor, close, far], ...]}},
...}}. Without queries, every item of the split with a known label is both query and candidate.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adde.errors import UserError
from adde.schema import Labels, Schema
from adde.shards.benchmark_lists import (
    SIMILARITY_NAME,
    FindRows,
    read_benchmark,
    row_finder,
)
from adde.similarity import Benchmark, Mask

Triplet = tuple[str, str, str]
"""Item ids: anchor, close, far."""


@dataclass(frozen=True)
class SplitLists:
    """The lists of one split, by attribute."""

    queries: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    candidates: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    triplets: Mapping[str, Sequence[Triplet]] = field(default_factory=dict[str, Sequence[Triplet]])

    def __len__(self) -> int:
        return sum(map(len, self.queries.values())) + sum(map(len, self.triplets.values()))


@dataclass(frozen=True)
class SimilarityLists:
    """The lists by split; see `adde.shards.benchmark_lists.BenchmarkLists`."""

    FILE_NAME: ClassVar[str] = SIMILARITY_NAME

    splits: Mapping[str, SplitLists]

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def content(self) -> dict[str, Any]:
        """Return the lists as JSON."""
        return {
            "splits": {
                split: {
                    name: {attribute: [*entries] for attribute, entries in of_name.items()}
                    for name, of_name in vars(lists).items()
                }
                for split, lists in self.splits.items()
            }
        }

    def kept(self, item_ids: Collection[str]) -> "SimilarityLists":
        """Return the entries whose items are all among `item_ids`."""
        known = set(item_ids)
        return SimilarityLists(
            {
                split: SplitLists(
                    _only(lists.queries, known),
                    _only(lists.candidates, known),
                    {
                        attribute: [triplet for triplet in triplets if known.issuperset(triplet)]
                        for attribute, triplets in lists.triplets.items()
                    },
                )
                for split, lists in self.splits.items()
            }
        )


def _only(lists: Mapping[str, Sequence[str]], known: set[str]) -> dict[str, list[str]]:
    return {name: [item for item in items if item in known] for name, items in lists.items()}


def read_similarity(
    folder: Path, schema: Schema, split: str, item_ids: Sequence[str], labels: Labels
) -> Benchmark | None:
    """Return the benchmark of a split, or None if the data set has none.

    Args:
        folder: Folder of the shards.
        schema: Schema of the shards.
        split: Split of the items.
        item_ids: N ids of the split, in the order of the benchmark's rows.
        labels: (N, A) int64.

    Raises:
        UserError: The file is damaged, belongs to another schema, or names items or attributes
            that the split lacks.
    """
    path = folder / SIMILARITY_NAME
    content = read_benchmark(path, schema)
    if content is None or split not in content["splits"]:
        return None
    find_rows = row_finder(path, item_ids)
    try:
        lists = SplitLists(**content["splits"][split])
        for name in {*lists.queries, *lists.candidates, *lists.triplets} - {*schema.names}:
            raise UserError(f"{path}: expected attributes of the schema, found {name!r}")
        triplets = {
            schema.attribute_index(attribute): np.array(
                [find_rows(triplet, f"triplets of {attribute!r}") for triplet in entries], np.int64
            ).reshape(-1, 3)
            for attribute, entries in lists.triplets.items()
            if entries
        }
        if not lists.queries:
            of_labels = Benchmark.of_labels(labels)
            return Benchmark(of_labels.queries, of_labels.candidates, triplets)
        masks = [
            _mask(of_name, find_rows, name, labels, schema)
            for name, of_name in (("queries", lists.queries), ("candidates", lists.candidates))
        ]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: expected queries, candidates and triplets by attribute, found: {error}; "
            "build the shards again"
        ) from None
    return Benchmark(masks[0], masks[1], triplets)


def _mask(
    lists: Mapping[str, Sequence[str]],
    find_rows: FindRows,
    name: str,
    labels: Labels,
    schema: Schema,
) -> Mask:
    mask = np.zeros(labels.shape, np.bool_)
    for attribute, items in lists.items():
        rows = find_rows(items, f"{name} of {attribute!r}")
        mask[rows, schema.attribute_index(attribute)] = True
    return mask
