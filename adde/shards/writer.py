"""A catalogue written as WebDataset tars beside an index.json, whole or not at all.

A sample is two members, `<key>.<jpg|png|webp>` and `<key>.json` with {"item_id": ..., "labels":
{attribute: value or null}}; null is UNKNOWN. The same catalogue gives the same bytes, whatever
the number of workers. Written with tarfile: importing `webdataset`'s own writer loads torch, and
who packs or serves a catalogue need not have it. The tests read the tars with `webdataset`.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adde.errors import UserError
from adde.files import atomic_path, sha256_of_file
from adde.schema import UNKNOWN
from adde.shards.catalogue import Catalogue
from adde.shards.groups import edit_groups
from adde.shards.index import SPLITS, Shard, ShardIndex

CHUNK = 32
"""Pictures a worker process makes at a time."""

LISTED = 20
"""Unreadable pictures an error names."""


@dataclass
class Written:
    """What was found while writing, for the summary."""

    unreadable: list[str] = field(default_factory=list)
    """Messages that name the files."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Item ids of the same picture bytes, the first one first."""
    across_splits: int = 0
    """How many of those stand in two splits."""


@dataclass(frozen=True)
class _Picture:
    row: int
    content: bytes
    extension: str
    error: str | None = None


def write_shards(
    catalogue: Catalogue,
    out: Path,
    *,
    items_per_shard: int = 1024,
    seed: int = 0,
    workers: int | None = None,
    skip_unreadable: bool = False,
    extra_files: dict[str, str] | None = None,
) -> tuple[ShardIndex, Written]:
    """Writes all splits of a catalogue into the folder `out`, replacing it.

    Args:
        catalogue: what to pack.
        out: folder of the tars and index.json.
        items_per_shard: about how many; an edit group is never cut.
        seed: of the order of the groups.
        workers: processes that make pictures; None: one per core.
        skip_unreadable: leave out pictures that do not decode instead of raising.
        extra_files: further files of the folder, by name.

    Raises:
        UserError: pictures do not decode (names up to 20), or a split is left without any.
    """
    written = Written()
    with atomic_path(out) as folder:
        folder.mkdir()
        plan = list(_plan(catalogue, items_per_shard, seed))
        made = _make_pictures(catalogue, [rows for _, _, rows in plan], workers)
        first_of: dict[bytes, int] = {}
        shards = [
            _write_tar(catalogue, folder / name, groups, pictures, written, first_of)
            for (name, groups, _), pictures in zip(plan, made)
        ]
        if written.unreadable and not skip_unreadable:
            shown = "\n  ".join(written.unreadable[:LISTED])
            raise UserError(
                f"{len(written.unreadable)} pictures cannot be read; mend them, or leave them out "
                f"with --skip-unreadable:\n  {shown}"
            )
        kept = tuple(shard for shard in shards if shard.samples)
        for split in sorted(set(catalogue.splits)):
            if not any(shard.split == split for shard in kept):
                raise UserError(f"split {split!r}: expected readable pictures, found none")
        index = ShardIndex(folder, catalogue.name, catalogue.schema, kept)
        index.write()
        for name, content in (extra_files or {}).items():
            (folder / name).write_text(content, encoding="utf-8")
    return ShardIndex(out, catalogue.name, catalogue.schema, kept), written


def _plan(
    catalogue: Catalogue, items_per_shard: int, seed: int
) -> Iterator[tuple[str, list[list[int]], list[int]]]:
    """Name, groups of catalogue rows, and all rows of each shard."""
    of_split = np.asarray(catalogue.splits)
    for split in SPLITS:
        rows = np.flatnonzero(of_split == split)
        groups: list[list[int]] = []
        number = 0
        for group in edit_groups(catalogue.labels[rows], seed) if len(rows) else ():
            groups.append(rows[group].tolist())
            if sum(map(len, groups)) >= items_per_shard:
                yield f"{split}-{number:06d}.tar", groups, [r for g in groups for r in g]
                groups, number = [], number + 1
        if groups:
            yield f"{split}-{number:06d}.tar", groups, [r for g in groups for r in g]


