"""Edits of an attribute: a new value, "not black", "redder"; as names, labels, beliefs and vectors.

One edit has three readings, which this module keeps together: the beliefs that a search by match
asks for, the change of the embedding that a search by distance makes, and the values that an answer
may show so that the edit counts as made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adde.errors import UserError
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import ask_more, ask_other, ask_value


@dataclass(frozen=True, init=False)
class Not:
    """Any value of the attribute but these: `Not("black")`, `Not("black", "grey")`."""

    values: tuple[str, ...]

    def __init__(self, *values: str) -> None:
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        return f"not {' or '.join(self.values)}"


@dataclass(frozen=True)
class More:
    """A share `amount` of the way from what the item is to the value: `More("red", 0.5)`."""

    value: str
    amount: float = 0.5

    def __str__(self) -> str:
        return f"more {self.value}"


Edit = str | Not | More
Edits = Mapping[str, Edit]


def check(edits: Edits, schema: Schema) -> None:
    """Refuses edits that cannot be made.

    Raises:
        UserError: an attribute or value that the schema does not have, names the nearest; no
            value is left, or an amount outside 0 to 1.
    """
    for name, edit in edits.items():
        a = schema.attribute_index(name)
        if isinstance(edit, More) and not 0 < edit.amount <= 1:  # NaN is neither
            raise UserError(
                f"edits: {name!r}: amount: expected more than 0 and at most 1, found {edit.amount}"
            )
        if isinstance(edit, Not) and not edit.values:
            raise UserError(f"edits: {name!r}: expected values that are not wanted, found none")
        if not acceptable_labels(edit, schema, a):
            raise UserError(
                f"edits: {name!r}: expected a value that is left, found that none is: {edit}"
            )


def acceptable_labels(edit: Edit, schema: Schema, attribute: int) -> list[int]:
    """Labels of which an answer shows one if the edit is made; one or more, unless all are refused.

    Raises:
        UserError: the attribute does not have such a value; names the nearest.
    """
    name = schema.names[attribute]
    if isinstance(edit, Not):
        refused = {schema.value_index(name, value) for value in edit.values}
        return [label for label in range(schema.sizes[attribute]) if label not in refused]
    return [schema.value_index(name, edit.value if isinstance(edit, More) else edit)]


def set_wanted(edit: Edit, wanted: Vector, part: slice, schema: Schema, attribute: int) -> None:
    """Makes `wanted` (1, V + A) float32 ask for an edit of the attribute with columns `part`."""
    labels = acceptable_labels(edit, schema, attribute)
    if isinstance(edit, Not):
        refused = set(range(schema.sizes[attribute])) - set(labels)
        ask_other(wanted, part, sorted(refused))
    elif isinstance(edit, More):
        ask_more(wanted, part, labels[0], edit.amount)
    else:
        ask_value(wanted, part, labels[0])


def indicator(edits: Edits, own: Labels, schema: Schema) -> Vector:
    """What the memory adds to an embedding, (1, V) float32.

    A new value: -1 at the item's own value, +1 at the new one, zero where they are the same. Other
    values than some: -1 at the own one, and the mean of those that are left. More of a value: a
    new value times the amount.

    Args:
        edits: of any attributes.
        own: (A,) int64 labels that edits take away; nothing is taken where one is UNKNOWN.
        schema: of the columns.
    """
    row = np.zeros((1, schema.num_values), np.float32)
    for name, edit in edits.items():
        a = schema.attribute_index(name)
        change = np.zeros(schema.sizes[a], np.float32)
        if own[a] != UNKNOWN:
            change[own[a]] -= 1
        labels = acceptable_labels(edit, schema, a)
        change[labels] += 1 / len(labels)
        if isinstance(edit, More):
            change *= edit.amount
        row[0, schema.offsets[a] : schema.offsets[a] + schema.sizes[a]] = change
    return row
