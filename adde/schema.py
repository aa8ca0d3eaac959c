"""Attributes, their values, and the columns and labels that follow from them.

Symbols: A attributes, V_a values of attribute a, V = sum of V_a columns, B items.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, did_you_mean

UNKNOWN = -1
"""The label of an attribute that is not known or cannot be seen on an item. Never a class."""

RESERVED = ("mean",)
"""Names that no attribute has: figures stand beside their mean in metrics.json."""

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
"""Row numbers, such as those of a gallery's items."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attribute:
    """A named attribute and its ordered values."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """The ordered attributes of a catalogue.

    The label of value j of attribute a is j; its column in indicators and in the memory is
    `offsets[a] + j`.

    Raises:
        UserError: there is no attribute, a name or value repeats or is empty, a name is
            reserved, or an attribute has fewer than two values.
    """

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if not self.attributes:
            raise UserError("schema: expected at least one attribute, found none")
        _check_unique("schema: attribute", self.names)
        if taken := set(RESERVED) & set(self.names):
            raise UserError(
                f"schema: expected attributes with names of their own, found {min(taken)!r}, which "
                "is what the mean of all is called; rename the column"
            )
        for attribute in self.attributes:
            _check_unique(f"attribute {attribute.name!r}: value", attribute.values)
            if len(attribute.values) < 2:
                raise UserError(
                    f"attribute {attribute.name!r}: expected at least two values, found "
                    f"{list(attribute.values)}; leave the column out"
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the attributes, in order."""
        return tuple(attribute.name for attribute in self.attributes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """V_a of each attribute."""
        return tuple(len(attribute.values) for attribute in self.attributes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First column of each attribute."""
        return tuple(int(end) - size for end, size in zip(np.cumsum(self.sizes), self.sizes))

    @property
    def num_values(self) -> int:
        """V, the number of columns."""
        return sum(self.sizes)

    @cached_property
    def value_names(self) -> list[str]:
        """`attribute=value` of every column."""
        return [f"{a.name}={value}" for a in self.attributes for value in a.values]

    @cached_property
    def attribute_of_column(self) -> Labels:
        """(V,) int64: the attribute each column belongs to."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.int64), self.sizes)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON; shards, checkpoints and bundles carry it."""
        canonical = json.dumps(self.to_json(), separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def attribute_index(self, name: str) -> int:
        """Index of an attribute. Raises UserError with the nearest valid names."""
        if name not in self.names:
            raise UserError(f"unknown attribute {name!r}; {did_you_mean(name, self.names)}")
        return self.names.index(name)

    def value_index(self, name: str, value: str) -> int:
        """Label of a value. Raises UserError with the nearest valid values."""
        values = self.attributes[self.attribute_index(name)].values
        if value not in values:
            raise UserError(
                f"attribute {name!r}: unknown value {value!r}; {did_you_mean(value, values)}"
            )
        return values.index(value)

    def encode(self, labels: Mapping[str, str | None]) -> Labels:
        """(A,) int64 of one item; attributes left out or None are UNKNOWN.

        Raises:
            UserError: an attribute or value is not in the schema.
        """
        encoded = [UNKNOWN] * len(self.attributes)
        for name, value in labels.items():
            index = self.attribute_index(name)
            if value is not None:
                encoded[index] = self.value_index(name, value)
        return np.array(encoded, dtype=np.int64)

    def decode(self, labels: Labels) -> dict[str, str | None]:
        """Labels (A,) int64 of one item by name; UNKNOWN becomes None."""
        return {
            attribute.name: None if label == UNKNOWN else attribute.values[label]
            for attribute, label in zip(self.attributes, labels.tolist())
        }

    def multi_hot(self, labels: Labels) -> Vector:
        """(B, V) float32 from labels (B, A) int64: 1 at each known value's column."""
        rows, attributes = np.nonzero(labels != UNKNOWN)
        hot = np.zeros((len(labels), self.num_values), dtype=np.float32)
        hot[rows, np.asarray(self.offsets)[attributes] + labels[rows, attributes]] = 1.0
        return hot

    def indicator(self, labels: Labels, targets: Labels) -> Vector:
        """(B, V) float32 edit that turns `labels` into `targets`, both (B, A) int64.

        -1 at the value taken away, +1 at the new one (equation 5); nothing is taken away where
        the label is UNKNOWN, and zero wherever the two agree.
        """
        return self.multi_hot(targets) - self.multi_hot(labels)

    def require_same(self, other: "Schema", mine: str, theirs: str) -> None:
        """Refuses another schema, naming both hashes and the first difference."""
        if self.hash != other.hash:
            raise UserError(
                f"{mine} and {theirs} have different schemas: {self.hash} and {other.hash}; "
                f"first difference: {self._first_difference(other)}"
            )

    def _first_difference(self, other: "Schema") -> str:
        if self.names != other.names:
            return f"attributes {list(self.names)} and {list(other.names)}"
        for mine, theirs in zip(self.attributes, other.attributes):
            if mine.values != theirs.values:
                return f"values of {mine.name!r}: {list(mine.values)} and {list(theirs.values)}"
        return "none"

    def to_json(self) -> dict[str, Any]:
        """The content of schema.json."""
        return {"attributes": [{"name": a.name, "values": list(a.values)} for a in self.attributes]}

    @classmethod
    def from_json(cls, value: Any, source: str = "schema") -> "Schema":
        """Reads what `to_json` gave; `source` names the file in errors."""
        try:
            return cls(
                tuple(Attribute(str(a["name"]), tuple(a["values"])) for a in value["attributes"])
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f'{source}: expected {{"attributes": [{{"name": ..., "values": [...]}}]}}, '
                f"found: {type(error).__name__} {error}"
            ) from None


def _check_unique(what: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise UserError(f"{what} {position}: expected a name, found an empty string")
        if name in names[:position]:
            raise UserError(f"{what} {name!r} appears twice")
