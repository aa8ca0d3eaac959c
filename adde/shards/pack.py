"""A catalogue packed into a folder of shards: whole or not at all, and only if it has changed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import atomic_path, read_json, write_json
from adde.metrics import Queries
from adde.shards.catalogue import Catalogue
from adde.shards.index import INDEX_NAME, ShardIndex
from adde.shards.queries import QUERIES_NAME, write_queries
from adde.shards.summary import summarise
from adde.shards.writer import Written, write_tars

SUMMARY_NAME = "summary.json"
BUILD_NAME = "build.json"
"""What the folder was packed from; not part of the index, which says what it holds."""

PROBES = 8
"""Pictures of a catalogue that its fingerprint is taken from."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How a catalogue is laid out in shards."""

    items_per_shard: int = 1024
    """About how many items a tar holds; edit groups are not cut."""
    seed: int = 0
    """Of what is drawn: an embedded catalogue, and the order of the edit groups."""
    skip_unreadable: bool = False
    """Leave out pictures that do not decode, and list them, instead of stopping."""


def pack(
    catalogue: Catalogue,
    out: Path,
    options: PackOptions,
    *,
    workers: int | None = None,
    notices: Sequence[str] = (),
    queries: Queries | None = None,
) -> dict[str, Any] | None:
    """Writes the tars, index.json and summary.json of a catalogue.

    Args:
        catalogue: what to pack.
        out: folder that appears when all is written, in place of one packed from anything else.
        options: the layout.
        workers: processes that make pictures; None is one per core.
        notices: what to tell of the catalogue in the summary.
        queries: of the test split, kept beside the shards; references are catalogue rows.

    Returns:
        The summary, or None where `out` was packed from the same before.

    Raises:
        UserError: `out` holds anything but shards, or as of `write_tars`.
    """
    out = out.resolve()  # the folder itself, not a link to it, is replaced
    _refuse_strangers(out)
    build = {"fingerprint": _fingerprint(catalogue, options, queries)}
    if _is_built(out, build):
        return None
    with atomic_path(out) as folder:
        folder.mkdir()
        written = write_tars(catalogue, folder, workers=workers, **asdict(options))
        if queries is not None:
            kept = _of_written(queries, written)
            write_queries(folder, kept, "test", catalogue.item_ids, catalogue.schema)
            notices = [*notices, f"{len(kept):,} of {len(queries):,} queries given for test kept"]
        summary = summarise(catalogue, written, notices)
        write_json(folder / SUMMARY_NAME, summary)
        write_json(folder / BUILD_NAME, build)
        written.index.write()
    return summary


def _fingerprint(catalogue: Catalogue, options: PackOptions, queries: Queries | None) -> str:
    """sha256 of ids, labels, splits, the pictures' stamps, a few pictures, and the layout."""
    digest = hashlib.sha256()
    content = [catalogue.name, catalogue.schema.hash, asdict(options)]
    digest.update(json.dumps(content, sort_keys=True).encode())
    for row, (item_id, split) in enumerate(zip(catalogue.item_ids, catalogue.splits)):
        digest.update(json.dumps([item_id, split, catalogue.source(row).stamp()]).encode())
    digest.update(catalogue.labels.tobytes())
    if queries is not None:
        for array in (queries.reference, queries.attribute, queries.value, queries.targets):
            digest.update(array.tobytes())
    # What draws or shrinks the pictures may change with their sources staying as they are.
    for row in range(0, len(catalogue.item_ids), max(1, len(catalogue.item_ids) // PROBES)):
        try:
            digest.update(catalogue.source(row).read()[0])
        except UserError as error:
            digest.update(str(error).encode())
    return digest.hexdigest()


def _of_written(queries: Queries, written: Written) -> Queries:
    """The queries whose reference was not left out."""
    rows = np.array([row for group in written.groups for row in group], dtype=np.int64)
    return queries[np.flatnonzero(np.isin(queries.reference, rows))]


def _refuse_strangers(out: Path) -> None:
    """A folder of anything else is not ours to replace."""
    if out.is_dir():
        ours = {INDEX_NAME, SUMMARY_NAME, BUILD_NAME, QUERIES_NAME}
        strange = [entry.name for entry in sorted(out.iterdir())]
        strange = [name for name in strange if name not in ours and not name.endswith(".tar")]
        if strange:
            raise UserError(
                f"{out}: expected a new folder or one of shards, which would be replaced, "
                f"found {strange[0]!r} in it; name another folder"
            )
    elif out.exists():
        raise UserError(f"{out}: expected a folder, found a file; name another folder")


def _is_built(out: Path, build: dict[str, str]) -> bool:
    try:
        ShardIndex.read(out)  # refuses shards that are gone or cut short
        return read_json(out / BUILD_NAME) == build
    except UserError:
        return False
