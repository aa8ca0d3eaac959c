"""RAM of a rank's processes: index and pictures read ahead; time to lay out the epoch's order.

    python benchmarks/memory.py --json docs/memory.json

`index_*`: dirty private RAM that reading an index adds to every process of every rank, and the
members file, which the processes of a machine share. `lists` is the same index as JSON lists
(format 2) for comparison. `share_ms`: time to compute a rank's rows of a global batch at the start
of a window. `ahead_mb`: RAM of the pictures that workers read ahead in micro-batches for
`data.cached`; `whole` is the computed size if the rank's whole share of a batch were read in one
piece.
"""

import json as json_module
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from figures import publish

from adde.errors import run_program
from adde.loading.batch import join
from adde.loading.loader import BatchStream
from adde.loading.workers import LENT, READ_AHEAD
from adde.schema import Attribute, Schema
from adde.shards.batches import BatchMetadata
from adde.shards.index import INDEX_NAME, ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.shard import Shard, member_rows

PER_SHARD, GROUP = 1000, 4
SCHEMA = Schema((Attribute("colour", ("red", "blue")),))


def measure(
    items: int = 5_000_000,
    batch_size: int = 32_768,
    ranks: int = 8,
    micro_batch: int = 256,
    side: int = 224,
    workers: int = 2,
    json: Path | None = None,
) -> None:
    """Print and write megabytes and milliseconds.

    Args:
        items: of the index.
        batch_size: items of a global batch.
        ranks: number of ranks.
        micro_batch: items of a forward pass.
        side: of a picture, pixels.
        workers: processes of a rank that read.
        json: file of the figures.
    """
    with tempfile.TemporaryDirectory() as scratch:
        table, lists = Path(scratch) / "table", Path(scratch) / "lists"
        index = write(table, lists, items)
        members = sum(shard.members.nbytes for shard in index.shards) / 1e6
        figures: dict[str, Any] = {
            "items": items,
            "index_lists_mb": in_a_process(_hold_lists, lists),
            "index_mb": in_a_process(_hold_table, table),
            "index_members_shared_mb": members,
            "share_ms": share_ms(index, batch_size, ranks),
        }
    share = batch_size // ranks
    whole = share * side * side * 3 / 1e6
    figures |= {
        "batch_size": batch_size,
        "ranks": ranks,
        "share_pictures_mb": whole,
        "ahead_whole_mb": whole * (READ_AHEAD * workers + 1 + LENT),
        "ahead_mb": in_a_process(_read_ahead, (micro_batch, side, workers, share // micro_batch)),
    }
    publish(figures, ("torch", "numpy"), json)


def write(table: Path, lists: Path, items: int) -> ShardIndex:
    """Write an index without its tars in both forms; return the first, read back."""
    places = [
        [n * 30_000, 20_000 + n, n * 30_000 + 25_000, 150, 2**31 + n] for n in range(PER_SHARD)
    ]
    rows = member_rows([GROUP] * (PER_SHARD // GROUP), places)
    shards = tuple(
        Shard(f"train-{number:06d}.tar", "train", PER_SHARD, 30_000_000, "0" * 64, rows)
        for number in range(items // PER_SHARD)
    )
    table.mkdir()
    lists.mkdir()
    index = ShardIndex(table, "large", SCHEMA, shards)
    index.write()
    with (lists / INDEX_NAME).open("w") as file:
        file.write("[")
        for number, shard in enumerate(shards):
            file.write(", " * bool(number) + json_module.dumps(shard.with_members()))
        file.write("]")
    return ShardIndex.read(table, check_files=False)


def share_ms(index: ShardIndex, batch_size: int, ranks: int) -> float:
    """Measure the milliseconds to compute a rank's rows of a batch in a new window."""
    times: list[float] = []
    for seed in range(5):
        order = SampleOrder(index.split("train"), batch_size, seed)
        order.share(0, 0, 1)  # the order of the shards is drawn once an epoch
        started = time.perf_counter()
        order.share(order.steps_per_epoch // 2, 0, batch_size // ranks)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def in_a_process(hold: Any, what: Any) -> float:
    """Call `hold(what)`, which returns megabytes, in its own process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(hold, what).result()


def _hold_lists(folder: Path) -> float:
    before = _private()
    held = json_module.loads((folder / INDEX_NAME).read_text())
    assert held
    return _private() - before


def _hold_table(folder: Path) -> float:
    before = _private()
    index = ShardIndex.read(folder, check_files=False)
    order = SampleOrder(index.split("train"), 1024, 0)
    order.share(0, 0, 1024)
    return _private() - before


class _Filled:
    """Batches of pictures that cost nothing to make."""

    leaves = False

    def __init__(self, items: int, side: int) -> None:
        self._shape = items, side, side, 3

    def shape(self, number: int) -> tuple[int, int, int, int]:
        return self._shape

    def read(self, number: int, images: np.ndarray, say: Any) -> BatchMetadata:
        images[:] = number
        count = self._shape[0]
        return BatchMetadata(np.zeros((count, 1), np.int64), [""] * count, [], [], {})


def _read_ahead(what: tuple[int, int, int, int]) -> float:
    """Return the megabytes of a stream's slots after taking a step's micro-batches."""
    items, side, workers, parts = what
    before = _shared_mb()
    batches: Any = _Filled(items, side)
    with closing(BatchStream(batches, range(2 * parts), workers, together=parts)) as stream:
        join(stream, parts)
        return _shared_mb() - before


def _private() -> float:
    return _megabytes("/proc/self/smaps_rollup", "Private_Dirty")


def _shared_mb() -> float:
    """Return the megabytes of anonymous RAM shared with the workers."""
    total = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "/dev/zero" in line:
            start, _, end = line.partition(" ")[0].partition("-")
            total += int(end, 16) - int(start, 16)
    return total / 1e6


def _megabytes(path: str, name: str) -> float:
    lines = Path(path).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


if __name__ == "__main__":
    run_program(lambda: tyro.cli(measure))
