"""What a search answers: items, and how each of their attributes compares with what was asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from adde.schema import UNKNOWN, Schema
from adde.serving.gallery.base import Fields, Item

Rank = Literal["match", "distance"]


@dataclass(frozen=True)
class Match:
    """One attribute of an answer, compared with what was asked for."""

    value: str | None
    """The answer's value as the catalogue has it, or as it is seen where the catalogue does not
    say; None where the attribute is then likelier not to be there at all.
    """
    predicted: bool
    """The catalogue does not say; `value` is what is seen."""
    seen: str
    """The likeliest value in the answer's picture, whatever the catalogue says."""
    wanted: str | None
    """What is seen or known of the query, None where the attribute is not there; or the edit:
    a value, "not black", "more red".
    """
    share: float
    """Share of what separates the answer from a perfect one, 0 to 1: of the distance, or of what
    the score lacks.
    """
    probability: float | None
    """That the answer matches here, 0 to 1; None where the bundle is not calibrated."""
    good: bool
    """`value` is what is wanted."""


@dataclass(frozen=True)
class Answer:
    """One item of the gallery as an answer."""

    item_id: str
    score: float
    """By match, 0 to 1: the mean of the attributes' probabilities, weighted, and averaged as
    logarithms, so that one attribute that does not match counts much. The first answers have the
    edited values before all else, so that a later one may have a higher score. By distance,
    1 - distance / 2: where no weights are given, the cosine of query and item.
    """
    distance: float
    """Sum over attributes of weight x squared distance in the subspace; 0 to 4 without weights.
    By distance with `like`, the weighted mean of squared distances of unit subspaces.
    """
    labels: Mapping[str, str | None]
    """As the catalogue has them; None where it does not say."""
    fields: Fields
    matches: Mapping[str, Match]
    item: Item = field(repr=False, compare=False)
    """As the gallery has it; `read_picture` leads to its picture."""

    @property
    def good(self) -> bool:
        """Every attribute that the catalogue knows of the answer has the wanted value."""
        return all(match.good or match.predicted for match in self.matches.values())


@dataclass(frozen=True)
class Seen:
    """An attribute of the query before the edits."""

    value: str | None
    """The likeliest value; None where the attribute is likelier not to be there."""
    confidence: float | None
    """The probability of `value`, 1 where it is known; None where the gallery of an uncalibrated
    bundle does not say.
    """
    known: bool = False
    """The catalogue says so; else it is seen."""


@dataclass(frozen=True)
class Result(Sequence[Answer]):
    """Answers, best first, and what was looked for."""

    answers: tuple[Answer, ...]
    seen: Mapping[str, Seen]
    """Each attribute of the query before the edits."""
    wanted: Mapping[str, str | None]
    """Each attribute after the edits; see `Match.wanted`."""
    rank: Rank
    """What the answers are in the order of."""

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Answer, ...]: ...
    def __getitem__(self, index: int | slice) -> Answer | tuple[Answer, ...]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)


def value_of(schema: Schema, attribute: int, label: int) -> str | None:
    """A value's name; None of UNKNOWN."""
    return None if label == UNKNOWN else schema.attributes[attribute].values[label]
