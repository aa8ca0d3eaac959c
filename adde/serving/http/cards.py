"""How the shopper's page shows items: title, price, link to the shop, and categories."""

import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adde.errors import UserError, did_you_mean
from adde.schema import Schema
from adde.serving.gallery.facets import Facet

USUAL = {
    "title_field": ("title", "name"),
    "price_field": ("price",),
    "category": ("category", "subcategory", "product_type", "type", "kind", "department"),
}
"""Field names to use by default, if the gallery has them."""


@dataclass(frozen=True, kw_only=True)
class Cards:
    """How the page shows items; every field is a flag of serve_onnx/server.py.

    Raises:
        UserError: the link template or the currency is malformed.
    """

    title_field: str | None = None
    """Field with an item's title; default `title` or `name`, otherwise the id is shown."""
    price_field: str | None = None
    """Field with an item's price; default `price`."""
    currency: str | None = None
    """Currency of prices as an ISO 4217 code: EUR."""
    link_template: str | None = None
    """URL of an item in the shop: https://shop.example/p/{item_id}, or {url} for a field."""
    category: str | None = None
    """Attribute or field that groups the start page; default `category` or the like, otherwise the
    first attribute.
    """

    def __post_init__(self) -> None:
        if self.currency is not None and not re.fullmatch("[A-Z]{3}", self.currency):
            raise UserError(
                f"--currency: expected three capitals, such as EUR, found {self.currency}"
            )
        template = self.link_template
        if template is None:
            return
        if not re.match(r"https?://|/|\{", template) or not self._names():
            raise UserError(
                "--link-template: expected a URL with {item_id} or a field's name in braces, "
                f"such as https://shop.example/p/{{item_id}}, found {template!r}"
            )

    def _names(self) -> list[str]:
        """Names used in the template; empty if it is malformed."""
        try:
            found = [*string.Formatter().parse(self.link_template or "")]
        except ValueError:
            return []
        plain = all(name != "" and not spec and not how for _, name, spec, how in found)
        return [name for _, name, _, _ in found if name is not None] if plain else []

    def of(self, schema: Schema, facets: Sequence[Facet], items: int) -> "Cards":
        """Fill in default names that the items have.

        Args:
            schema: the gallery's schema.
            facets: facets of its items.
            items: number of items; in an empty gallery any name is accepted.

        Raises:
            UserError: the items do not have a name that was given.
        """
        fields = [facet.name for facet in facets]
        known = dict.fromkeys(USUAL, fields) | {"category": [*schema.names, *fields]}
        for name in USUAL:
            if items and (given := getattr(self, name)) is not None:
                _require(given, known[name], name.replace("_", "-"))
        for name in self._names():
            if items:
                _require(name, ["item_id", *fields], "link-template")
        found = {n: next(filter(known[n].__contains__, names), None) for n, names in USUAL.items()}
        found["category"] = found["category"] or schema.names[0]
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return Cards(**{**found, **chosen})


def _require(name: str, known: Sequence[str], flag: str) -> None:
    if name not in known:
        have = did_you_mean(name, known) if known else "they have no fields"
        raise UserError(f"--{flag}: no item has {name!r}; {have}")
