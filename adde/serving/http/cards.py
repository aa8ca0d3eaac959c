"""What the shopper's page shows of an item: name, price, a link to the shop; and categories."""

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
"""Names that are taken where none is given and the gallery has one of them."""


@dataclass(frozen=True, kw_only=True)
class Cards:
    """How the page shows items; every field is a flag of serve_onnx/server.py.

    Raises:
        UserError: the template or the currency is none.
    """

    title_field: str | None = None
    """Field that is an item's name; `title` or `name` where items have one, else their id."""
    price_field: str | None = None
    """Field that is an item's price; `price` where items have one."""
    currency: str | None = None
    """Of prices, as ISO 4217 has it: EUR."""
    link_template: str | None = None
    """Where an item is sold: https://shop.example/p/{item_id}, or {url}, which is a field."""
    category: str | None = None
    """Attribute or field by which the start page is divided; `category` or the like, else the
    first attribute."""

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
                "--link-template: expected an address with {item_id} or the name of a field in it, "
                f"such as https://shop.example/p/{{item_id}}, found {template!r}"
            )

    def _names(self) -> list[str]:
        """Of what the template is filled with; none where it is not well formed."""
        try:
            found = [*string.Formatter().parse(self.link_template or "")]
        except ValueError:
            return []
        plain = all(name != "" and not spec and not how for _, name, spec, how in found)
        return [name for _, name, _, _ in found if name is not None] if plain else []

    def of(self, schema: Schema, facets: Sequence[Facet], items: int) -> "Cards":
        """The same with the usual names where none is given and the items have them.

        Args:
            schema: of the gallery.
            facets: of its items.
            items: how many there are; with none, any name may come to be theirs.

        Raises:
            UserError: a name that is given is none of theirs.
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
