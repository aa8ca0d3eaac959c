"""Benchmark lists that come with a data set, stored next to its shards.

These are queries.json, similarity.json and outfits.json. They name items by id, because the build
decides the order in which items are stored.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import Schema

QUERIES_NAME = "queries.json"
SIMILARITY_NAME = "similarity.json"
OUTFITS_NAME = "outfits.json"
BENCHMARK_NAMES = (QUERIES_NAME, SIMILARITY_NAME, OUTFITS_NAME)

FindRows = Callable[[Sequence[str], str], list[int]]
"""Map item ids to their rows; the second argument names the place in the file for errors."""


class BenchmarkLists(Protocol):
    """Questions about the items of a catalogue."""

    FILE_NAME: ClassVar[str]
    """Name of the file, one of BENCHMARK_NAMES."""

    def __len__(self) -> int:
        """Return the number of entries."""
        ...

    def content(self) -> dict[str, Any]:
        """Return the entries as JSON."""
        ...

    def kept(self, item_ids: Collection[str]) -> "BenchmarkLists":
        """Return the entries whose items are all among `item_ids`."""
        ...


def write_benchmark(folder: Path, lists: BenchmarkLists, schema: Schema) -> None:
    """Write the lists to their file in a folder of shards."""
    content = {"schema_hash": schema.hash, **lists.content()}
    write_json(folder / lists.FILE_NAME, content, indent=None)


def read_benchmark(path: Path, schema: Schema) -> Any:
    """Return the content of a file of lists, or None if it does not exist.

    Raises:
        UserError: The file is damaged or belongs to another schema.
    """
    if not path.exists():
        return None
    content: Any = read_json(path)
    try:
        matches = content["schema_hash"] == schema.hash
    except (TypeError, KeyError):
        matches = False
    if not matches:
        raise UserError(f"{path}: expected questions of the shards' schema; build the shards again")
    return content


def row_finder(path: Path, item_ids: Sequence[str]) -> FindRows:
    """Return a function that looks up the rows of items in `item_ids`.

    The function raises UserError for an unknown item; the message names the item, the file and the
    place in it.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}

    def find(wanted: Sequence[str], where: str) -> list[int]:
        try:
            return [row_of[item_id] for item_id in wanted]
        except KeyError as error:
            raise UserError(
                f"{path}, {where}: expected an item of the shards, found {error}; build the "
                "shards again"
            ) from None

    return find
