"""Ray Data for packing and for embedding: the cluster of RAY_ADDRESS, or one on this machine.

The machines of a cluster must have adde installed and see the same folders.
"""

import importlib
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from adde.errors import UserError

Row = dict[str, bytes]


@contextmanager
def ray_cluster(option: str) -> Generator[Any]:
    """Connect to the cluster and yield the module `ray`; disconnect what this call connected.

    Raises:
        UserError: ray is not installed, or a task failed; names `option` and the reason.
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ImportError:
        raise UserError(f"{option}: expected ray; pip install 'adde[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause: object = getattr(error, "cause", None) or error
        reason = str(cause).strip().splitlines()[-1]
        raise UserError(f"{option}: a task failed: {reason}") from error
    finally:
        if started:
            ray.shutdown()


def map_jobs(
    work: Callable[..., Any], jobs: Iterable[Any], at_a_time: int, **options: Any
) -> Iterator[Any]:
    """Yield the result of each job in the order of `jobs`.

    Args:
        work: Function of a row, or class of actors that are; see `on_row`.
        jobs: Picklable.
        at_a_time: Jobs that Ray receives at once; this bounds the memory of its object store.
        options: Further arguments of `ray.data.Dataset.map`.
    """
    data: Any = importlib.import_module("ray.data")
    left = iter(jobs)
    while some := [{"job": pickle.dumps(job)} for job in islice(left, at_a_time)]:
        done = data.from_items(some, override_num_blocks=len(some)).map(work, **options)
        for row in done.iter_rows():
            yield pickle.loads(row["result"])


def on_row(work: Callable[[Any], Any], row: Row) -> Row:
    """Apply `work` to the job in a row of Ray Data."""
    return {"result": pickle.dumps(work(pickle.loads(row["job"])))}
