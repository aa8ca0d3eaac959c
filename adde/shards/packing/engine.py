"""Where shards are written: in processes of this machine, or on a Ray cluster."""

import importlib
import pickle
from collections.abc import Callable, Generator, Iterable
from functools import partial
from itertools import islice
from typing import Any, Literal

from adde.errors import UserError
from adde.shards.packing.tar import Packed, ShardJob
from adde.shards.packing.workers import in_order
from adde.shards.packing.writer import Run

Engine = Literal["processes", "ray"]

ROUND = 256
"""Least number of jobs that Ray is handed at a time; what bounds the memory of its object store."""


def engine(name: Engine, workers: int | None) -> Run:
    """What does the work of `write_tars`.

    Args:
        name: processes of this machine, or Ray Data: the cluster that RAY_ADDRESS names, or one
            started on this machine. A cluster's machines share the folder and have adde installed.
        workers: processes; None is one per core. Ray decides for itself.
    """
    return on_ray if name == "ray" else partial(in_order, workers=workers)


def on_ray(
    work: Callable[[ShardJob], Packed], jobs: Iterable[ShardJob]
) -> Generator[Packed, None, None]:
    """`work` of each job as a Ray Data pipeline, in the order of `jobs`.

    Raises:
        UserError: ray is not installed, or a task failed; says why.
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ImportError:
        raise UserError("--engine ray: expected ray; pip install 'adde[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    data.DataContext.get_current().execution_options.preserve_order = True
    data.DataContext.get_current().enable_progress_bars = False
    at_a_time = max(ROUND, 4 * int(ray.cluster_resources().get("CPU", 1)))
    left = iter(jobs)
    try:
        while some := [{"job": pickle.dumps(job)} for job in islice(left, at_a_time)]:
            done = data.from_items(some, override_num_blocks=len(some)).map(partial(_row, work))
            for row in done.iter_rows():
                yield pickle.loads(row["packed"])
    except ray.exceptions.RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise UserError(f"--engine ray: a task failed: {reason}") from error
    finally:
        if started:
            ray.shutdown()


def _row(work: Callable[[ShardJob], Packed], row: dict[str, bytes]) -> dict[str, bytes]:
    return {"packed": pickle.dumps(work(pickle.loads(row["job"])))}
