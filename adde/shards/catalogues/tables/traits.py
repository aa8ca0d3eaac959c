"""Recognise columns that have few values but show nothing of an item: ids, prices, dates, files."""

import re
from collections.abc import Sequence

from adde.shards.catalogues.tables.splits import words

CURRENCY = "[€$£¥]|EUR|USD|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|CAD|AUD|BRL|RUB|TRY|KRW"

SHAPES = {
    "names of pictures": re.compile(r"\S.*\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?.*)?", re.I),
    "links": re.compile(r"\w+://.*"),
    "dates": re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,2}[./-]\d{1,2}[./-](\d\d)?\d\d\b.*"),
    # Except 1.0, the form of whole numbers in a column with NaN.
    "numbers with a fraction, such as prices": re.compile(
        rf"({CURRENCY})?\s?[+-]?\d[\d.,' ]*[.,](?!0$)\d+\s?({CURRENCY})?"
        rf"|({CURRENCY})\s?\d+|\d+\s?({CURRENCY})"
    ),
}
"""Patterns of the cells of such a column."""

NAMES = {
    "ids": {"id", "ids", "sku", "skus", "ean", "gtin", "upc", "asin", "isbn", "mpn", "barcode"}
    | {"uuid", "guid", "index"},
    "prices": {"price", "prices", "cost", "costs", "msrp", "rrp", "preis", "prix", "precio"},
    "files": {"image", "images", "img", "picture", "photo", "filename", "file", "path"}
    | {"url", "link"},
}
"""Words in the name of such a column."""


def no_trait(name: str, cells: Sequence[str]) -> str | None:
    """Return why a column is not visible in pictures, by its cells or name; None if it may be.

    Half of the distinct cells must match a pattern, so a few odd cells change nothing.
    """
    filled = set(cells) - {""}
    for kind, shape in SHAPES.items():
        like = sorted(cell for cell in filled if shape.fullmatch(cell))
        if like and 2 * len(like) >= len(filled):
            return f"{kind} ({like[0]!r}); name it with --attributes to learn it anyway"
    for kind, known in NAMES.items():
        if known.intersection(words(name)):
            return f"{kind}, as its name says; name it with --attributes to learn it anyway"
    return None
