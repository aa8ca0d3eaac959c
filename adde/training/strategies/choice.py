"""Open the strategy that `accelerate launch` asked for in the environment."""

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
from adde.errors import UserError, reason
from adde.mining.distances import allow_tf32
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Rate
from adde.training.resilience.requirements import asked_for_cpu, on_gpus, require_device
from adde.training.strategies.strategy import DataParallel, Strategy


def open_accelerator(config: Config) -> Accelerator:
    """Open this process's Accelerator, and join the other ranks.

    Raises:
        UserError: the precision or a GPU is not available, or DeepSpeed is not installed.
    """
    require_device()
    handlers: list[Any] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _join_ranks(config.limits.stall)
        # Otherwise Accelerate under DeepSpeed takes CPU ranks for single processes.
        if not on_gpus():
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if is_launched("DEEPSPEED"):
        _prepare_deepspeed()
    _check_precision(config.precision)
    if config.compile:
        _check_compiler()
    # Under DeepSpeed the engine does the autocast.
    plain = config.precision in ("fp32", "tf32") or is_launched("DEEPSPEED")
    # Accelerate's own FSDP wraps nothing on the CPU, so it must not see that (see fsdp.py).
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        accelerator = Accelerator(
            mixed_precision="no" if plain else config.precision,
            dynamo_backend="inductor" if config.compile else None,
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise UserError(f"precision: {config.precision!r} is not available here: {error}") from None
    finally:
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp
    allow_tf32(config.precision == "tf32")  # Accelerate enables it with a dynamo backend
    return accelerator


def _join_ranks(stall: float) -> None:
    """Open the process group, with keys of this start in the store.

    The launcher's store may outlive a restart (torchrun's static rendezvous). With the keys of the
    start before, ranks would wait for addresses of ranks that are gone. A store that rank 0 opens
    is new; there the count of restarts must not be part of the key, because a machine that joined
    later has a lower count.
    """
    # Let the heartbeat report first: it knows for which rank the others wait.
    timeout = timedelta(seconds=stall + 60) if stall else timedelta(days=365)
    store, own, ranks = next(dist.rendezvous("env://", timeout=timedelta(minutes=30)))
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if of_launcher else "of this store"
    cuda = on_gpus()
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
    model: nn.Module,
    config: Config,
    rates: Mapping[str, Rate] = NO_RATES,
) -> Strategy:
    """Open the launched strategy around the full model, for one stage with its `rates`."""
    return _strategy(accelerator)(accelerator, model, config, rates)


def full_model_device(accelerator: Accelerator) -> torch.device:
    """Return the device of the full model between evaluations.

    That is the CPU if a sharded model is trained: the rank's device may not have room for both.
    """
    return torch.device("cpu") if _strategy(accelerator).sharded else accelerator.device


def _strategy(accelerator: Accelerator) -> type[Strategy]:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from adde.training.strategies.zero import Zero

        return Zero
    if is_launched("FSDP") and world_size() > 1:
        from adde.training.strategies.fsdp import FullyShard

        return FullyShard
    return DataParallel


def is_launched(strategy: str) -> bool:
    """Whether `accelerate launch` asked for FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{strategy}", "false").lower() == "true"


def _check_precision(precision: str) -> None:
    # Accelerate would train in float32 without a message.
    if precision in ("fp16", "tf32") and not on_gpus():
        raise UserError(
            f"precision: expected fp32 or bf16 on the CPU, found {precision}, which needs a GPU"
        )
    if precision == "fp16" and (is_launched("DEEPSPEED") or is_launched("FSDP")):
        raise UserError(
            "precision: expected fp32 or bf16 under FSDP2 and DeepSpeed, found fp16, whose loss "
            "scale would be lost on resume; use bf16, or launch/ddp.yaml"
        )


def _check_compiler() -> None:
    """Raise UserError if torch.compile cannot work here: it would fail in the first step."""
    if is_launched("DEEPSPEED"):
        raise UserError(
            "compile: expected false under DeepSpeed, whose hooks cannot be compiled, found true; "
            "use launch/fsdp2.yaml or launch/ddp.yaml"
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    try:
        compiler = get_cpp_compiler()
    except Exception as error:  # its own type
        raise UserError(
            f"compile: expected a C++ compiler (g++, or the environment's CXX), found none: "
            f"{reason(error)}; install one, or set compile = false"
        ) from None
    if on_gpus() and not has_triton():
        raise UserError(
            f"compile: expected Triton beside {compiler}, found none that this GPU can use; set "
            "compile = false"
        )


def _prepare_deepspeed() -> None:
    try:
        import deepspeed.ops
    except ImportError as error:
        raise UserError(
            f"DeepSpeed was asked for and cannot be imported ({error}): "
            "pip install 'adde[train,deepspeed]'"
        ) from None
    if asked_for_cpu() and torch.cuda.is_available():
        raise UserError(
            "expected no visible GPUs for DeepSpeed on the CPU, because Accelerate would use them: "
            "set CUDA_VISIBLE_DEVICES= beside DS_ACCELERATOR=cpu"
        )
    if not torch.cuda.is_available():
        # Otherwise it compiles a shared-memory extension for 90 s; gloo does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
