"""A catalogue packed into a folder of shards: whole or not at all, and only what has changed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import read_json, require_writable, unexpected_entries, write_json
from adde.metrics import Queries
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.given import GIVEN_NAMES, Given, write_given
from adde.shards.index import INDEX_NAME, MEMBERS_NAME, ShardIndex
from adde.shards.packing.summary import summarise
from adde.shards.packing.tar import RECEIPT
from adde.shards.packing.work_folder import work_folder
from adde.shards.packing.writer import Run, Written, write_tars
from adde.shards.queries import QUERIES_NAME, write_queries

SUMMARY_NAME = "summary.json"
BUILD_NAME = "build.json"
"""What the folder was packed from; not part of the index, which says what it holds."""

PROBES = 8
"""Pictures of a catalogue that are made to see whether they are made as before."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How a catalogue is laid out in shards."""

    items_per_shard: int = 1024
    """About how many items a tar holds; edit groups are not cut."""
    seed: int = 0
    """Of what is drawn: an embedded catalogue, and the order of the edit groups."""
    skip_unreadable: bool = False
    """Leave out rows of the table that cannot be used and pictures that do not decode, and list
    them, instead of stopping."""


def pack(
    catalogue: Catalogue,
    out: Path,
    options: PackOptions,
    run: Run,
    *,
    notices: Sequence[str] = (),
    queries: Queries | None = None,
    given: Given | None = None,
) -> dict[str, Any] | None:
    """Writes the tars, index.json and summary.json of a catalogue.

    They are written to a folder beside `out`, which takes its place when all is there. Where that
    does not come about, the shards finished by then stay, and packing the same again goes on
    from them.

    Args:
        catalogue: what to pack.
        out: folder that appears when all is written, in place of one packed from anything else.
        options: the layout.
        run: what does the work; see `adde.shards.packing.engine`.
        notices: what to tell of the catalogue in the summary.
        queries: of the test split, kept beside the shards; references are catalogue rows.
        given: what else was given, kept beside the shards.

    Returns:
        The summary, or None where `out` was packed from the same before.

    Raises:
        UserError: `out` holds anything but shards or cannot be written, another process packs
            into it, or as of `write_tars`.
    """
    out = out.resolve()  # the folder itself, not a link to it, is replaced
    require_place(out)
    probe = _probe(catalogue)
    build = {"fingerprint": _fingerprint(catalogue, options, queries, given, probe)}
    if _is_built(out, build):
        return None
    with work_folder(out) as folder:
        written = write_tars(catalogue, folder, run, probe=probe, **asdict(options))
        if queries is not None:
            kept = _of_written(queries, written)
            write_queries(folder, kept, "test", catalogue.item_ids, catalogue.schema)
            notices = [*notices, f"{len(kept):,} of {len(queries):,} queries given for test kept"]
        if given is not None:
            those = given.kept(_ids_of_written(catalogue, written))
            write_given(folder, those, catalogue.schema)
            told = f"{len(those):,} of {len(given):,} entries of {given.FILE_NAME} kept"
            notices = [*notices, told]
        summary = summarise(catalogue, written, notices)
        write_json(folder / SUMMARY_NAME, summary)
        write_json(folder / BUILD_NAME, build)
        written.index.write()
        ours = {INDEX_NAME, MEMBERS_NAME, SUMMARY_NAME, BUILD_NAME}
        ours |= {shard.name for shard in written.index.shards}
        ours |= {QUERIES_NAME} if queries is not None else set()
        ours |= {given.FILE_NAME} if given is not None else set()
        for entry in folder.iterdir():
            if entry.name not in ours and not entry.name.endswith(RECEIPT):
                # Tars of a build of something else, and what workers of a build that was killed
                # are just clearing away themselves.
                entry.unlink(missing_ok=True)
    return summary


def _probe(catalogue: Catalogue) -> str:
    """sha256 of a few pictures, as what makes them may change while their sources do not."""
    digest = hashlib.sha256()
    for row in range(0, len(catalogue.item_ids), max(1, len(catalogue.item_ids) // PROBES)):
        try:
            digest.update(catalogue.source(row).read()[0])
        except UserError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def _fingerprint(
    catalogue: Catalogue,
    options: PackOptions,
    queries: Queries | None,
    given: Given | None,
    probe: str,
) -> str:
    """sha256 of ids, labels, splits, the pictures' stamps, the probe, what was given and the
    layout.
    """
    digest = hashlib.sha256()
    content: list[Any] = [catalogue.name, catalogue.schema.hash, asdict(options), probe]
    content += [dict(catalogue.factors)] if catalogue.factors else []
    digest.update(json.dumps(content, sort_keys=True).encode())
    for row, (item_id, split) in enumerate(zip(catalogue.item_ids, catalogue.splits)):
        digest.update(json.dumps([item_id, split, catalogue.source(row).stamp()]).encode())
    digest.update(catalogue.labels.tobytes())
    if queries is not None:
        for array in (queries.reference, queries.attribute, queries.value, queries.targets):
            digest.update(array.tobytes())
    if given is not None:
        digest.update(json.dumps(given.content(), sort_keys=True).encode())
    return digest.hexdigest()


def _of_written(queries: Queries, written: Written) -> Queries:
    """The queries whose reference was not left out."""
    rows = np.array([row for group in written.groups for row in group], dtype=np.int64)
    return queries[np.flatnonzero(np.isin(queries.reference, rows))]


def _ids_of_written(catalogue: Catalogue, written: Written) -> list[str]:
    return [catalogue.item_ids[row] for group in written.groups for row in group]


def require_place(out: Path) -> None:
    """Refuses a folder of anything but shards, which is not ours to replace, and one that cannot be
    written. Raises UserError.
    """
    known = {INDEX_NAME, MEMBERS_NAME, SUMMARY_NAME, BUILD_NAME, QUERIES_NAME, *GIVEN_NAMES}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder, found a file; name another folder")
    if strange := unexpected_entries(
        out, lambda name: name in known or name.endswith((".tar", RECEIPT))
    ):
        raise UserError(
            f"{out}: expected a new folder or one of shards, which would be replaced, "
            f"found {strange[0]!r} in it; name another folder"
        )
    require_writable(out)


def _is_built(out: Path, build: dict[str, str]) -> bool:
    try:
        ShardIndex.read(out)  # refuses shards that are gone or cut short
        return read_json(out / BUILD_NAME) == build
    except UserError:
        return False
