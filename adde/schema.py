"""Attributes, their values, and the labels and columns derived from them.

A label is one int64: the index of the value, or UNKNOWN. An attribute that is marked `multiple` may
have several values at once, as a striped red and white shirt has two colours. The label of such a
set is SEVERAL plus its bit mask, so a set of one value and that value have the same label, equal
sets have equal labels, and every label says by itself which values it shows.

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
SEVERAL = 1 << 62
"""Added to the bit mask of a label of two or more values; larger than every other label."""

MAX_MULTIPLE = 62
"""Maximum number of values of an attribute that is marked `multiple`."""

MARKS = ("multiple", "colour")
"""Optional marks of an attribute, by their names in schema.json."""

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
    multiple: bool = False
    """Whether an item may have several values at once."""
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
            reserved, or an attribute has fewer than two values, or is `multiple` and has more
            than MAX_MULTIPLE.
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
            if attribute.multiple and len(attribute.values) > MAX_MULTIPLE:
                raise UserError(
                    f"attribute {attribute.name!r}: expected at most {MAX_MULTIPLE} values, as an "
                    f"item may have several, found {len(attribute.values)}; merge rare values, or "
                    "allow one value per item only"
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

    @cached_property
    def multiple(self) -> tuple[int, ...]:
        """Indices of the attributes of which an item may have several values."""
        return tuple(a for a, attribute in enumerate(self.attributes) if attribute.multiple)

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
        """sha256 of the canonical JSON, stored in shards, checkpoints and bundles.

        Marks of colours are left out, because no label depends on them.
        """
        plain = Schema(tuple(replace(a, colour=False) for a in self.attributes)).to_json()
        canonical = json.dumps(plain, separators=(",", ":"), ensure_ascii=True)
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

    def encode(self, labels: Mapping[str, str | Sequence[str] | None]) -> Labels:
        """Encode the labels of one item as (A,) int64; missing attributes and None are UNKNOWN.

        A label is a value or, if the attribute is `multiple`, a list of values.

        Raises:
            UserError: an attribute or value is not in the schema, or an attribute has a list of
                values where the schema allows one.
        """
        encoded = [UNKNOWN] * len(self.attributes)
        for name, value in labels.items():
            index = self.attribute_index(name)
            if isinstance(value, str):
                encoded[index] = self.value_index(name, value)
            elif value is not None:
                if not self.attributes[index].multiple:
                    raise UserError(
                        f"attribute {name!r}: expected one value, found the list {list(value)}; "
                        "keep one of them, or mark the attribute as one of several values"
                    )
                encoded[index] = label_of([self.value_index(name, each) for each in value])
        return np.array(encoded, dtype=np.int64)

    def decode(self, labels: Labels) -> dict[str, Any]:
        """Decode labels (A,) int64 of one item by name; UNKNOWN becomes None.

        Others become a value or, if the attribute is `multiple`, a list of values.
        """
        found: dict[str, Any] = {}
        for attribute, label in zip(self.attributes, labels.tolist()):
            shown = [attribute.values[value] for value in values_of(label)]
            found[attribute.name] = (shown if attribute.multiple else shown[0]) if shown else None
        return found

    def text(self, attribute: int, label: int) -> str | None:
        """Return the values of a label for display, such as "red, white"; None for UNKNOWN."""
        values = self.attributes[attribute].values
        return ", ".join(values[value] for value in values_of(label)) or None

    def is_label(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Return (B, A) bool: whether labels (B, A) int64 are labels of their attributes."""
        sizes = np.array(self.sizes)
        valid = (labels >= UNKNOWN) & (labels < sizes)
        for a in self.multiple:
            masks = labels[:, a] - SEVERAL
            valid[:, a] |= (masks > 0) & (masks < 1 << sizes[a]) & (masks & (masks - 1) > 0)
        return valid

    def multi_hot(self, labels: Labels) -> Vector:
        """Encode labels (B, A) int64 as (B, V) float32 with 1 in the column of each known value.

        A set of n values has 1 / n in the column of each.
        """
        rows, attributes = np.nonzero((labels != UNKNOWN) & (labels < SEVERAL))
        hot = np.zeros((len(labels), self.num_values), dtype=np.float32)
        hot[rows, np.asarray(self.offsets)[attributes] + labels[rows, attributes]] = 1.0
        for a in self.multiple:
            part = slice(self.offsets[a], self.offsets[a] + self.sizes[a])
            hot[:, part] = shares(labels[:, a], np.arange(self.sizes[a]))
        return hot

    def indicator(self, labels: Labels, targets: Labels) -> Vector:
        """Return the (B, V) float32 edit from `labels` to `targets`, both (B, A) int64.

        It is -1 at the removed value and +1 at the new one (equation 5). An UNKNOWN label has no
        value to remove. Attributes with equal labels are 0.
        """
        return self.multi_hot(targets) - self.multi_hot(labels)

    def require_single_values(self, what: str) -> None:
        """Raise UserError if an item may have several values, of which `what` knows nothing."""
        if self.multiple:
            raise UserError(
                f"{what}: expected attributes of one value per item, found "
                f"{self.names[self.multiple[0]]!r}, which may have several; build the shards "
                "without --multiple"
            )

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
            if mine.multiple != theirs.multiple:
                allowed = ("one value", "several values")
                return (
                    f"{mine.name!r} allows {allowed[mine.multiple]} and {allowed[theirs.multiple]}"
                )
        return "none"

    def to_json(self) -> dict[str, Any]:
        """Return the content of schema.json; marks are written only if they are set."""
        return {
            "attributes": [
                {
                    "name": a.name,
                    "values": list(a.values),
                    **{mark: True for mark in MARKS if getattr(a, mark)},
                }
                for a in self.attributes
            ]
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "schema") -> "Schema":
        """Read the output of `to_json`; `source` names the file in errors."""
        try:
            return cls(
                tuple(
                    Attribute(
                        str(a["name"]),
                        tuple(a["values"]),
                        **{mark: bool(a.get(mark, False)) for mark in MARKS},
                    )
                    for a in value["attributes"]
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{source}: expected {{"attributes": [{{"name": ..., "values": [...]}}]}}, '
                f"found: {type(error).__name__} {error}"
            ) from None


def _says_colour(name: str) -> bool:
    return not COLOUR_WORDS.isdisjoint(re.split("[^a-z]+", name.lower()))


def label_of(values: Sequence[int]) -> int:
    """Return the label of a set of value indices; UNKNOWN if it is empty."""
    distinct = set(values)
    if len(distinct) > 1:
        return SEVERAL + sum(1 << value for value in distinct)
    return distinct.pop() if distinct else UNKNOWN


def labels_of(members: npt.NDArray[np.bool_]) -> Labels:
    """Return the labels (B,) of sets of values, given as (B, V_a) bool."""
    count = members.sum(axis=1)
    masks: Labels = members @ np.array([1 << value for value in range(members.shape[1])], np.int64)
    single = np.where(count == 1, members.argmax(axis=1), UNKNOWN)
    return np.where(count > 1, SEVERAL + masks, single)


def values_of(label: int) -> list[int]:
    """Return the value indices of a label, ascending; none for UNKNOWN."""
    if label >= SEVERAL:
        return [value for value in range(MAX_MULTIPLE) if label >> value & 1]
    return [] if label == UNKNOWN else [label]


def value_bits(labels: Any) -> Any:
    """Return int64 bit masks of the values of labels, 0 for UNKNOWN.

    `labels` is an int64 array of numpy or torch; values must be below MAX_MULTIPLE.
    """
    several = labels >= SEVERAL
    single = (labels != UNKNOWN) & ~several
    return several * (labels - SEVERAL) + single * (1 << labels.clip(0, MAX_MULTIPLE - 1))


def shares(labels: Any, values: Any) -> Any:
    """Spread the labels (B,) of one attribute over its values: (B, V_a), rows of sum 1.

    A set of n values has 1 / n at each; UNKNOWN has zeros. `values` is the range 0 to V_a - 1, of
    numpy or torch as `labels` is.
    """
    hot = value_bits(labels)[:, None] >> values & 1
    return hot / hot.sum(1).clip(1)[:, None]


def shows(labels: Any, values: Any) -> Any:
    """Return whether labels, elementwise, have a value: equal to it, or a set that holds it.

    Labels of numpy or torch; `values` are single values, and UNKNOWN equals only UNKNOWN.
    """
    single = (values != UNKNOWN) & (values < MAX_MULTIPLE)
    held = labels >> values.clip(0, MAX_MULTIPLE - 1) & 1 == 1
    return (labels == values) | ((labels >= SEVERAL) & single & held)


def dense_labels(labels: Labels) -> Labels:
    """Replace the labels of attributes with sets by numbers from 0: (B, A) int64.

    Equal labels of an attribute get equal numbers, and UNKNOWN stays. Labels without sets are
    returned as they are.
    """
    columns = np.flatnonzero((labels >= SEVERAL).any(axis=0))
    if len(columns):
        labels = labels.copy()
    for a in columns:
        known = labels[:, a] != UNKNOWN
        labels[known, a] = np.unique(labels[known, a], return_inverse=True)[1]
    return labels


def _check_unique(what: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise UserError(f"{what} {position}: expected a name, found an empty string")
        if name in names[:position]:
            raise UserError(f"{what} {name!r} appears twice")
