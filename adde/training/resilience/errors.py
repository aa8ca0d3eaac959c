"""Explain to the user why training ended; the only place that interprets its exceptions."""

import torch

from adde.distributed import rank
from adde.errors import UserError
from adde.loading.loader import BatchStream
from adde.training.resilience.heartbeat import Heartbeat

REDUCE_BATCH = "raise data.accumulation (with data.cached to still mine in the whole batch)"


def explain(
    error: BaseException, step: int, stream: BatchStream | None, heartbeat: Heartbeat
) -> BaseException:
    """Return a UserError that names the rank and the remedy if the cause is known, else `error`.

    Args:
        error: ended this rank's training.
        step: number of completed steps.
        stream: reads the batches; None outside a stage.
        heartbeat: knows the state of the other ranks.
    """
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    where = f"rank {rank()}, step {step}"
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"{where}: the GPU is out of memory: {REDUCE_BATCH}, lower evaluation.batch_size if "
            "it happened in an evaluation, or run launch/pick.py for a strategy that shards the "
            f"weights. {first_line}"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return UserError(
            f"{where}: the machine is out of memory: {REDUCE_BATCH}, or lower data.workers or the "
            f"number of ranks on this machine. {first_line}"
        )
    if not isinstance(error, RuntimeError):
        return error
    if stream is not None and (explained := stream.explain(error)) is not error:
        return explained
    cause = heartbeat.find_cause(error)
    return error if cause is None else UserError(cause)
