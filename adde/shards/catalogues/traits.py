"""Columns of few values that are no traits of an item all the same: ids, prices, dates, files."""

import re
from collections.abc import Sequence

from adde.shards.catalogues.splits import words

CURRENCY = "[€$£¥]|EUR|USD|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|CAD|AUD|BRL|RUB|TRY|KRW"

SHAPES = {
    "names of pictures": re.compile(r"\S.*\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?.*)?", re.I),
    "links": re.compile(r"\w+://.*"),
    "dates": re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,2}[./-]\d{1,2}[./-](\d\d)?\d\d\b.*"),
    # Not 1.0, which is how whole numbers are written beside a NaN.
    "numbers with a fraction, such as prices": re.compile(
        rf"({CURRENCY})?\s?[+-]?\d[\d.,' ]*[.,](?!0$)\d+\s?({CURRENCY})?"
        rf"|({CURRENCY})\s?\d+|\d+\s?({CURRENCY})"
    ),
}
"""What most of a column's different cells may be."""

NAMES = {
    "ids": {"id", "ids", "sku", "skus", "ean", "gtin", "upc", "asin", "isbn", "mpn", "barcode"}
    | {"uuid", "guid", "index"},
    "prices": {"price", "prices", "cost", "costs", "msrp", "rrp", "preis", "prix", "precio"},
    "files": {"image", "images", "img", "picture", "photo", "filename", "file", "path"}
    | {"url", "link"},
}
"""What a word in a column's name says of its cells."""


def no_trait(name: str, cells: Sequence[str]) -> str | None:
    """What a column holds, by its cells or its name, that no picture shows; None where it may be
    a trait. An odd cell among many changes nothing.
    """
    filled = set(cells) - {""}
    for kind, shape in SHAPES.items():
        like = sorted(cell for cell in filled if shape.fullmatch(cell))
        if like and 2 * len(like) >= len(filled):
            return f"{kind} ({like[0]!r}); --attributes names it to learn it all the same"
    for kind, said in NAMES.items():
        if said.intersection(words(name)):
            return f"{kind}, as its name says; --attributes names it to learn it all the same"
    return None
