"""Which items may be answers at all.

A filter is a mapping from names (attributes or fields of the items) to what is wanted of each:
a value, a list of values of which one must be had, or bounds {"min": ..., "max": ...}, both
included and either left out. All must hold. An item that does not have the name never passes.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from adde.errors import UserError, did_you_mean

BOUNDS = {"min": ">=", "max": "<="}


@dataclass(frozen=True)
class Condition:
    """`name` has one of `values`; or, where there are bounds, lies within them."""

    name: str
    values: tuple[str | int | float, ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()
    """Pairs of ">=" or "<=" and a number."""


def parse(filters: Mapping[str, Any], names: Collection[str]) -> list[Condition]:
    """Conditions of a filter over items that have `names`.

    Raises:
        UserError: a name that no item has, or a condition that is none; names it.
    """
    return [_condition(name, wanted, names) for name, wanted in filters.items()]


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
    """Text, a finite number, or an integer of 64 bits: what either gallery can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def to_sql(conditions: list[Condition]) -> tuple[str, list[Any]]:
    """A WHERE clause over a JSON column `facts`, and its parameters."""
    clauses = ["live"]
    parameters: list[Any] = []
    for condition in conditions:
        if condition.bounds:
            # Text sorts above every number in SQLite, and is within no bounds.
            tests = ["typeof(value) IN ('integer', 'real')"]
            tests += [f"value {sign} ?" for sign, _ in condition.bounds]
            found: list[Any] = [number for _, number in condition.bounds]
        else:
            marks = ", ".join("?" * len(condition.values))
            tests, found = [f"value IN ({marks})"], [*condition.values]
        clauses.append(
            f"EXISTS (SELECT 1 FROM json_each(facts) WHERE key = ? AND {' AND '.join(tests)})"
        )
        parameters += [condition.name, *found]
    return " AND ".join(clauses), parameters


def to_milvus(conditions: list[Condition]) -> str:
    """The same as an expression over Milvus' JSON field `facts`."""
    clauses: list[str] = []
    for condition in conditions:
        name = f"facts[{_literal(condition.name)}]"
        if condition.bounds:
            clauses += [f"{name} {sign} {_literal(number)}" for sign, number in condition.bounds]
        else:
            # Milvus Lite knows no `in` of a JSON path.
            equal = " or ".join(f"{name} == {_literal(value)}" for value in condition.values)
            clauses.append(f"({equal})")
    return " and ".join(clauses)


def _literal(value: str | int | float) -> str:
    # Milvus does not read JSON's \\u escapes.
    return json.dumps(value, ensure_ascii=False)
