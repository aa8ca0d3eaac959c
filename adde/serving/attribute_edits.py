"""Edits of an attribute: a new value, "not black", "redder".

An edit has three effects, kept together here: the beliefs wanted by a search by match, the change
of the embedding made by a search by distance, and the labels that count as a success.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adde.errors import UserError
from adde.schema import Labels, Schema, Vector
from adde.scoring import ask_more, ask_other, ask_value


@dataclass(frozen=True, init=False)
class Not:
    """Any value but these: `Not("black")`, `Not("black", "grey")`."""

    values: tuple[str, ...]

    def __init__(self, *values: str) -> None:
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        return f"not {' or '.join(self.values)}"


@dataclass(frozen=True)
class More:
    """Move the share `amount` of the way to a value: `More("red", 0.5)`."""

    value: str
    amount: float = 0.5

    def __str__(self) -> str:
        return f"more {self.value}"


Edit = str | Not | More
Edits = Mapping[str, Edit]


def check(edits: Edits, schema: Schema) -> None:
    """Reject edits that cannot be made.

    Raises:
        UserError: the schema does not have an attribute or value (names the nearest), no value is
            left, or an amount is outside 0 to 1.
    """
    for name, edit in edits.items():
        a = schema.attribute_index(name)
        if isinstance(edit, More) and not 0 < edit.amount <= 1:  # NaN is neither
            raise UserError(
                f"edits: {name!r}: amount: expected more than 0 and at most 1, found {edit.amount}"
            )
        if isinstance(edit, Not) and not edit.values:
            raise UserError(f"edits: {name!r}: expected values to exclude, found none")
        if not acceptable_labels(edit, schema, a):
            raise UserError(
                f"edits: {name!r}: expected at least one value that is not excluded, found {edit}"
            )


def acceptable_labels(edit: Edit, schema: Schema, attribute: int) -> list[int]:
    """Return the labels an answer may show for the edit to count as made.

    Raises:
        UserError: the attribute does not have such a value; names the nearest.
    """
    name = schema.names[attribute]
    if isinstance(edit, Not):
        excluded = {schema.value_index(name, value) for value in edit.values}
        return [label for label in range(schema.sizes[attribute]) if label not in excluded]
    return [schema.value_index(name, edit.value if isinstance(edit, More) else edit)]


def set_wanted(edit: Edit, wanted: Vector, part: slice, schema: Schema, attribute: int) -> None:
    """Set the columns `part` of wanted beliefs (1, V + A) float32 to what an edit asks for."""
    labels = acceptable_labels(edit, schema, attribute)
    if isinstance(edit, Not):
        excluded = set(range(schema.sizes[attribute])) - set(labels)
        ask_other(wanted, part, sorted(excluded), attribute in schema.multiple)
    elif isinstance(edit, More):
        ask_more(wanted, part, labels[0], edit.amount)
    else:
        ask_value(wanted, part, labels[0])


def indicator(edits: Edits, own: Labels, schema: Schema) -> Vector:
    """The change that the memory adds to an embedding, (1, V) float32.

    A new value: -1 at the item's own value and +1 at the new one, zero if they are equal; the
    values of a set share the -1. `Not`: -1 at the own value, +1 shared equally among the remaining
    values. `More`: a new value times the amount.

    Args:
        edits: edits of any attributes.
        own: (A,) int64 labels that edits remove; nothing is removed for UNKNOWN.
        schema: defines the columns.
    """
    row, removed = np.zeros((1, schema.num_values), np.float32), schema.multi_hot(own[None])
    for name, edit in edits.items():
        a = schema.attribute_index(name)
        part = slice(schema.offsets[a], schema.offsets[a] + schema.sizes[a])
        change = 0 - removed[0, part]
        labels = acceptable_labels(edit, schema, a)
        change[labels] += 1 / len(labels)
        if isinstance(edit, More):
            change *= edit.amount
        row[0, part] = change
    return row
