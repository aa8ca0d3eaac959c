"""Attributes, their values, and the labels and columns derived from them.

Symbols: A attributes, V_a values of attribute a, V = sum of V_a columns, B items.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, did_you_mean

UNKNOWN = -1
"""Label of an attribute that is unknown or not visible. Never a class."""

COLOUR_WORDS = frozenset({"colour", "colours", "color", "colors", "hue"})
"""Words in an attribute's name that say that its values are colours."""

RESERVED = ("mean",)
"""Names that no attribute may have: metrics.json uses them next to the attributes."""

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
"""Row numbers, such as those of a gallery's items."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attribute:
    """A named attribute and its ordered values."""

    name: str
    values: tuple[str, ...]
    colour: bool = False
    """Whether the values are colours, which augmentation must keep. Not part of the hash: labels
    and columns do not depend on it."""


@dataclass(frozen=True)
class Schema:
    """The ordered attributes of a catalogue.

    The label of value j of attribute a is j; its column in indicators and in the memory is
    `offsets[a] + j`.

    Raises:
        UserError: there are no attributes, a name or value repeats or is empty, a name is
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
        """sha256 of the canonical JSON without marks, stored in shards, checkpoints and bundles."""
        plain = [{"name": a.name, "values": list(a.values)} for a in self.attributes]
        canonical = json.dumps({"attributes": plain}, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def attribute_index(self, name: str) -> int:
        """Return the index of an attribute. Raises UserError with the closest valid names."""
        if name not in self.names:
            raise UserError(f"unknown attribute {name!r}; {did_you_mean(name, self.names)}")
        return self.names.index(name)

    def value_index(self, name: str, value: str) -> int:
        """Return the label of a value. Raises UserError with the closest valid values."""
        values = self.attributes[self.attribute_index(name)].values
        if value not in values:
            raise UserError(
                f"attribute {name!r}: unknown value {value!r}; {did_you_mean(value, values)}"
            )
        return values.index(value)

    def with_colours(self, names: Sequence[str] = ()) -> "Schema":
        """Mark attributes as colours: those in `names`, and those whose own name says so.

        Raises:
            UserError: a name is not in the schema.
        """
        marked = {self.attribute_index(name) for name in names}
        return Schema(
            tuple(
                replace(a, colour=a.colour or number in marked or _says_colour(a.name))
                for number, a in enumerate(self.attributes)
            )
        )

    def encode(self, labels: Mapping[str, str | None]) -> Labels:
        """Encode the labels of one item as (A,) int64; missing attributes and None are UNKNOWN.

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
        """Decode labels (A,) int64 of one item into values by name; UNKNOWN becomes None."""
        return {
            attribute.name: None if label == UNKNOWN else attribute.values[label]
            for attribute, label in zip(self.attributes, labels.tolist())
        }

    def multi_hot(self, labels: Labels) -> Vector:
        """Encode labels (B, A) int64 as (B, V) float32 with 1 in the column of each known value."""
        rows, attributes = np.nonzero(labels != UNKNOWN)
        hot = np.zeros((len(labels), self.num_values), dtype=np.float32)
        hot[rows, np.asarray(self.offsets)[attributes] + labels[rows, attributes]] = 1.0
        return hot

    def indicator(self, labels: Labels, targets: Labels) -> Vector:
        """Return the (B, V) float32 edit from `labels` to `targets`, both (B, A) int64.

        It is -1 at the removed value and +1 at the new one (equation 5). An UNKNOWN label has no
        value to remove. Attributes with equal labels are 0.
        """
        return self.multi_hot(targets) - self.multi_hot(labels)

    def require_same(self, other: "Schema", mine: str, theirs: str) -> None:
        """Raise UserError if the schemas differ, with both hashes and the first difference."""
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
        """Return the content of schema.json; marks are written only if they are set."""
        return {
            "attributes": [
                {"name": a.name, "values": list(a.values), **({"colour": True} if a.colour else {})}
                for a in self.attributes
            ]
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "schema") -> "Schema":
        """Read the output of `to_json`; `source` names the file in errors."""
        try:
            return cls(
                tuple(
                    Attribute(str(a["name"]), tuple(a["values"]), bool(a.get("colour", False)))
                    for a in value["attributes"]
                )
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f'{source}: expected {{"attributes": [{{"name": ..., "values": [...]}}]}}, '
                f"found: {type(error).__name__} {error}"
            ) from None


def _says_colour(name: str) -> bool:
    return not COLOUR_WORDS.isdisjoint(re.split("[^a-z]+", name.lower()))


def _check_unique(what: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise UserError(f"{what} {position}: expected a name, found an empty string")
        if name in names[:position]:
            raise UserError(f"{what} {name!r} appears twice")
