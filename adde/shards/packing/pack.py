"""Pack a catalogue into a folder of shards, completely or not at all, and only if it changed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adde.errors import UserError
from adde.files import read_json, require_writable, unexpected_entries, write_json
from adde.shards.benchmark_lists import BENCHMARK_NAMES, write_benchmark
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.index import INDEX_NAME, MEMBERS_NAME, ShardIndex
from adde.shards.packing.summary import summarise
from adde.shards.packing.tar import RECEIPT
from adde.shards.packing.work_folder import work_folder
from adde.shards.packing.writer import Run, write_tars

SUMMARY_NAME = "summary.json"
BUILD_NAME = "build.json"
"""Fingerprint of the folder's catalogue. It is not in the index, which describes the shards
only."""

PROBES = 8
"""Pictures of a catalogue that are encoded to check whether encoding still gives the same bytes."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How a catalogue is laid out in shards."""

    items_per_shard: int = 1024
    """Approximate number of items in a tar; edit groups stay whole."""
    seed: int = 0
    """Seed of an embedded catalogue, and of the order of the edit groups."""
    skip_unreadable: bool = False
    """Leave out and list unusable rows of the table and pictures that do not decode, instead of
    stopping."""


def pack(catalogue: Catalogue, out: Path, options: PackOptions, run: Run) -> dict[str, Any] | None:
    """Write the tars, index.json, summary.json and benchmark lists of a catalogue.

    The files are written to a work folder, which replaces `out` once it is complete. If packing
    fails, the finished shards are kept, and the next call with the same arguments reuses them.

    Args:
        catalogue: The catalogue.
        out: The folder of shards; an older one is replaced.
        options: The layout.
        run: Executes the jobs; see `adde.shards.packing.engine`.

    Returns:
        The summary, or None if `out` is up to date.

    Raises:
        UserError: `out` holds anything but shards or cannot be written, another process packs
            into it, or see `write_tars`.
    """
    out = out.resolve()  # replace the folder itself, not a link to it
    require_place(out)
    probe = _probe(catalogue)
    build = {"fingerprint": _fingerprint(catalogue, options, probe)}
    if _is_built(out, build):
        return None
    with work_folder(out) as folder:
        written = write_tars(catalogue, folder, run, probe=probe, **asdict(options))
        ours = {INDEX_NAME, MEMBERS_NAME, SUMMARY_NAME, BUILD_NAME}
        ours |= {shard.name for shard in written.index.shards}
        notices = [*catalogue.notices]
        if (lists := catalogue.benchmark) is not None:
            kept = lists.kept([catalogue.item_ids[row] for rows in written.groups for row in rows])
            write_benchmark(folder, kept, catalogue.schema)
            ours.add(kept.FILE_NAME)
            notices.append(f"{len(kept):,} of {len(lists):,} entries of {kept.FILE_NAME} kept")
        summary = summarise(catalogue, written, notices)
        write_json(folder / SUMMARY_NAME, summary)
        write_json(folder / BUILD_NAME, build)
        written.index.write()
        for entry in folder.iterdir():
            if entry.name not in ours and not entry.name.endswith(RECEIPT):
                # Tars of another catalogue's build. Workers of a killed build may be deleting their
                # temporary files at the same time.
                entry.unlink(missing_ok=True)
    return summary


def _probe(catalogue: Catalogue) -> str:
    """Return a sha256 of a few pictures: the encoder may change while their sources do not."""
    digest = hashlib.sha256()
    for row in range(0, len(catalogue.item_ids), max(1, len(catalogue.item_ids) // PROBES)):
        try:
            digest.update(catalogue.source(row).read()[0])
        except UserError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def _fingerprint(catalogue: Catalogue, options: PackOptions, probe: str) -> str:
    """Return a sha256 of ids, labels, splits, stamps, the probe, the benchmark and the layout."""
    digest = hashlib.sha256()
    content: list[Any] = [catalogue.name, catalogue.schema.hash, asdict(options), probe]
    content += [dict(catalogue.factors)] if catalogue.factors else []
    content += [[a.name] for a in catalogue.schema.attributes if a.colour]
    content += [list(catalogue.items)] if catalogue.items is not None else []
    digest.update(json.dumps(content, sort_keys=True).encode())
    for row, (item_id, split) in enumerate(zip(catalogue.item_ids, catalogue.splits)):
        digest.update(json.dumps([item_id, split, catalogue.source(row).stamp()]).encode())
    digest.update(catalogue.labels.tobytes())
    if catalogue.benchmark is not None:
        digest.update(json.dumps(catalogue.benchmark.content(), sort_keys=True).encode())
    return digest.hexdigest()


def require_place(out: Path) -> None:
    """Raise UserError if `out` holds anything but shards, or cannot be written."""
    known = {INDEX_NAME, MEMBERS_NAME, SUMMARY_NAME, BUILD_NAME, *BENCHMARK_NAMES}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder, found a file; name another folder")
    if others := unexpected_entries(
        out, lambda name: name in known or name.endswith((".tar", RECEIPT))
    ):
        raise UserError(
            f"{out}: expected a new folder or one of shards, which would be replaced, "
            f"found {others[0]!r} in it; name another folder"
        )
    require_writable(out)


def _is_built(out: Path, build: dict[str, str]) -> bool:
    try:
        ShardIndex.read(out)  # raises if shards are missing or truncated
        return read_json(out / BUILD_NAME) == build
    except UserError:
        return False
