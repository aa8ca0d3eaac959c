"""A catalogue's samples in WebDataset tars, and the index of where they lie.

Shards are planned here and written by workers, each a whole one. Keys count through the whole
catalogue, with a gap where a picture was left out. The same catalogue gives the same bytes,
whatever the number and the kind of workers.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adde.errors import UserError
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.index import SPLITS, Shard, ShardIndex
from adde.shards.packing.groups import edit_groups
from adde.shards.packing.tar import DIGEST_BYTES, LISTED, Packed, ShardJob, kept_sizes, write_shard

Run = Callable[[Callable[[ShardJob], Packed], Iterable[ShardJob]], Generator[Packed, None, None]]
"""Does the work of each job somewhere, and gives the results in order."""


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
    """Writes the tars of all splits into a folder that is there; the index is the caller's.

    Args:
        catalogue: what to write.
        folder: of the tars; those that are finished there, with their receipts, are kept.
        run: what does the work.
        items_per_shard: about how many; shards of a split are of like size, no group is cut.
        seed: of the order of the groups.
        skip_unreadable: leave out pictures that do not decode instead of raising.
        probe: changes when the way that pictures are made does.

    Raises:
        UserError: pictures do not decode (names up to 20), a split is left without any, the
            catalogue's parts do not fit each other, or items_per_shard is below 1.
    """
    if items_per_shard < 1:
        raise UserError(f"--items-per-shard: expected at least 1, found {items_per_shard}")
    plans = [plan for split in SPLITS for plan in _plans(catalogue, split, items_per_shard, seed)]
    jobs = _jobs(catalogue, folder, plans, probe, skip_unreadable)
    shards: list[Shard] = []
    groups: list[list[int]] = []
    unreadable: list[str] = []
    pictures = bytearray()
    # Closed at once when a write fails, so that no worker outlives the folder.
    with (
        closing(run(write_shard, jobs)) as results,
        tqdm(total=len(catalogue.splits), desc="pictures", unit="picture", disable=None) as bar,
    ):
        for plan, packed in zip(plans, results):
            unreadable += packed.unreadable
            if not skip_unreadable and len(unreadable) >= LISTED:
                break
            if packed.shard is not None:
                shards.append(packed.shard)
            groups += _kept(plan, packed)
            pictures += bytes.fromhex(packed.pictures)
            bar.update(len(plan.rows))
    if unreadable and not skip_unreadable:
        _refuse(unreadable)
    index = ShardIndex(
        folder, catalogue.name, catalogue.schema, tuple(shards), dict(catalogue.factors)
    )
    for split in set(catalogue.splits):
        if not index.count(split):
            raise UserError(f"split {split!r}: expected pictures that can be read, found none")
    return Written(index, groups, _duplicates(groups, bytes(pictures)), unreadable)


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
    return json.dumps(record, ensure_ascii=False).encode()


def _kept(plan: _Plan, packed: Packed) -> list[list[int]]:
    """The plan's groups without the rows that were left out."""
    rows = plan.rows
    kept = iter([rows[position] for position in packed.kept])
    sizes = kept_sizes([len(group) for group in plan.groups], packed.kept)
    return [[next(kept) for _ in range(size)] for size in sizes]


def _refuse(unreadable: list[str]) -> None:
    named = unreadable[:LISTED]
    more = " or more" if len(unreadable) >= LISTED else ""
    raise UserError(
        f"{len(named)}{more} pictures cannot be read; mend them, or leave them "
        "out with --skip-unreadable:\n  " + "\n  ".join(named)
    )


def _duplicates(groups: list[list[int]], pictures: bytes) -> list[list[int]]:
    """Rows whose pictures have one digest; `pictures` are those of the groups' rows in turn."""
    rows = np.array([row for group in groups for row in group], dtype=np.int64)
    digests = np.frombuffer(pictures, dtype=np.dtype((np.void, DIGEST_BYTES)))
    _, number, counts = np.unique(digests, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[number] > 1)
    found: dict[int, list[int]] = {}
    for position in repeated.tolist():
        found.setdefault(int(number[position]), []).append(int(rows[position]))
    return list(found.values())
