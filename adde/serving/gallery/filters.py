"""Filters: conditions on attributes and fields that every answer must meet.

A filter maps names (attributes or fields of the items) to a value, a list of values of which one
must match, or inclusive bounds {"min": ..., "max": ...}, either of which may be omitted. All
conditions must hold. An item without the name never passes.

An attribute's values must be in the schema. Fields vary from item to item, so any value of the
field's kind is accepted; text against a numeric field, or bounds on a field without numbers, is an
error.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from adde.errors import UserError, did_you_mean
from adde.schema import Schema

BOUNDS = {"min": ">=", "max": "<="}

HALF = re.compile(r"[\ud800-\udfff]")
"""Lone surrogates, which are not valid Unicode text."""

CONTROL = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|{HALF.pattern}")


@dataclass(frozen=True)
class Condition:
    """A condition: `name` has one of `values` or, if there are bounds, lies within them."""

    name: str
    values: tuple[str | int | float, ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()
    """Pairs of ">=" or "<=" and a number."""


def parse(
    filters: Mapping[str, Any], names: Collection[str], schema: Schema | None = None
) -> list[Condition]:
    """Parse a filter over items that have `names`.

    Raises:
        UserError: no item has the name, a condition is malformed, or the schema's attribute does
            not have the value; names it.
    """
    conditions = [_condition(name, wanted, names) for name, wanted in filters.items()]
    for attribute in () if schema is None else schema.attributes:
        for condition in conditions:
            if condition.name == attribute.name:
                _require_values(condition, attribute.values)
    return conditions


def _require_values(condition: Condition, known: Sequence[str]) -> None:
    where = f"filters: {condition.name!r}"
    if condition.bounds:
        raise UserError(f"{where}: expected values, found bounds, which apply to numeric fields")
    for value in condition.values:
        if value not in known:
            raise UserError(f"{where}: unknown value {value!r}; {did_you_mean(str(value), known)}")


def require_kind(condition: Condition, held: Collection[str]) -> None:
    """Reject a condition that no item meets because its field holds values of another kind.

    Args:
        condition: the condition that no item meets.
        held: the kinds of values in the field: numbers, text, both, or nothing.

    Raises:
        UserError: it asks for text in a numeric field, or for numbers in a text field.
    """
    asked = {"text" if isinstance(value, str) else "numbers" for value in condition.values}
    asked = asked or {"numbers"}
    if held and not asked & set(held):
        expected, found = " and ".join(held), " and ".join(sorted(asked))
        hint = "; build_gallery.py reports which cell of a column made it text"
        raise UserError(
            f"filters: {condition.name!r}: expected {expected}, as the items have, found {found}"
            + (hint if asked == {"numbers"} else "")
        )


def _condition(name: str, wanted: Any, names: Collection[str]) -> Condition:
    if name not in names:
        raise UserError(f"filters: no item has {name!r}; {did_you_mean(name, sorted(names))}")
    if isinstance(wanted, Mapping):
        bounds = cast(Mapping[Any, Any], wanted)
        if not bounds or any(
            key not in BOUNDS or isinstance(value, str) or not storable(value)
            for key, value in bounds.items()
        ):
            raise UserError(
                f'filters: {name!r}: expected {{"min": number, "max": number}}, found {bounds}'
            )
        return Condition(name, bounds=tuple((BOUNDS[key], bounds[key]) for key in bounds))
    values = cast(list[Any], wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not values or not all(map(storable, values)):
        raise UserError(
            f"filters: {name!r}: expected a value, a list of values or bounds, found {wanted!r}"
        )
    return Condition(name, values=tuple(values))


def storable(value: Any) -> bool:
    """Whether both engines can store a value: text, a finite number, or an integer of 64 bits."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not HALF.search(value)
    return isinstance(value, int) and -(2**63) <= value < 2**63


def to_sql(condition: Condition) -> tuple[str, list[Any]]:
    """Return an SQL query over tables `names` and `facts` for the rows that pass, and its
    parameters.
    """
    if condition.bounds:
        tests = [f"value {sign} ?" for sign, _ in condition.bounds]
        # In SQLite text sorts above every number and so would pass a lower bound.
        tests += ["value < ''"] * all(sign != "<=" for sign, _ in condition.bounds)
        found: list[Any] = [number for _, number in condition.bounds]
    else:
        marks = ", ".join("?" * len(condition.values))
        tests, found = [f"value IN ({marks})"], [*condition.values]
    name = "name = (SELECT number FROM names WHERE name = ?)"
    query = f"SELECT row FROM facts WHERE {name} AND {' AND '.join(tests)}"
    return query, [condition.name, *found]


def to_milvus(conditions: list[Condition]) -> str:
    """Return the conditions as an expression over Milvus' JSON field `facts`."""
    clauses: list[str] = []
    for condition in conditions:
        name = f"facts[{literal(condition.name)}]"
        if condition.bounds:
            clauses += [f"{name} {sign} {literal(number)}" for sign, number in condition.bounds]
        else:
            # Milvus Lite does not support `in` on a JSON path.
            equal = " or ".join(f"{name} == {literal(value)}" for value in condition.values)
            clauses.append(f"({equal})")
    return " and ".join(clauses)


def literal(value: str | int | float) -> str:
    """Format a value for an expression of Milvus.

    Raises:
        UserError: the text has control characters, which Milvus cannot express.
    """
    if isinstance(value, str) and CONTROL.search(value):
        raise UserError(f"expected text without control characters, found {value!r}")
    # Milvus understands JSON's escapes of quotes, backslashes, tabs and newlines only.
    return json.dumps(value, ensure_ascii=False)
