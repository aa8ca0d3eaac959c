"""What requests and answers hold, as OpenAPI describes it."""

from collections.abc import Sized
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from adde.serving import picture_location
from adde.serving.answers import Answer, Rank, Result, Seen
from adde.serving.attribute_edits import More, Not
from adde.serving.gallery.base import Header, Item
from adde.serving.search import MAX_K, MAX_WEIGHT, Request

MOST = 1000
"""Names in one mapping and values in one list of a request."""

MOST_FILTERS = 50


def check_count(value: Any, most: int) -> Any:
    """Refuses a mapping or a list of more, before it is looked into: pydantic counts last, and has
    an error for every part that is wrong and each kind it could have been. A million take minutes.
    """
    found = len(cast(Sized, value)) if isinstance(value, dict | list) else 0
    if found > most:
        raise ValueError(f"expected at most {most:,}, found {found:,}")
    return cast(Any, value)


def at_most(count: int) -> BeforeValidator:
    """`check_count` of a field."""
    return BeforeValidator(lambda value: check_count(value, count))


Text = Annotated[str, Field(max_length=1000)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
Scalar = bool | Number | Text
Scalars = Annotated[list[Scalar], Field(min_length=1, max_length=MOST, fail_fast=True)]
Bounds = Annotated[dict[Literal["min", "max"], Number], Field(min_length=1), at_most(2)]
Condition = Scalar | Scalars | Bounds
Names = at_most(MOST)
Filters = Annotated[dict[Text, Condition], at_most(MOST_FILTERS), Field(max_length=MOST_FILTERS)]


# "1" is no number, and a mistyped name is told instead of left out.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
FILTERS = TypeAdapter[dict[str, Condition]](Filters, config=STRICT)


class _Asked(BaseModel):
    model_config = STRICT

    image: str | None = Field(
        None,
        description="A JPEG, PNG or WebP in base64, or as a data URL.",
        json_schema_extra={"contentEncoding": "base64"},
    )

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        return check_count(value, MOST)


class EmbedBody(_Asked):
    """One picture."""


class NotBody(BaseModel):
    """Any value of the attribute but these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    refused: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST, fail_fast=True)] = (
        Field(alias="not")
    )

    def edit(self) -> Not:
        """As the library has it."""
        return Not(*([self.refused] if isinstance(self.refused, str) else self.refused))


class MoreBody(BaseModel):
    """A share of the way from what the item is to the value."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    more: Text
    amount: float = Field(0.5, gt=0, le=1)

    def edit(self) -> More:
        """As the library has it."""
        return More(self.more, self.amount)


class SearchBody(_Asked):
    """A picture or an item to start from, and what is wanted of the answers."""

    item: Text | None = Field(None, description="Id of an item of the gallery to start from.")
    edits: Annotated[dict[Text, Text | NotBody | MoreBody], Names] = Field(
        {},
        max_length=MOST,
        description='Attribute to new value, to {"not": ...} or {"more": ..., "amount": ...}.',
        examples=[{"colour": "red"}, {"colour": {"not": ["black", "grey"]}}],
    )
    k: int = Field(10, ge=1, le=MAX_K, description="Answers wanted.")
    offset: int = Field(
        0, ge=0, lt=MAX_K, description=f"Answers before the first; with k at most {MAX_K}."
    )
    rank: Rank | None = Field(
        None,
        description="By the probability of a match, or by distance from the edited embedding. If "
        "not given, by match where the bundle is calibrated.",
    )
    must: list[Text] = Field(
        [], max_length=MOST, description="Edited attributes of which answers show the new value."
    )
    weights: Annotated[dict[Text, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]], Names] = Field(
        {}, max_length=MOST, description="Attribute to its weight, 1 if not given."
    )
    like: list[Text] = Field(
        [], max_length=MOST, description="If any, only these attributes count."
    )
    filters: Filters = Field(
        {},
        description="Attribute or field to a value, to several of which one must be had, or to "
        '{"min": ..., "max": ...}; all must hold.',
    )

    def request(self, image: bytes | None) -> Request:
        """As the library has it; the picture is given apart."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in SearchBody.model_fields}
        edits = {n: e if isinstance(e, str) else e.edit() for n, e in self.edits.items()}
        fields |= {"edits": edits, "image": image}
        return Request(**fields)


class SeenBody(BaseModel):
    """An attribute of the query before the edits."""

    value: str | None = Field(
        description="The likeliest value; null where the attribute is likelier not to be there."
    )
    confidence: float | None = Field(
        description="Probability of `value`, 1 where it is known; null where there is none."
    )
    known: bool = Field(description="The catalogue says so; else it is seen.")


class EmbedResult(BaseModel):
    """An embedding (A attributes x D), not normalised, and what is seen in the picture."""

    bundle: str
    embedding: list[list[float]]
    seen: dict[str, SeenBody]


class MatchBody(BaseModel):
    """One attribute of an answer, held against what was asked for."""

    value: str | None = Field(
        description="The answer's value; null where the attribute is likelier not to be there."
    )
    predicted: bool = Field(description="The catalogue does not say: `value` is what is seen.")
    seen: str = Field(description="The likeliest value in the picture.")
    wanted: str | None = Field(description='A value, null for none, "not black" or "more red".')
    share: float = Field(description="Of what separates it from a perfect answer, 0 to 1.")
    probability: float | None = Field(
        description="That it matches here; null where the bundle is not calibrated."
    )
    good: bool = Field(description="`value` is what is wanted.")


class AnswerBody(BaseModel):
    """An item as an answer."""

    item_id: str
    distance: float
    score: float = Field(
        description="By match, 0 to 1, a mean of the probabilities; by distance, 1 - distance / 2."
    )
    labels: dict[str, str | None]
    fields: dict[str, Any]
    matches: dict[str, MatchBody]
    has_picture: bool


class SearchResult(BaseModel):
    """Answers, best first, and what was looked for."""

    bundle: str
    rank: Rank
    seen: dict[str, SeenBody]
    wanted: dict[str, str | None]
    answers: list[AnswerBody]


class ItemBody(BaseModel):
    """An item of the gallery."""

    item_id: str
    labels: dict[str, str | None]
    seen: dict[str, str]
    fields: dict[str, Any]
    has_picture: bool


class ItemsResult(BaseModel):
    """Items of the gallery."""

    items: list[ItemBody]


class AttributeBody(BaseModel):
    """An attribute and its values, in the schema's order."""

    name: str
    values: list[str]


