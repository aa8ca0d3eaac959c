"""Request bodies, as OpenAPI describes them."""

from collections.abc import Sized
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from adde.serving.answers import Rank
from adde.serving.attribute_edits import Edit, More, Not
from adde.serving.outfits import MOST_ITEMS
from adde.serving.search import MAX_K, MAX_WEIGHT, Request

MOST = 1000
"""Maximum names in a mapping and values in a list."""

MOST_FILTERS = 50


def check_count(value: Any, most: int) -> Any:
    """Reject too large a mapping or list before pydantic looks into it.

    pydantic checks lengths last and collects errors of every part first; a million take minutes.
    """
    found = len(cast(Sized, value)) if isinstance(value, dict | list) else 0
    if found > most:
        raise ValueError(f"expected at most {most:,}, found {found:,}")
    return cast(Any, value)


def at_most(count: int) -> BeforeValidator:
    """Apply `check_count` to a field."""
    return BeforeValidator(lambda value: check_count(value, count))


Text = Annotated[str, Field(max_length=1000)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
Scalar = bool | Number | Text
Scalars = Annotated[list[Scalar], Field(min_length=1, max_length=MOST, fail_fast=True)]
Bounds = Annotated[dict[Literal["min", "max"], Number], Field(min_length=1), at_most(2)]
Condition = Scalar | Scalars | Bounds
Names = at_most(MOST)
Filters = Annotated[dict[Text, Condition], at_most(MOST_FILTERS), Field(max_length=MOST_FILTERS)]


# "1" is not a number, and an unknown name is an error.
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
    """A picture to embed."""


class NotBody(BaseModel):
    """Any value of the attribute except these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    excluded: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST, fail_fast=True)] = (
        Field(alias="not")
    )

    def edit(self) -> Not:
        """Convert to the library's type."""
        return Not(*([self.excluded] if isinstance(self.excluded, str) else self.excluded))


class MoreBody(BaseModel):
    """Move part of the way from the item's value to this one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    more: Text
    amount: float = Field(0.5, gt=0, le=1)

    def edit(self) -> More:
        """Convert to the library's type."""
        return More(self.more, self.amount)


class CompleteBody(_Asked):
    """An outfit as it is, and the category of the item that it lacks."""

    items: list[Text] = Field(
        [], max_length=MOST_ITEMS, description="Ids of gallery items that are there already."
    )
    category: Text = Field(description="Value of the bundle's category attribute to complete.")
    k: int = Field(10, ge=1, le=MAX_K, description="Maximum number of answers.")
    filters: Filters = Field({}, description="As in /v1/search.")


class _Edited(_Asked):
    item: Text | None = Field(None, description="Id of a gallery item to start from.")
    edits: Annotated[dict[Text, Text | NotBody | MoreBody], Names] = Field(
        {},
        max_length=MOST,
        description='Attribute to new value, to {"not": ...} or {"more": ..., "amount": ...}.',
        examples=[{"colour": "red"}, {"colour": {"not": ["black", "grey"]}}],
    )

    def made_edits(self) -> dict[str, Edit]:
        """Convert the edits to the library's types."""
        return {n: e if isinstance(e, str) else e.edit() for n, e in self.edits.items()}


class DrawBody(_Edited):
    """A picture or item to start from, and what should be drawn otherwise."""


class SearchBody(_Edited):
    """A picture or item to start from, and what the answers should have."""

    k: int = Field(10, ge=1, le=MAX_K, description="Maximum number of answers.")
    offset: int = Field(
        0, ge=0, lt=MAX_K, description=f"Answers to skip; offset + k is at most {MAX_K}."
    )
    rank: Rank | None = Field(
        None,
        description="By match probability, or by distance from the edited embedding. Default: by "
        "match if the bundle is calibrated.",
    )
    must: list[Text] = Field(
        [], max_length=MOST, description="Edited attributes whose new value every answer must show."
    )
    weights: Annotated[dict[Text, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]], Names] = Field(
        {}, max_length=MOST, description="Attribute to its weight; default 1."
    )
    like: list[Text] = Field(
        [], max_length=MOST, description="If given, only these attributes count."
    )
    filters: Filters = Field(
        {},
        description="Attribute or field to a value, to a list of alternatives, or to "
        '{"min": ..., "max": ...}; all must hold.',
    )

    def request(self, image: bytes | None) -> Request:
        """Convert to the library's type; the picture is passed separately."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in SearchBody.model_fields}
        fields |= {"edits": self.made_edits(), "image": image}
        return Request(**fields)
