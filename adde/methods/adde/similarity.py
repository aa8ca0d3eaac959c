"""The task `similarity`: how well each subspace compares its attribute alone, and what leaks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.evaluation import encode_split
from adde.methods.adde.model import ADDE
from adde.shards.reader import iterate
from adde.shards.similarity_lists import read_similarity
from adde.similarity import Benchmark, as_text, similarity_figures
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator
from adde.training.method import Measured
from adde.training.watching.displays import Matrix, Table

RANKINGS = {
    "subspace": "own subspace",
    "match": "match score of the attribute",
    "classifier": "predicted value, then subspace",
    "whole": "whole embedding",
    "random": "random",
}


def measure(
    model: ADDE, checkpoint: Checkpoint, evaluator: Evaluator, split: str, queries: int
) -> Measured:
    """MAP@all and triplet accuracy per attribute, and the leak matrix; see `Task`.

    Queries, candidates and triplets are those given with the shards. Without any, every item with a
    known label is a query and a candidate, and `queries` limits the queries of each attribute.
    """
    calibration, _ = calibration_of(checkpoint, model, evaluator)
    encoded = encode_split(evaluator, model, split)
    labels, index, given = encoded.labels, evaluator.index, None
    if isinstance(index.root, Path):
        item_ids = [sample.item_id for sample in iterate(index, split)]
        item_ids = [item_ids[row] for row in encoded.rows.tolist()]
        given = read_similarity(index.root, model.schema, split, item_ids, labels)
    else:
        print("shards at an address: a dataset's own queries are not used")
    figures = similarity_figures(
        encoded.embeddings,
        encoded.logits,
        calibration.beliefs(encoded.logits, encoded.presence, model.schema),
        labels,
        model.schema,
        given or Benchmark.of_labels(labels, queries),
        partial(tqdm, desc="rank", unit="block", leave=False, disable=None),
        encoded.items,
    )
    figures |= {"given": given is not None, "attributes": [*model.schema.names]}
    return Measured(figures, as_text(figures, model.schema))


def tables(figures: dict[str, Any]) -> list[Table]:
    """Show MAP and triplet accuracy by ranking, and the leak matrix in figures."""
    found = [
        _by_attribute(
            "similarity",
            f"Conditional similarity, {figures['split']} split",
            "MAP@all in percent: items with the query's value, ranked by one attribute alone.",
            figures["map"],
        )
    ]
    if figures["triplets"]:
        found.append(
            _by_attribute(
                "triplets",
                f"Triplets, {figures['split']} split",
                "In percent: how often the close item is nearer to the anchor than the far one.",
                figures["triplets"],
            )
        )
    names = _asked(figures)
    columns = [*names, "random"]
    found.append(
        Table(
            "leak",
            "What each subspace knows of other attributes",
            "Leak matrix, MAP@all in percent: labels of the row's attribute ranked in the column's "
            "subspace. The diagonal is to be the largest of its row, and the rest near a random "
            "ranking unless the labels of the two go together in the data.",
            ["attribute", *columns],
            [
                [name, *(figures["leak"][row][column] for column in names.values()), chance]
                for name, row in names.items()
                for chance in [figures["map"]["random"][name]]
            ],
        )
    )
    return found


def leak_matrix(figures: dict[str, Any]) -> Matrix:
    """Draw the leak matrix of the attributes that have queries."""
    names = _asked(figures)
    places = list(names.values())
    values = np.array(figures["leak"], dtype=np.float32)[np.ix_(places, places)]
    return Matrix(
        "The leak matrix",
        "MAP@all of the labels of an attribute (rows) in the subspaces of all attributes (columns, "
        "in the same order). The outlined diagonal is an attribute in its own subspace.",
        values,
        [f"{name}={name}" for name in names],
        (1,) * len(names),
    )


def _asked(figures: dict[str, Any]) -> dict[str, int]:
    """Attributes with queries, and their places in the leak matrix."""
    return {name: figures["attributes"].index(name) for name in figures["queries"]}


def _by_attribute(
    name: str, title: str, text: str, by_ranking: dict[str, dict[str, float]]
) -> Table:
    attributes = list(by_ranking["random"])
    return Table(
        name,
        title,
        text,
        ["", *attributes],
        [
            [RANKINGS[ranking], *(figures[attribute] for attribute in attributes)]
            for ranking, figures in by_ranking.items()
        ],
        best=True,
    )