def _make_pictures(
    catalogue: Catalogue, shards: Sequence[list[int]], workers: int | None
) -> Iterator[dict[int, _Picture]]:
    """Each shard's pictures by row; at most two shards' are under way at a time."""
    processes = workers or os.cpu_count() or 1
    total = sum(map(len, shards))
    context = get_context("spawn")
    with (
        tqdm(total=total, desc="pictures", unit="picture", disable=None) as bar,
        ProcessPoolExecutor(processes, context, _start_worker, (catalogue,)) as pool,
    ):
        waiting: deque[list[Future[list[_Picture]]]] = deque()
        ahead = iter(shards)
        for _ in shards:
            while len(waiting) < 2 and (rows := next(ahead, None)) is not None:
                chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
                waiting.append([pool.submit(_make_chunk, chunk) for chunk in chunks])
            pictures: dict[int, _Picture] = {}
            for future in waiting.popleft():
                pictures.update((picture.row, picture) for picture in future.result())
            bar.update(len(pictures))
            yield pictures


_catalogue: Catalogue | None = None
"""A worker process's own copy, so that it travels once and not with every chunk."""


def _start_worker(catalogue: Catalogue) -> None:
    global _catalogue
    _catalogue = catalogue


def _make_chunk(rows: list[int]) -> list[_Picture]:
    assert _catalogue is not None
    return [_make_picture(_catalogue, row) for row in rows]


def _make_picture(catalogue: Catalogue, row: int) -> _Picture:
    try:
        return _Picture(row, *catalogue.picture(row))
    except UserError as error:
        return _Picture(row, b"", "", str(error))


def _write_tar(
    catalogue: Catalogue,
    path: Path,
    groups: list[list[int]],
    pictures: dict[int, _Picture],
    written: Written,
    first_of: dict[bytes, int],
) -> Shard:
    members: list[list[int]] = []
    sizes: list[int] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for group in groups:
            before = len(members)
            for row in group:
                picture = pictures[row]
                if picture.error is not None:
                    written.unreadable.append(picture.error)
                    continue
                _note_duplicate(catalogue, picture, written, first_of)
                key = f"{len(members):06d}"
                members.append(
                    [
                        *_add(tar, f"{key}.{picture.extension}", picture.content),
                        *_add(tar, f"{key}.json", _record(catalogue, row)),
                    ]
                )
            if len(members) > before:
                sizes.append(len(members) - before)
    split = path.name.partition("-")[0]
    content = sha256_of_file(path)
    return Shard(path.name, split, len(members), path.stat().st_size, content, sizes, members)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Adds a member; returns where its bytes start, and how many they are."""
    info = tarfile.TarInfo(name)  # time and owner stay zero: the same bytes every time
    info.size = len(content)
    start = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(content))
    return start, len(content)


def _record(catalogue: Catalogue, row: int) -> bytes:
    labels = catalogue.schema.decode(catalogue.labels[row])
    record = {"item_id": catalogue.item_ids[row], "labels": labels}
    return json.dumps(record, ensure_ascii=False).encode()


def _note_duplicate(
    catalogue: Catalogue, picture: _Picture, written: Written, first_of: dict[bytes, int]
) -> None:
    digest = hashlib.sha256(picture.content).digest()[:16]
    first = first_of.setdefault(digest, picture.row)
    if first != picture.row:
        written.duplicates.append((catalogue.item_ids[first], catalogue.item_ids[picture.row]))
        written.across_splits += catalogue.splits[first] != catalogue.splits[picture.row]


def value_counts(catalogue: Catalogue) -> list[tuple[str, dict[str, int], float]]:
    """Per attribute: its name, items of each value, and the share of items without a label."""
    result: list[tuple[str, dict[str, int], float]] = []
    for attribute, column in zip(catalogue.schema.attributes, catalogue.labels.T):
        known = column[column != UNKNOWN]
        counts = np.bincount(known, minlength=len(attribute.values)).tolist()
        missing = 1 - len(known) / max(1, len(column))
        result.append((attribute.name, dict(zip(attribute.values, counts)), missing))
    return result
