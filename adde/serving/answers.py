"""Results of a search: items, and how each attribute compares with the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from adde.serving.gallery.base import Fields, Item

Rank = Literal["match", "distance"]


@dataclass(frozen=True)
class Match:
    """One attribute of an answer, compared with the request."""

    value: str | None
    """The answer's value in the catalogue or, if that has none, the predicted one; None if the
    attribute is then likelier absent. Several values are one text: "red, white".
    """
    predicted: bool
    """The catalogue has no label; `value` is predicted."""
    seen: str
    """The predicted value, whatever the catalogue says."""
    wanted: str | None
    """The query's own value (None if the attribute is absent), or the edit: a value, "not black",
    "more red".
    """
    share: float
    """This attribute's share, 0 to 1, of the distance or of the loss of score against a perfect
    answer.
    """
    probability: float | None
    """Probability that the answer matches here; None for an uncalibrated bundle."""
    good: bool
    """Whether `value` is what is wanted."""


@dataclass(frozen=True)
class Answer:
    """An item of the gallery as an answer."""

    item_id: str
    score: float
    """By match: weighted mean of the attributes' probabilities, 0 to 1, averaged as logarithms, so
    that one mismatch counts much. The first answers are ranked with more weight on the edited
    attributes, so a later answer may have a higher score. By distance: 1 - distance / 2, which is
    the cosine of query and item without weights.
    """
    distance: float
    """Sum over attributes of weight x squared subspace distance; 0 to 4 without weights. By
    distance with `weights` or `like`: the weighted mean of squared distances between unit
    subspaces.
    """
    labels: Mapping[str, Any]
    """Labels from the catalogue: a value, a list of values of an attribute of several, or None."""
    fields: Fields
    matches: Mapping[str, Match]
    item: Item = field(repr=False, compare=False)
    """The gallery's item; `read_picture` reads its picture."""

    @property
    def good(self) -> bool:
        """Whether every attribute that the catalogue labels has the wanted value."""
        return all(match.good or match.predicted for match in self.matches.values())


@dataclass(frozen=True)
class Seen:
    """An attribute of the query before the edits."""

    value: str | None
    """The likeliest value; None if the attribute is likelier absent."""
    confidence: float | None
    """Probability of `value`, 1 if known; None for an item of an uncalibrated gallery."""
    known: bool = False
    """Whether the value comes from the catalogue; otherwise it is predicted."""


@dataclass(frozen=True)
class Result(Sequence[Answer]):
    """Answers, best first, and the values sought."""

    answers: tuple[Answer, ...]
    seen: Mapping[str, Seen]
    """Each attribute of the query before the edits."""
    wanted: Mapping[str, str | None]
    """Each attribute after the edits; see `Match.wanted`."""
    rank: Rank
    """How the answers are ranked."""

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Answer, ...]: ...
    def __getitem__(self, index: int | slice) -> Answer | tuple[Answer, ...]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)
