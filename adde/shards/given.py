"""What a data set brings along beside labels, stored beside its shards: similarity.json and
outfits.json. Both name items by id, as a build decides on the order that items are stored in.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import Schema

SIMILARITY_NAME = "similarity.json"
OUTFITS_NAME = "outfits.json"
GIVEN_NAMES = (SIMILARITY_NAME, OUTFITS_NAME)


class Given(Protocol):
    """Questions about items of a catalogue, which are named by their ids."""

    FILE_NAME: ClassVar[str]
    """Name of the file, one of GIVEN_NAMES."""

    def __len__(self) -> int:
        """Number of entries."""
        ...

    def content(self) -> dict[str, Any]:
        """The entries as JSON."""
        ...

    def kept(self, item_ids: Collection[str]) -> "Given":
        """Only the entries all of whose items are among these."""
        ...


def write_given(folder: Path, given: Given, schema: Schema) -> None:
    """Writes the file into a folder of shards."""
    content = {"schema_hash": schema.hash, **given.content()}
    write_json(folder / given.FILE_NAME, content, indent=None)


def read_given(path: Path, schema: Schema) -> Any:
    """The content of a file, or None where there is none.

    Raises:
        UserError: it is damaged, or of another schema.
    """
    if not path.exists():
        return None
    content: Any = read_json(path)
    try:
        of_schema = content["schema_hash"] == schema.hash
    except (TypeError, KeyError):
        of_schema = False
    if not of_schema:
        raise UserError(f"{path}: expected questions of the shards' schema; build the shards again")
    return content


class RowOf:
    """Rows of items by id."""

    def __init__(self, path: Path, item_ids: Sequence[str]) -> None:
        self._path = path
        self._rows = {item_id: row for row, item_id in enumerate(item_ids)}

    def __call__(self, item_ids: Sequence[str], where: str) -> list[int]:
        """Raises UserError where there is no such item; names it, the file and `where` in it."""
        try:
            return [self._rows[item_id] for item_id in item_ids]
        except KeyError as error:
            raise UserError(
                f"{self._path}, {where}: expected an item of the shards, found {error}; build the "
                "shards again"
            ) from None
