"""Which strategy `accelerate launch` asked for, read from what it leaves in the environment."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import nn

from adde.distributed import world_size
from adde.errors import UserError
from adde.mining.distances import allow_tf32
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Rate
from adde.training.resilience.preflight import asked_for_cpu, require_device
from adde.training.strategies.replicated import Replicated


def open_accelerator(config: Config) -> Accelerator:
    """This process's Accelerator.

    Raises:
        UserError: the precision or a GPU cannot be had here, or DeepSpeed is not installed.
    """
    require_device()
    handlers: list[Any] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _join_ranks(config.limits.stall)
        # Without being told, Accelerate under DeepSpeed takes CPU ranks for lone processes.
        if not _on_gpus():
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if _asked("DEEPSPEED"):
        _ready_deepspeed()
    _check_precision(config.precision)
    # Under DeepSpeed autocast is the engine's.
    plain = config.precision in ("fp32", "tf32") or _asked("DEEPSPEED")
    # Accelerate's own FSDP wraps nothing on the CPU: it is to see plain ranks (see fsdp.py).
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        accelerator = Accelerator(
            mixed_precision="no" if plain else config.precision, kwargs_handlers=handlers
        )
    except ValueError as error:
        raise UserError(f"precision: {config.precision!r} cannot be had here: {error}") from None
    finally:
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp
    allow_tf32(config.precision == "tf32")  # with a dynamo backend Accelerate switches it on
    return accelerator


def _join_ranks(stall: float) -> None:
    """Opens the process group, under keys of this start.

    The launcher's store may outlive a restart, and ranks that look there under the same keys as
    before would wait for addresses of ranks that are gone (torchrun's static rendezvous). A store
    that rank 0 opens is new, and there the count of restarts must not be looked at: a machine
    that came later has seen fewer.
    """
    # The heartbeat is to speak first: it knows for whom the others wait.
    timeout = timedelta(seconds=stall + 60) if stall else timedelta(days=365)
    store, own, ranks = next(dist.rendezvous("env://", timeout=timedelta(minutes=30)))
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if of_launcher else "of this store"
    cuda = _on_gpus()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"start {start}", store),
        rank=own,
        world_size=ranks,
        timeout=timeout,
    )


def open_strategy(
    accelerator: Accelerator,
    plain: nn.Module,
    config: Config,
    rates: Mapping[str, Rate] = NO_RATES,
) -> Replicated:
    """The launched strategy around `plain`, for one stage with its `rates`."""
    return _strategy(accelerator)(accelerator, plain, config, rates)


def home_of_whole(accelerator: Accelerator) -> torch.device:
    """Where the plain model lies but while it is evaluated.

    That is the CPU where another is trained: the rank's device then has no room for both.
    """
    return torch.device("cpu") if _strategy(accelerator).sharded else accelerator.device


def _strategy(accelerator: Accelerator) -> type[Replicated]:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from adde.training.strategies.zero import Zero

        return Zero
    if _asked("FSDP") and world_size() > 1:
        from adde.training.strategies.fsdp import FullyShard

        return FullyShard
    return Replicated


def _on_gpus() -> bool:
    return torch.cuda.is_available() and not asked_for_cpu()


def _asked(strategy: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{strategy}", "false").lower() == "true"


def _check_precision(precision: str) -> None:
    # Training would be in float32 and say nothing.
    if precision in ("fp16", "tf32") and not _on_gpus():
        raise UserError(
            f"precision: expected fp32 or bf16 on the CPU, found {precision}, which needs a GPU"
        )
    if precision == "fp16" and (_asked("DEEPSPEED") or _asked("FSDP")):
        raise UserError(
            "precision: expected fp32 or bf16 under FSDP2 and DeepSpeed, found fp16, whose loss "
            "scale they keep out of checkpoints; use bf16, or launch/ddp.yaml"
        )


def _ready_deepspeed() -> None:
    try:
        import deepspeed.ops
    except ImportError as error:
        raise UserError(
            f"DeepSpeed was asked for and cannot be imported ({error}): "
            "pip install 'adde[train,deepspeed]'"
        ) from None
    if asked_for_cpu() and torch.cuda.is_available():
        raise UserError(
            "expected no GPUs in sight of DeepSpeed on the CPU, which Accelerate would take: set "
            "CUDA_VISIBLE_DEVICES= beside DS_ACCELERATOR=cpu"
        )
    if not torch.cuda.is_available():
        # Else it compiles a shared-memory extension for 90 s that gloo does as well without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
