"""Where items' pictures lie: in a folder of shards, or at addresses that follow from their ids.

gallery.json names the folder as seen from the gallery's own, so that both can be moved, copied or
mounted elsewhere together. In memory it is absolute.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

from adde.errors import UserError

ITEM_ID = "{item_id}"
ADDRESS = re.compile(r"(?P<origin>https?://[\w.:\[\]-]+)/[!#$%&(-;=?-Z_a-~{}]*", re.ASCII)
"""What is no part of an address cannot be part of a policy or a header that names it either."""


def parse_option(text: str) -> str:
    """What `--pictures` says: a folder, made absolute, or a template of addresses.

    Raises:
        UserError: it is neither.
    """
    if ADDRESS.fullmatch(text) and ITEM_ID in text:
        return text
    folder = Path(text)
    if "://" in text or not folder.is_dir():
        raise UserError(
            "--pictures: expected the folder of the shards, or an address with the item's id such "
            f"as https://cdn.example/{ITEM_ID}.jpg, found {text!r}"
        )
    return str(folder.resolve())


def url_origin(pictures: str | None) -> str | None:
    """Scheme and host of a template; None of a folder."""
    found = ADDRESS.fullmatch(pictures or "")
    return found and found["origin"]


def picture_url(pictures: str, item_id: str) -> str:
    """Where a template says that an item's picture is."""
    return pictures.replace(ITEM_ID, quote(item_id, safe=""))


def relative_to(pictures: str | None, gallery: Path) -> str | None:
    """As gallery.json has it."""
    if pictures is None or url_origin(pictures):
        return pictures
    return os.path.relpath(pictures, gallery.resolve())


def resolve(pictures: str | None, gallery: Path) -> str | None:
    """From what gallery.json has; galleries of before it was relative have the whole path."""
    if pictures is None or url_origin(pictures):
        return pictures
    return os.path.normpath(gallery.resolve() / pictures)
