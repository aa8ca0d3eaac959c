"""Facets: the fields of a gallery's items and their values, for building filters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adde.serving.gallery.filters import storable

MAX_CHOICES = 24
"""A field with at most this many distinct values lists them."""


@dataclass(frozen=True)
class Facet:
    """Summary of one field over all items that have it."""

    name: str
    values: tuple[str | int | float | bool, ...]
    """All values, numbers first, sorted, if there are at most MAX_CHOICES; otherwise empty."""
    low: float | None
    """Minimum and maximum if all values are numbers, otherwise None."""
    high: float | None


def facets_of(items: Iterable[Mapping[str, Any]]) -> list[Facet]:
    """Summarise the fields of items, by name."""
    seen: dict[str, _FieldValues] = {}
    for fields in items:
        for name, value in fields.items():
            if storable(value):
                seen.setdefault(name, _FieldValues()).add(value)
    return [seen[name].facet(name) for name in sorted(seen)]


@dataclass
class _FieldValues:
    # The key includes whether the value is a bool, because True == 1.
    values: dict[tuple[bool, Any], None] = field(default_factory=lambda: {})
    low: float | None = None
    high: float | None = None
    numbers: bool = True

    def add(self, value: str | int | float | bool) -> None:
        if len(self.values) <= MAX_CHOICES:
            self.values[isinstance(value, bool), value] = None
        if isinstance(value, str | bool):
            self.numbers = False
        elif self.numbers:
            self.low = value if self.low is None else min(self.low, value)
            self.high = value if self.high is None else max(self.high, value)

    def facet(self, name: str) -> Facet:
        few = [value for _, value in self.values] if len(self.values) <= MAX_CHOICES else []
        few.sort(key=lambda v: (True, v.casefold()) if isinstance(v, str) else (False, v))
        bounds = (self.low, self.high) if self.numbers else (None, None)
        return Facet(name, tuple(few), *bounds)
