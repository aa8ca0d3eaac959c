"""How the page is configured to show items."""

import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.serving.gallery.facets import Facet
from adde.serving.http.cards import Cards

SCHEMA = Schema((Attribute("colour", ("red", "blue")), Attribute("type", ("a", "b"))))


def facets(*names):
    return [Facet(name, (), None, None) for name in names]


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ({}, (), (None, None, "type")),
        ({}, ("name", "price", "title", "category"), ("title", "price", "category")),
        ({"title_field": "label", "category": "colour"}, ("label",), ("label", None, "colour")),
    ],
)
def test_default_names_are_used_if_none_is_given(given, names, expected):
    found = Cards(**given).of(SCHEMA, facets(*names), items=1)
    assert (found.title_field, found.price_field, found.category) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"title_field": "titel"}, "--title-field: no item has 'titel'; did you mean 'title'"),
        ({"price_field": "colour"}, "--price-field: no item has 'colour'; valid: 'title'"),
        ({"category": "kolour"}, "--category: no item has 'kolour'; did you mean 'colour'"),
        ({"link_template": "/{urll}"}, "--link-template: no item has 'urll'; valid: 'item_id', "),
    ],
)
def test_names_that_no_item_has_are_reported(given, message):
    with pytest.raises(UserError, match=message):
        Cards(**given).of(SCHEMA, facets("title"), items=1)
    assert Cards(**given).of(SCHEMA, [], items=0)  # items may be added later


@pytest.mark.parametrize("text", ["{}", "shop/{item_id}", "https://x/", "https://x/{", "{a!r}"])
@pytest.mark.parametrize("scheme", ["", "javascript:"])
def test_malformed_templates_are_reported(scheme, text):
    with pytest.raises(UserError, match="--link-template: expected a URL"):
        Cards(link_template=scheme + text)


def test_a_currency_is_three_capital_letters():
    with pytest.raises(UserError, match="--currency: expected three capitals, such as EUR"):
        Cards(currency="€")
