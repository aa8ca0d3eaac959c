"""Locations of items' pictures: a folder of shards, or a URL template with the item's id.

gallery.json stores the folder relative to the gallery, so that both can be moved, copied or mounted
together. In memory it is absolute.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

from adde.errors import UserError

ITEM_ID = "{item_id}"
ADDRESS = re.compile(r"(?P<origin>https?://[\w.:\[\]-]+)/[!#$%&(-;=?-Z_a-~{}]*", re.ASCII)
"""A URL template. The characters are limited to those that are safe in a header or a content
security policy.
"""


def parse_option(text: str) -> str:
    """Parse `--pictures`: return an absolute folder, or a URL template.

    Raises:
        UserError: it is neither.
    """
    if ADDRESS.fullmatch(text) and ITEM_ID in text:
        return text
    folder = Path(text)
    if "://" in text or not folder.is_dir():
        raise UserError(
            "--pictures: expected the folder of the shards, or a URL with the item's id such "
            f"as https://cdn.example/{ITEM_ID}.jpg, found {text!r}"
        )
    return str(folder.resolve())


def url_origin(pictures: str | None) -> str | None:
    """Return scheme and host of a URL template; None for a folder."""
    found = ADDRESS.fullmatch(pictures or "")
    return found and found["origin"]


def picture_url(pictures: str, item_id: str) -> str:
    """Fill a URL template with an item's id."""
    return pictures.replace(ITEM_ID, quote(item_id, safe=""))


def relative_to(pictures: str | None, gallery: Path) -> str | None:
    """Convert to the form in gallery.json."""
    if pictures is None or url_origin(pictures):
        return pictures
    return os.path.relpath(pictures, gallery.resolve())


def resolve(pictures: str | None, gallery: Path) -> str | None:
    """Convert from the form in gallery.json; old galleries have an absolute path."""
    if pictures is None or url_origin(pictures):
        return pictures
    return os.path.normpath(gallery.resolve() / pictures)
