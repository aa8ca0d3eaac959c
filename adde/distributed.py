"""Collectives over embeddings. Results are in global-batch order for any number of ranks."""

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

Answer = TypeVar("Answer")

MAIN_RANK_TIMEOUT = timedelta(hours=4)
"""Timeout for work that the main rank does alone, such as downloads at the start of a run."""

_waits: list[Any] = []
"""Durations of this process's collectives since `waited_in_collectives` last read them: seconds, or
on a GPU the events before and after, since recording them does not block."""


def waited_in_collectives() -> float:
    """Return the seconds that this rank spent in collectives since the last call.

    Most of it is waiting for other ranks. On a GPU, synchronise before calling.
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
    """The rows of the global batch that each rank holds: contiguous, in rank order.

    `counts` has the number of rows of each rank and is the same on every rank.
    """

    counts: tuple[int, ...]

    @classmethod
    def equal(cls, count: int) -> "RankRows":
        """Let every rank hold `count` rows; does not communicate."""
        return cls((count,) * world_size())

    @classmethod
    def of(cls, count: int, device: torch.device) -> "RankRows":
        """Gather the number of rows of every rank; this rank holds `count`."""
        own = torch.tensor([count], device=device)
        return cls(tuple(cls.equal(1).gather(own).tolist()))

    @property
    def start(self) -> int:
        """Position of this rank's first row in the global batch."""
        return sum(self.counts[: rank()])

    def gather(self, rows: Tensor) -> Tensor:
        """Gather the rows (n, ...) of all ranks; the result is the same on each.

        The backward pass sums the gradients of all ranks' losses in these rows. If each rank's loss
        is a sum over its own anchors, every rank receives the gradient of the global sum. Ranks
        with fewer rows pad them for the transfer; the padding is removed.
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
        """Return this rank's rows of a tensor in global-batch order."""
        return global_rows[self.start : self.start + self.counts[rank()]]

    def columns(self, device: torch.device) -> Tensor:
        """Return (n,) int64, the positions of this rank's rows in the global batch."""
        return torch.arange(self.start, self.start + self.counts[rank()], device=device)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum element-wise over ranks, without gradient."""
    values = values.detach().clone()
    if world_size() > 1:
        with _waiting(values.device):
            dist.all_reduce(values)
    return values


def broadcast_from_main(ask: Callable[[], Answer]) -> Answer:
    """Call a function on the main rank only and return its result on all ranks.

    Raises:
        UserError: on all ranks, if the function raised UserError or OSError.
    """
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = ask()
        except (UserError, OSError) as error:
            found[1] = str(error)
    if world_size() > 1:
        # NCCL's collectives would time out after minutes.
        group: Any = dist.new_group(backend="gloo", timeout=MAIN_RANK_TIMEOUT)
        dist.broadcast_object_list(found, group=group)
        dist.destroy_process_group(group)
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def gather_objects(mine: Any) -> list[Any]:
    """Gather one picklable object from each rank, in rank order; the result is on all ranks."""
    everyone = [mine]
    if world_size() > 1:
        everyone = [None] * world_size()
        dist.all_gather_object(everyone, mine)
    return everyone


def _all_gather(rows: Tensor) -> Tensor:
    with _waiting(rows.device):
        if not rows.requires_grad:
            gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
            dist.all_gather_into_tensor(gathered, rows)
            return gathered
        everyone = dist.group.WORLD
        assert everyone is not None
        gathered: Any = functional.all_gather_tensor_autograd(rows, gather_dim=0, group=everyone)
        if isinstance(gathered, functional.AsyncCollectiveTensor):
            gathered.wait()  # would otherwise happen at first use, outside the timed region
        return gathered
