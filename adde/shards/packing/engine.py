"""The engines that write shards: processes of this machine, or a Ray cluster."""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Literal

from adde.shards.packing.ray_data import map_jobs, on_row, ray_cluster
from adde.shards.packing.tar import Packed, ShardJob
from adde.shards.packing.workers import in_order
from adde.shards.packing.writer import Run

Engine = Literal["processes", "ray"]

MIN_ROUND = 256
"""Least number of jobs that Ray receives at a time."""


def engine(name: Engine, workers: int | None) -> Run:
    """Return the function that executes the jobs of `write_tars`.

    Args:
        name: Processes of this machine, or Ray Data; see `adde.shards.packing.ray_data`.
        workers: Number of processes; one per core if None. Ray chooses its own.
    """
    return _on_ray if name == "ray" else partial(in_order, workers=workers)


def _on_ray(
    work: Callable[[ShardJob], Packed], jobs: Iterable[ShardJob]
) -> Generator[Packed, None, None]:
    with ray_cluster("--engine ray") as ray:
        at_a_time = max(MIN_ROUND, 4 * int(ray.cluster_resources().get("CPU", 1)))
        yield from map_jobs(partial(on_row, work), jobs, at_a_time)
