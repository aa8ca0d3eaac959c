"""Response bodies, as OpenAPI describes them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from adde.serving import picture_location
from adde.serving.answers import Answer, Rank, Result, Seen
from adde.serving.drawing import Drawing
from adde.serving.gallery.base import Header, Item
from adde.serving.outfits import Fitting

Labels = Annotated[
    dict[str, str | list[str] | None],
    Field(description="A value, a list of values of an attribute of several, or null."),
]


class SeenBody(BaseModel):
    """An attribute of the query before the edits."""

    value: str | None = Field(
        description="The likeliest value; null if the attribute is likelier absent."
    )
    confidence: float | None = Field(
        description="Probability of `value`, 1 if known; null if not available."
    )
    known: bool = Field(description="`value` comes from the catalogue; otherwise it is predicted.")


class EmbedResult(BaseModel):
    """An embedding (A attributes x D), not normalised, and the attributes predicted from the
    picture.
    """

    bundle: str
    embedding: list[list[float]]
    seen: dict[str, SeenBody]


class MatchBody(BaseModel):
    """One attribute of an answer, compared with the request."""

    value: str | None = Field(
        description="The answer's value; null if the attribute is likelier absent."
    )
    predicted: bool = Field(description="The catalogue has no label; `value` is predicted.")
    seen: str = Field(description="The value predicted from the picture.")
    wanted: str | None = Field(description='A value, null for absence, "not black" or "more red".')
    share: float = Field(
        description="This attribute's share, 0 to 1, of the gap to a perfect answer."
    )
    probability: float | None = Field(
        description="Probability of a match here; null for an uncalibrated bundle."
    )
    good: bool = Field(description="`value` is what is wanted.")


class AnswerBody(BaseModel):
    """An item as an answer."""

    item_id: str
    distance: float
    score: float = Field(
        description="By match: a mean of the probabilities, 0 to 1; by distance: 1 - distance / 2."
    )
    labels: Labels
    fields: dict[str, Any]
    matches: dict[str, MatchBody]
    has_picture: bool


class SearchResult(BaseModel):
    """Answers, best first, and the values sought."""

    bundle: str
    rank: Rank
    seen: dict[str, SeenBody]
    wanted: dict[str, str | None]
    answers: list[AnswerBody]


class FittingBody(BaseModel):
    """An item that goes with an outfit."""

    item_id: str
    score: float = Field(description="How well it goes with the outfit; larger is better.")
    labels: Labels
    fields: dict[str, Any]
    has_picture: bool


class CompleteResult(BaseModel):
    """Items of the category, best first."""

    bundle: str
    answers: list[FittingBody]


class DrawResult(BaseModel):
    """A picture drawn by a model."""

    bundle: str
    synthetic: Literal[True] = Field(description="A model drew the picture; it is no photograph.")
    seen: dict[str, SeenBody]
    wanted: dict[str, str | None]
    picture: str = Field(
        description="PNG in base64.", json_schema_extra={"contentEncoding": "base64"}
    )


class ItemBody(BaseModel):
    """An item of the gallery."""

    item_id: str
    labels: Labels
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
    multiple: bool = Field(description="An item may have several values.")


class FieldBody(BaseModel):
    """A field of the items, for filters."""

    name: str
    values: list[bool | int | float | str] = Field(
        description="All values if they are few; otherwise empty."
    )
    min: float | None = Field(description="Minimum, if all values are numbers.")
    max: float | None


class CardsBody(BaseModel):
    """How the page shows items; null if there is no such field."""

    title_field: str | None
    price_field: str | None
    currency: str | None
    link_template: str | None
    category: str | None


class SchemaResult(BaseModel):
    """The attributes and fields that requests may use."""

    bundle: str
    outfits: str | None = Field(
        description="Attribute whose values /v1/complete completes; null if the bundle cannot."
    )
    draws: bool = Field(description="The bundle can answer /v1/draw.")
    calibrated: bool = Field(description="Answers can be, and by default are, ranked by match.")
    attributes: list[AttributeBody]
    fields: list[FieldBody] = Field(description="Fields when the gallery was opened.")
    items: int
    max_bytes: int
    cards: CardsBody


class Health(BaseModel):
    """State of the process; `swap` is the outcome of the last hot swap, explained in the log."""

    status: Literal["ok"]
    version: str
    bundle: str
    providers: list[str]
    items: int
    swap: Literal["none", "done", "failed", "running"]


class Ready(BaseModel):
    """The server accepts requests."""

    ready: Literal[True]


def seen_json(seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Make a `SeenBody` per attribute."""
    return {name: vars(value) for name, value in seen.items()}


def answer_json(header: Header, answer: Answer) -> dict[str, Any]:
    """Make an `AnswerBody`."""
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
    """Make a `SearchResult`."""
    return {
        "bundle": bundle,
        "rank": result.rank,
        "seen": seen_json(result.seen),
        "wanted": result.wanted,
        "answers": [answer_json(header, answer) for answer in result],
    }


def complete_json(header: Header, bundle: str, found: Sequence[Fitting]) -> dict[str, Any]:
    """Build a `CompleteResult`."""
    answers = [
        {
            "item_id": fitting.item_id,
            "score": fitting.score,
            "labels": fitting.labels,
            "fields": fitting.fields,
            "has_picture": _has_picture(header, fitting.item),
        }
        for fitting in found
    ]
    return {"bundle": bundle, "answers": answers}


def drawing_json(drawing: Drawing) -> dict[str, Any]:
    """Make a `DrawResult`."""
    return {
        "bundle": drawing.bundle,
        "synthetic": True,
        "seen": seen_json(drawing.seen),
        "wanted": dict(drawing.wanted),
        "picture": base64.b64encode(drawing.png()).decode(),
    }


def item_json(header: Header, item: Item) -> dict[str, Any]:
    """Make an `ItemBody`."""
    return {
        "item_id": item.item_id,
        "labels": header.schema.decode(item.labels),
        "seen": {
            name: header.schema.text(a, label)
            for a, (name, label) in enumerate(zip(header.schema.names, item.predicted.tolist()))
        },
        "fields": item.fields,
        "has_picture": _has_picture(header, item),
    }


def _has_picture(header: Header, item: Item) -> bool:
    if picture_location.url_origin(header.pictures):
        return True
    return header.pictures is not None and item.place is not None
