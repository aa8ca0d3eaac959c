"""Evaluation of a head on a split, beside simple scorers and the oracle."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from adde.methods.outfits.features import Features
from adde.methods.outfits.model import Bilinear, Head, Question, subspaces
from adde.metrics import Figures
from adde.outfits import (
    BilinearScorer,
    RandomScorer,
    Scorer,
    SimilarityScorer,
    cooccurrence,
    outfit_figures,
)
from adde.schema import Rows, Schema, Vector
from adde.shards.outfit_lists import OutfitData
from adde.training.watching.displays import Table

SCORERS = {
    "head": "trained head",
    "pmi": "co-occurrence (PMI)",
    "similar": "similarity",
    "random": "random",
    "oracle": "oracle",
}


def representation(head: Head, features: Features, schema: Schema) -> torch.Tensor:
    """(N, ...) float32 of all items, as the head wants them."""
    if head.wants == "values":
        return torch.from_numpy(features.values(schema))
    return subspaces(torch.from_numpy(features.embeddings))


def cooccurrence_of(features: Features, given: OutfitData, schema: Schema) -> Vector:
    """(C, C, V, V) PMI of the training outfits: of known labels, else of what is seen."""
    values = features.values(schema, known=True)
    count = schema.sizes[given.category]
    return cooccurrence(values, given.categories, count, given.outfits["train"], schema)


class HeadScorer(Scorer):
    """A head on represented items (N, ...) of categories (N,)."""

    def __init__(self, head: Head, items: torch.Tensor, categories: Rows) -> None:
        self._head, self._items = head, items
        self._categories = torch.from_numpy(categories)

    @torch.no_grad()
    def complete(self, outfit: Rows, candidates: Rows) -> Figures:
        """The head's scores."""
        there, sought = torch.from_numpy(outfit), torch.from_numpy(candidates)
        found = np.empty(len(candidates))
        kinds = self._categories[sought]
        for kind in kinds.unique():
            rows = kinds == kind
            question = Question(self._items[there][None], self._categories[there][None], kind[None])
            scores = self._head.score(question, self._items[sought[rows]][None])[0]
            found[rows.numpy()] = scores.numpy()
        return found


def scorers(head: Head, features: Features, given: OutfitData, schema: Schema) -> dict[str, Scorer]:
    """The head, and what it is compared with."""
    table = head.start.numpy() if isinstance(head, Bilinear) else None
    if table is None:
        table = cooccurrence_of(features, given, schema)
    items = representation(head, features, schema)
    found: dict[str, Scorer] = {
        "head": HeadScorer(head, items, given.categories),
        "pmi": BilinearScorer(features.values(schema), given.categories, table),
        "similar": SimilarityScorer(features.embeddings),
        "random": RandomScorer(),
    }
    return found | ({"oracle": given.oracle} if given.oracle is not None else {})


def figures_of(
    head: Head, features: Features, given: OutfitData, schema: Schema, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`adde.outfits.outfit_figures` of all scorers, or of some by name."""
    # A copy: the head may be in training, on another device.
    every = scorers(copy.deepcopy(head).cpu(), features, given, schema)
    chosen = {name: one for name, one in every.items() if not only or name in only}
    return outfit_figures(chosen, given.benchmark)


def table(figures: Mapping[str, Any]) -> Table:
    """The figures for the report."""
    rows = figures["scorers"]
    columns = list(rows["head"])
    asked = ", ".join(f"{name} {count:,}" for name, count in figures["questions"].items())
    return Table(
        "outfits",
        f"Outfits, {figures['split']} split",
        "In percent. An outfit has one truth while other items may go with it as well: compare "
        f"with the oracle where there is one. Questions: {asked}.",
        ["", *columns],
        [[SCORERS[name], *(row[column] for column in columns)] for name, row in rows.items()],
    )
