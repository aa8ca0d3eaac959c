"""Completes an outfit: which items of a category go with those that are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adde.bundle import Bundle
from adde.errors import UserError
from adde.outfits import value_features
from adde.schema import Schema, Vector
from adde.scoring import parts
from adde.serving.gallery.base import Fields, Item

MOST_ITEMS = 50
"""Items of an outfit at most."""


@dataclass(frozen=True)
class Fitting:
    """An item that goes with an outfit."""

    item_id: str
    score: float
    """How well it goes with the outfit's items, their mean; larger is better. A head that was not
    trained on from its start gives the log of how much more often than by chance values of the two
    are worn together, added up over pairs of attributes.
    """
    labels: Mapping[str, Any]
    """As the catalogue has them; None where it does not say."""
    fields: Fields
    item: Item = field(repr=False, compare=False)


def check_outfit(bundle: Bundle, items: Sequence[str], pictures: int) -> None:
    """Raise UserError where a bundle cannot complete outfits, or an outfit is none."""
    if bundle.category is None or bundle.calibration is None:
        raise UserError(
            f"{bundle.path}: expected a bundle with an outfit head, found none; train one (method "
            "= 'outfits'), export with --outfits RUN and build the gallery again"
        )
    if not 1 <= len(items) + pictures <= MOST_ITEMS:
        raise UserError(
            f"items: expected 1 to {MOST_ITEMS} items or pictures that are there already, found "
            f"{len(items) + pictures}"
        )
    twice = [item for number, item in enumerate(items) if item in items[:number]]
    if twice:
        raise UserError(f"items: expected each item once, found {twice[0]!r} twice")


def mean_outfit(beliefs: Vector, categories: Sequence[int], schema: Schema, count: int) -> Vector:
    """(1, C, V) float32: the mean of items' values (of beliefs (n, V + A)), by their category."""
    outfit = np.zeros((1, count, schema.num_values), np.float32)
    np.add.at(outfit[0], np.asarray(categories), value_features(beliefs, schema))
    return outfit / np.float32(len(beliefs))


def with_absence(query: Vector, schema: Schema) -> Vector:
    """(V + A,) float32 of a query (V,): that an attribute is not there counts nothing."""
    found = np.zeros(schema.num_values + len(schema.sizes), np.float32)
    for part, own in zip(parts(schema), np.split(query, schema.offsets[1:])):
        found[part.start : part.stop - 1] = own
    return found


def fittings(items: Sequence[Item], query: Vector, schema: Schema, k: int) -> tuple[Fitting, ...]:
    """The k best of candidates by their product with a query (V + A,), ties as they stand."""
    beliefs = np.stack([item.beliefs for item in items if item.beliefs is not None])
    # Each product by itself: a score does not depend on what else is compared.
    scores = np.multiply(beliefs, query).sum(axis=1)
    order: list[int] = np.argsort(-scores, kind="stable")[:k].tolist()
    best = [(items[at], float(scores[at])) for at in order]
    return tuple(
        Fitting(item.item_id, score, schema.decode(item.labels), item.fields, item)
        for item, score in best
    )
