"""Evaluation queries that come with a data set, stored next to its shards as queries.json.

Layout: {"schema_hash": "...", "split": "test", "reference": [item_id, ...],
"attribute": [int, ...], "value": [int, ...], "targets": [[int, ...], ...]}. Each row holds one
query of `adde.metrics.Queries`, with its reference named by item id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from adde.errors import UserError
from adde.metrics import Queries
from adde.shards.benchmark_lists import QUERIES_NAME, read_benchmark
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


@dataclass(frozen=True, eq=False)
class QueryList:
    """Queries of one split; see `adde.shards.benchmark_lists.BenchmarkLists`."""

    FILE_NAME: ClassVar[str] = QUERIES_NAME

    queries: Queries
    """References are rows of `item_ids`."""
    item_ids: Sequence[str]
    split: str = "test"

    def __len__(self) -> int:
        return len(self.queries)

    def content(self) -> dict[str, Any]:
        """Return the queries as JSON."""
        queries = self.queries
        return {
            "split": self.split,
            "reference": [self.item_ids[row] for row in queries.reference.tolist()],
            "attribute": queries.attribute.tolist(),
            "value": queries.value.tolist(),
            "targets": queries.targets.tolist(),
        }

    def kept(self, item_ids: Collection[str]) -> "QueryList":
        """Return the queries whose reference is among `item_ids`."""
        known = set(item_ids)
        references = self.queries.reference.tolist()
        kept = [
            row for row, reference in enumerate(references) if self.item_ids[reference] in known
        ]
        return replace(self, queries=self.queries[np.array(kept, np.int64)])


def read_queries(index: ShardIndex, split: str) -> Queries | None:
    """Return the queries that came with a split, or None if there are none.

    References are rows of the split in stored order, the order in which evaluation numbers the
    gallery.

    Raises:
        UserError: The file is damaged, belongs to another schema, or names an item that the split
            does not hold.
    """
    path = index.folder / QUERIES_NAME
    content = read_benchmark(path, index.schema)
    if content is None:
        return None
    try:
        if content["split"] != split:
            return None
        row_of = {sample.item_id: row for row, sample in enumerate(iterate(index, split))}
        reference = [row_of[item] for item in content["reference"]]
        columns = [np.array(content[key], np.int64) for key in ("attribute", "value", "targets")]
    except KeyError as error:
        raise UserError(
            f"{path}: expected items of split {split!r} and all fields, found no {error}; "
            "build the shards again"
        ) from None
    targets = columns[2].reshape(len(reference), len(index.schema.names))
    return Queries(np.array(reference, np.int64), columns[0], columns[1], targets)