class FieldBody(BaseModel):
    """A field of the items, which answers can be filtered by."""

    name: str
    values: list[bool | int | float | str] = Field(
        description="All there are, where they are few; else none."
    )
    min: float | None = Field(description="Where all values are numbers.")
    max: float | None


class CardsBody(BaseModel):
    """How the page shows items; null where they have no such field."""

    title_field: str | None
    price_field: str | None
    currency: str | None
    link_template: str | None
    category: str | None


class SchemaResult(BaseModel):
    """What can be asked for."""

    bundle: str
    calibrated: bool = Field(description="Answers can be ranked by match, and are by default.")
    attributes: list[AttributeBody]
    fields: list[FieldBody] = Field(description="As they were when the gallery was opened.")
    items: int
    max_bytes: int
    cards: CardsBody


class Health(BaseModel):
    """What the process runs on; `swap` is the outcome of the last one, its reason in the log."""

    status: Literal["ok"]
    version: str
    bundle: str
    providers: list[str]
    items: int
    swap: Literal["none", "done", "failed", "running"]


class Ready(BaseModel):
    """Whether to send requests here."""

    ready: Literal[True]


def seen_json(seen: dict[str, Seen] | Any) -> dict[str, Any]:
    """`SeenBody` of each attribute."""
    return {name: vars(value) for name, value in seen.items()}


def answer_json(header: Header, answer: Answer) -> dict[str, Any]:
    """An `AnswerBody`."""
    return {
        "item_id": answer.item_id,
        "distance": answer.distance,
        "score": answer.score,
        "labels": answer.labels,
        "fields": answer.fields,
        "matches": {name: vars(match) for name, match in answer.matches.items()},
        "has_picture": _has_picture(header, answer.item),
    }


def result_json(header: Header, bundle: str, result: Result) -> dict[str, Any]:
    """A `SearchResult`."""
    return {
        "bundle": bundle,
        "rank": result.rank,
        "seen": seen_json(result.seen),
        "wanted": result.wanted,
        "answers": [answer_json(header, answer) for answer in result],
    }


def item_json(header: Header, item: Item) -> dict[str, Any]:
    """An `ItemBody`."""
    return {
        "item_id": item.item_id,
        "labels": header.schema.decode(item.labels),
        "seen": header.schema.decode(item.predicted),
        "fields": item.fields,
        "has_picture": _has_picture(header, item),
    }


def _has_picture(header: Header, item: Item) -> bool:
    if picture_location.url_origin(header.pictures):
        return True
    return header.pictures is not None and item.place is not None
