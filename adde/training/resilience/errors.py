"""What an error of training means for the person who started it."""

import torch

from adde.distributed import rank
from adde.errors import UserError
from adde.loading.loader import BatchStream
from adde.training.resilience.heartbeat import Heartbeat

LESS = "raise data.accumulation (with data.cached to mine in the whole batch all the same)"


def explain(
    error: BaseException, step: int, stream: BatchStream | None, heartbeat: Heartbeat
) -> BaseException:
    """A UserError that names the rank and what to do, where the cause is known; else `error`.

    Args:
        error: that ended this rank's training.
        step: in which it did.
        stream: which reads the batches, if any does.
        heartbeat: which knows of the other ranks.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"rank {rank()}, step {step}: the GPU is out of memory: {LESS}, lower "
            "evaluation.batch_size if it was in an evaluation, or see launch/pick.py for a "
            f"strategy that cuts the weights over the ranks. {_first_line(error)}"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return UserError(
            f"rank {rank()}, step {step}: the machine is out of memory: {LESS}, or lower "
            f"data.workers or the number of ranks on this machine. {_first_line(error)}"
        )
    if isinstance(error, RuntimeError):
        if stream is not None and (told := stream.explain(error)) is not error:
            return told
        return heartbeat.explain(error)
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
