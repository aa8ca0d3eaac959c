"""Collectives in global-batch order, which give the same result on any number of ranks."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from adde.errors import UserError

Result = TypeVar("Result")

RENAMED = hasattr(dist, "all_gather_single")
"""torch 2.14 renames `all_gather_into_tensor`, and warns about the old name."""

MAIN_RANK_TIMEOUT = timedelta(hours=4)
"""How long ranks wait for rank 0 to read, check or download something at the start."""

_waits: list[Any] = []
"""Durations of this process's collectives since the last sum: seconds, or on a GPU pairs of
events, whose recording does not wait."""


def waited_in_collectives() -> float:
    """Return the seconds that this rank spent in the collectives below since the last call.

    Most of that is waiting for other ranks. On a GPU, call it after a synchronisation.
    """
    seconds = sum(w if isinstance(w, float) else w[0].elapsed_time(w[1]) / 1e3 for w in _waits)
    _waits.clear()
    return seconds


@contextlib.contextmanager
def _waiting(device: torch.device) -> Iterator[None]:
    with torch.profiler.record_function("adde/collectives"):
        if device.type != "cuda":
            started = time.perf_counter()
            yield
            _waits.append(time.perf_counter() - started)
            return
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        yield
        events[1].record()
        _waits.append(events)


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


@dataclass(frozen=True)
class RankRows:
    """The rows of the global batch on each rank: a contiguous range each, in rank order.

    `counts` are the ranks' numbers of rows, the same tuple on every rank.
    """

    counts: tuple[int, ...]

    @classmethod
    def equal(cls, count: int) -> "RankRows":
        """Every rank holds `count` rows; without communication."""
        return cls((count,) * world_size())

    @classmethod
    def of(cls, count: int, device: torch.device) -> "RankRows":
        """This rank holds `count` rows; a collective gathers the other counts."""
        own = torch.tensor([count], device=device)
        return cls(tuple(cls.equal(1).gather(own).tolist()))

    @property
    def start(self) -> int:
        """Index of this rank's first row in the global batch."""
        return sum(self.counts[: rank()])

    def gather(self, rows: Tensor) -> Tensor:
        """Gather this rank's rows (n, ...) to those of all ranks, the same on each.

        The gradient of a row is the sum over ranks of the gradients of their losses. If the loss is
        a sum over local anchors, every rank receives the gradient of the global sum. Ranks with
        fewer rows pad for the transfer; the padding is removed.
        """
        if len(self.counts) == 1:
            return rows
        longest = max(self.counts)
        if len(rows) < longest:
            rows = torch.cat([rows, rows.new_zeros((longest - len(rows), *rows.shape[1:]))])
        gathered = _all_gather(rows.contiguous())
        if min(self.counts) == longest:
            return gathered
        parts = gathered.split(longest)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts)])

    def local(self, global_rows: Tensor) -> Tensor:
        """Select this rank's rows of a tensor in global-batch order."""
        return global_rows[self.start : self.start + self.counts[rank()]]

    def columns(self, device: torch.device) -> Tensor:
        """Return (n,) int64: indices of this rank's rows in the global batch."""
        return torch.arange(self.start, self.start + self.counts[rank()], device=device)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum element-wise over ranks, without a gradient."""
    values = values.detach().clone()
    if world_size() > 1:
        with _waiting(values.device):
            dist.all_reduce(values)
    return values


def broadcast_from_main(fn: Callable[[], Result]) -> Result:
    """Call `fn` on rank 0, and return its result on all ranks.

    Raises:
        UserError: `fn` raised it or an OSError; on all ranks.
    """
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = fn()
        except (UserError, OSError) as error:
            found[1] = str(error)
    if world_size() > 1:
        # Use another group, because NCCL's collectives time out after minutes.
        group: Any = dist.new_group(backend="gloo", timeout=MAIN_RANK_TIMEOUT)
        dist.broadcast_object_list(found, group=group)
        dist.destroy_process_group(group)
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def gather_objects(mine: Any) -> list[Any]:
    """Gather a picklable object from every rank, in rank order, on all ranks."""
    everyone = [mine]
    if world_size() > 1:
        everyone = [None] * world_size()
        dist.all_gather_object(everyone, mine)
    return everyone


def all_gather(rows: Tensor) -> Tensor:
    """Gather rows (n, ...), the same number on every rank, in rank order, without a gradient."""
    gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    name = "all_gather_single" if RENAMED else "all_gather_into_tensor"
    getattr(dist, name)(gathered, rows)
    return gathered


def _all_gather(rows: Tensor) -> Tensor:
    with _waiting(rows.device):
        if not rows.requires_grad:
            return all_gather(rows)
        everyone = dist.group.WORLD
        assert everyone is not None
        name = "all_gather_single_autograd" if RENAMED else "all_gather_tensor_autograd"
        gathered = getattr(functional, name)(rows, gather_dim=0, group=everyone)
        if isinstance(gathered, functional.AsyncCollectiveTensor):
            gathered.wait()  # here, so that the wait is timed
        return gathered
