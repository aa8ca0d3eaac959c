"""Write a catalogue's samples to WebDataset tars, and index them.

This module plans the shards, and each worker writes a whole one. Keys number all samples of the
catalogue, with gaps for omitted pictures. The same catalogue gives the same bytes, regardless of
the number and kind of workers.
"""

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adde.errors import UserError
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.index import SPLITS, ShardIndex
from adde.shards.packing.groups import edit_groups
from adde.shards.packing.tar import (
    DIGEST_BYTES,
    MAX_UNREADABLE,
    Packed,
    ShardJob,
    kept_sizes,
    write_shard,
)
from adde.shards.shard import Shard

Run = Callable[[Callable[[ShardJob], Packed], Iterable[ShardJob]], Generator[Packed, None, None]]
"""Executes jobs and yields the results in order."""


@dataclass(frozen=True)
class Written:
    """The written shards, and findings about the pictures."""

    index: ShardIndex
    groups: list[list[int]]
    """Catalogue rows of each edit group, in stored order, without omitted rows."""
    duplicates: list[list[int]]
    """Catalogue rows whose pictures have the same bytes."""
    unreadable: list[str]
    """A message for each omitted row, naming the file."""


@dataclass(frozen=True)
class _Plan:
    """A planned shard: its split, its number there, and groups of catalogue rows."""

    split: str
    number: int
    groups: list[list[int]]

    @property
    def rows(self) -> list[int]:
        return [row for group in self.groups for row in group]


def write_tars(
    catalogue: Catalogue,
    folder: Path,
    run: Run,
    *,
    items_per_shard: int = 1024,
    seed: int = 0,
    skip_unreadable: bool = False,
    probe: str = "",
) -> Written:
    """Write the tars of all splits into an existing folder; the caller writes the index.

    Args:
        catalogue: The catalogue.
        folder: The folder; finished tars with matching receipts are kept.
        run: Executes the jobs.
        items_per_shard: Approximate number; shards of a split have similar sizes, and groups stay
            whole.
        seed: Seed of the order of the groups.
        skip_unreadable: Leave out pictures that do not decode instead of raising.
        probe: Changes when pictures are encoded differently.

    Raises:
        UserError: Pictures do not decode (names up to 20), a split has no readable picture, or
            items_per_shard is below 1.
    """
    if items_per_shard < 1:
        raise UserError(f"--items-per-shard: expected at least 1, found {items_per_shard}")
    plans = [plan for split in SPLITS for plan in _plans(catalogue, split, items_per_shard, seed)]
    jobs = _jobs(catalogue, folder, plans, probe, skip_unreadable)
    shards: list[Shard] = []
    groups: list[list[int]] = []
    unreadable: list[str] = []
    pictures = bytearray()
    # Closed at once if a write fails, so that no worker outlives the folder.
    with (
        closing(run(write_shard, jobs)) as results,
        tqdm(total=len(catalogue.splits), desc="pictures", unit="picture", disable=None) as bar,
    ):
        for plan, packed in zip(plans, results):
            unreadable += packed.unreadable
            if not skip_unreadable and len(unreadable) >= MAX_UNREADABLE:
                break
            if packed.shard is not None:
                shards.append(packed.shard)
            groups += _kept(plan, packed)
            pictures += bytes.fromhex(packed.pictures)
            bar.update(len(plan.rows))
    if unreadable and not skip_unreadable:
        _raise_unreadable(unreadable)
    most = 1
    if catalogue.items is not None:
        written = (catalogue.items[row] for group in groups for row in group)
        most = max(Counter(written).values(), default=1)
    index = ShardIndex(
        folder, catalogue.name, catalogue.schema, tuple(shards), dict(catalogue.factors), most
    )
    for split in set(catalogue.splits):
        if not index.count(split):
            raise UserError(f"split {split!r}: expected pictures that can be read, found none")
    return Written(index, groups, _duplicates(groups, bytes(pictures)), unreadable)


def _plans(catalogue: Catalogue, split: str, items_per_shard: int, seed: int) -> Iterator[_Plan]:
    rows = np.flatnonzero(np.asarray(catalogue.splits) == split)
    if not len(rows):
        return
    # Similar sizes: a small last shard would make the windows of the sample order uneven.
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


def _jobs(
    catalogue: Catalogue, folder: Path, plans: list[_Plan], probe: str, skip_unreadable: bool
) -> Iterator[ShardJob]:
    first = 0
    for plan in plans:
        rows = plan.rows
        yield ShardJob(
            folder,
            f"{plan.split}-{plan.number:06d}.tar",
            plan.split,
            first,
            [len(group) for group in plan.groups],
            [catalogue.source(row) for row in rows],
            [_record(catalogue, row) for row in rows],
            probe,
            skip_unreadable,
        )
        first += len(rows)


def _record(catalogue: Catalogue, row: int) -> bytes:
    labels = catalogue.schema.decode(catalogue.labels[row])
    record = {"item_id": catalogue.item_ids[row], "labels": labels}
    if catalogue.items is not None:
        record["item"] = catalogue.items[row]
    return json.dumps(record, ensure_ascii=False).encode()


def _kept(plan: _Plan, packed: Packed) -> list[list[int]]:
    """Return the plan's groups without omitted rows."""
    rows = plan.rows
    kept = iter([rows[position] for position in packed.kept])
    sizes = kept_sizes([len(group) for group in plan.groups], packed.kept)
    return [[next(kept) for _ in range(size)] for size in sizes]


def _raise_unreadable(unreadable: list[str]) -> None:
    named = unreadable[:MAX_UNREADABLE]
    more = " or more" if len(unreadable) >= MAX_UNREADABLE else ""
    raise UserError(
        f"{len(named)}{more} pictures cannot be read; repair them, or leave them "
        "out with --skip-unreadable:\n  " + "\n  ".join(named)
    )


def _duplicates(groups: list[list[int]], pictures: bytes) -> list[list[int]]:
    """Return rows with equal pictures; `pictures` holds the rows' digests in order."""
    rows = np.array([row for group in groups for row in group], dtype=np.int64)
    digests = np.frombuffer(pictures, dtype=np.dtype((np.void, DIGEST_BYTES)))
    _, number, counts = np.unique(digests, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[number] > 1)
    found: dict[int, list[int]] = {}
    for position in repeated.tolist():
        found.setdefault(int(number[position]), []).append(int(rows[position]))
    return list(found.values())
