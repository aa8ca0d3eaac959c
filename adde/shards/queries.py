"""Evaluation queries that a dataset brings along, stored beside its shards as queries.json.

Layout: {"split": "test", "schema_hash": "...", "reference": [item_id, ...],
"attribute": [int, ...], "value": [int, ...], "targets": [[int, ...], ...]}: row by row what
`adde.metrics.Queries` holds, with items by id, as the build decides on the order they stand in.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.metrics import Queries
from adde.schema import Schema
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

QUERIES_NAME = "queries.json"


def write_queries(
    folder: Path, queries: Queries, split: str, item_ids: Sequence[str], schema: Schema
) -> None:
    """Writes queries.json into a folder of shards; `queries.reference` counts in `item_ids`."""
    content = {
        "split": split,
        "schema_hash": schema.hash,
        "reference": [item_ids[row] for row in queries.reference.tolist()],
        "attribute": queries.attribute.tolist(),
        "value": queries.value.tolist(),
        "targets": queries.targets.tolist(),
    }
    write_json(folder / QUERIES_NAME, content, indent=None)


def read_queries(index: ShardIndex, split: str) -> Queries | None:
    """The queries that were given for a split, or None where there are none.

    `reference` are rows of the split in stored order, as `evaluate_split` counts its gallery.

    Raises:
        UserError: the file is damaged, is of another schema, or asks about an item that the
            split does not hold.
    """
    path = index.folder / QUERIES_NAME
    if not path.exists():
        return None
    content: Any = read_json(path)
    try:
        if content["split"] != split:
            return None
        if content["schema_hash"] != index.schema.hash:
            raise UserError(f"{path}: expected queries of the shards' schema; build them again")
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
