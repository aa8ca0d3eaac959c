"""A catalogue's samples in WebDataset tars, and the index of where they lie.

A sample is two members, `<key>.<jpg|png|webp>` and `<key>.json` with {"item_id": ..., "labels":
{attribute: value or null}}; every attribute is there, null where it is UNKNOWN. Keys count through
the whole catalogue. The same catalogue gives the same bytes, whatever the number of workers.

Written with tarfile: importing `webdataset` imports torch, and who packs a catalogue need not have
it. The tests read the tars with `webdataset`.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.shards.catalogue import Catalogue, check
from adde.shards.encode import Picture, make_pictures
from adde.shards.groups import edit_groups
from adde.shards.index import SPLITS, Shard, ShardIndex

LISTED = 20
"""Unreadable pictures that an error names; no more are looked for."""


@dataclass(frozen=True)
class Written:
    """What was written, and what was found on the way."""

    index: ShardIndex
    groups: list[list[int]]
    """Catalogue rows of each edit group, in stored order; rows left out are in none."""
    duplicates: list[list[int]]
    """Catalogue rows whose pictures are the same bytes."""
    unreadable: list[str]
    """A message for each row left out; names the file."""


@dataclass(frozen=True)
class _Plan:
    """A shard to be: its split, its number there, and groups of catalogue rows."""

    split: str
    number: int
    groups: list[list[int]]


def write_tars(
    catalogue: Catalogue,
    folder: Path,
    *,
    items_per_shard: int = 1024,
    seed: int = 0,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> Written:
    """Writes the tars of all splits into a folder that is there; the index is the caller's.

    Args:
        catalogue: what to write.
        folder: of the tars.
        items_per_shard: about how many; shards of a split are of like size, no group is cut.
        seed: of the order of the groups.
        workers: processes that make pictures; None is one per core.
        skip_unreadable: leave out pictures that do not decode instead of raising.

    Raises:
        UserError: pictures do not decode (names up to 20), a split is left without any, the
            catalogue's parts do not fit each other, or items_per_shard is below 1.
    """
    check(catalogue)
    if items_per_shard < 1:
        raise UserError(f"--items-per-shard: expected at least 1, found {items_per_shard}")
    plans = [plan for split in SPLITS for plan in _plans(catalogue, split, items_per_shard, seed)]
    rows = [row for plan in plans for group in plan.groups for row in group]
    # Closed at once when a write fails, so that no worker outlives the folder.
    with closing(make_pictures(catalogue, rows, workers)) as pictures:
        tars = _Tars(catalogue, folder, pictures, skip_unreadable)
        shards = tuple(shard for plan in plans if (shard := tars.write(plan)))
    tars.refuse_unreadable()
    index = ShardIndex(folder, catalogue.name, catalogue.schema, shards)
    for split in set(catalogue.splits):
        if not index.count(split):
            raise UserError(f"split {split!r}: expected pictures that can be read, found none")
    duplicates = [rows for rows in tars.rows_of_picture.values() if len(rows) > 1]
    return Written(index, tars.groups, duplicates, tars.unreadable)


def _plans(catalogue: Catalogue, split: str, items_per_shard: int, seed: int) -> Iterator[_Plan]:
    rows = np.flatnonzero(np.asarray(catalogue.splits) == split)
    if not len(rows):
        return
    # Of like size: a shard of leftovers would make windows of the sample order uneven.
    target = len(rows) / -(-len(rows) // items_per_shard)
    groups: list[list[int]] = []
    number, planned = 0, 0
    for group in edit_groups(catalogue.labels[rows], seed):
        groups.append(rows[group].tolist())
        planned += len(group)
        if planned >= round(target * (number + 1)):
            yield _Plan(split, number, groups)
            groups, number = [], number + 1
    if groups:
        yield _Plan(split, number, groups)


class _Tars:
    """Writes planned shards, taking their pictures as they come."""

    def __init__(
        self,
        catalogue: Catalogue,
        folder: Path,
        pictures: Iterator[Picture],
        skip_unreadable: bool,
    ) -> None:
        self._catalogue, self._folder, self._pictures = catalogue, folder, pictures
        self._skip_unreadable = skip_unreadable
        self._written = 0
        self.groups: list[list[int]] = []
        self.unreadable: list[str] = []
        self.rows_of_picture: dict[bytes, list[int]] = {}

    def write(self, plan: _Plan) -> Shard | None:
        """Writes one tar; None, and no tar, where no picture of it is readable."""
        path = self._folder / f"{plan.split}-{plan.number:06d}.tar"
        groups: list[list[int]] = []
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for group in plan.groups:
                kept = [row for row in group if self._add_sample(tar, row)]
                if kept:
                    groups.append(kept)
        if not groups:
            path.unlink()
            return None
        self.groups += groups
        sizes = [len(group) for group in groups]
        return Shard(
            path.name,
            plan.split,
            sum(sizes),
            path.stat().st_size,
            sha256_of_file(path),
            sizes,
            _members(path),
        )

    def refuse_unreadable(self) -> None:
        """Raises where a picture could not be read and should have been."""
        if self.unreadable and not self._skip_unreadable:
            more = " or more" if len(self.unreadable) == LISTED else ""
            raise UserError(
                f"{len(self.unreadable)}{more} pictures cannot be read; mend them, or leave them "
                "out with --skip-unreadable:\n  " + "\n  ".join(self.unreadable)
            )

    def _add_sample(self, tar: tarfile.TarFile, row: int) -> bool:
        picture = next(self._pictures)
        if picture.error is not None:
            self.unreadable.append(picture.error)
            if len(self.unreadable) == LISTED:
                self.refuse_unreadable()
            return False
        digest = hashlib.sha256(picture.content).digest()
        self.rows_of_picture.setdefault(digest, []).append(row)
        key = f"{self._written:08d}"
        _add(tar, f"{key}.{picture.extension}", picture.content)
        _add(tar, f"{key}.json", _record(self._catalogue, row))
        self._written += 1
        return True


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner stay zero: the same bytes every time
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _record(catalogue: Catalogue, row: int) -> bytes:
    labels = catalogue.schema.decode(catalogue.labels[row])
    record = {"item_id": catalogue.item_ids[row], "labels": labels}
    return json.dumps(record, ensure_ascii=False).encode()


def _members(path: Path) -> list[list[int]]:
    """Offset and size of each sample's picture and JSON, read back from the finished tar."""
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    return [[*picture, *record] for picture, record in zip(places[::2], places[1::2])]
