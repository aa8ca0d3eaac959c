"""Checks before the first step: devices, splits, the run's folder, and disk space."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from adde.distributed import broadcast_from_main, gather_objects, rank
from adde.errors import UserError
from adde.files import temporary_sibling
from adde.shards.index import ShardIndex
from adde.training.config import Config
from adde.training.resilience.topology import checkpoint_bytes_per_parameter

VISIBLE_WITHIN = 30.0
"""Seconds until a file that one machine has written is visible on the others: NFS clients cache for
a while that there was none."""


def asked_for_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Accelerate or DeepSpeed was told to train on the CPU."""
    cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return cpu or environment.get("DS_ACCELERATOR") == "cpu"


def on_gpus() -> bool:
    """Whether this process trains on a GPU."""
    return torch.cuda.is_available() and not asked_for_cpu()


def require_device(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to train on the CPU if GPUs were asked for.

    Raises:
        UserError: several ranks, or CUDA_VISIBLE_DEVICES, ask for GPUs, and torch sees too few.
    """
    if asked_for_cpu(environment):
        return
    several = int(environment.get("WORLD_SIZE", "1")) > 1
    asked = environment.get("CUDA_VISIBLE_DEVICES", "-1") not in ("", "-1")
    local, there = int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if (several or asked) and local >= there:
        raise UserError(
            f"rank {environment.get('RANK', '0')}: expected GPU {local} on {os.uname().nodename}, "
            f"found {there} that torch sees (nvidia-smi, CUDA_VISIBLE_DEVICES); start fewer "
            "processes, or set ACCELERATE_USE_CPU=true (for DeepSpeed DS_ACCELERATOR=cpu and "
            "CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )


def require_split(index: ShardIndex, split: str, training: bool = False) -> None:
    """Raise UserError if the shards lack a split; the message says how to get it."""
    if split not in index.splits:
        remedy = _split_remedy(index, split, training)
        raise UserError(f"{index.root}: expected a split {split!r}, {remedy}")


def warn_early(index: ShardIndex, environment: Mapping[str, str] = os.environ) -> None:
    """Print warnings about what would fail only after the training, or look like a hang."""
    if "test" not in index.splits:
        print(
            f"warning: {index.root}: there is no test split, so train/evaluate.py and "
            f"export/to_onnx.py will fail; {_split_remedy(index, 'test')}"
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        print(
            f"warning: Accelerate compiles the model with {backend} (dynamo_backend in its "
            "default_config.yaml, which `accelerate env` shows, or --dynamo_backend): the first "
            "steps of each stage may take minutes; `accelerate launch --dynamo_backend no` "
            "switches it off"
        )


def _split_remedy(index: ShardIndex, split: str, training: bool = False) -> str:
    """Say how to continue with shards that lack a split."""
    ways = [f"--split {name}" for name in index.splits if name != "train"] + ["--shards"]
    if training:
        ways = ["--data.shards"]  # no other split can replace it
    return (
        f"found {' and '.join(index.splits) or 'none'}; continue with {' or '.join(ways)} for "
        "shards of the same attributes that have one. shards/build.py makes the split with "
        f"--{split}-share 0.1, or from a column of splits in a table; train on the new shards "
        "then, because items that a run was trained on cannot test it"
    )


def require_shared(run: Path, writer: str) -> None:
    """Check that every rank sees the run's folder of rank 0; on all ranks.

    All ranks write their parts of checkpoints there, so the first checkpoint would fail otherwise.

    Args:
        run: the folder, which rank 0 has made.
        writer: rank 0's process (`adde.files.this_process`).

    Raises:
        UserError: names the ranks that do not see it, and their machines.
    """
    marker = temporary_sibling(run / "shared", writer)
    broadcast_from_main(marker.touch)
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    nodes = gather_objects(None if marker.exists() else os.uname().nodename)
    if rank() == 0:
        marker.unlink()
    if blind := {number: node for number, node in enumerate(nodes) if node is not None}:
        raise UserError(
            f"{run}: expected a folder that all ranks share, found that files which {writer} "
            "writes there are not visible to "
            f"{'; '.join(f'rank {n} on {node}' for n, node in blind.items())}; put --run on a disk "
            "that all machines have at the same path"
        )


def require_room(config: Config, model: nn.Module) -> None:
    """Check that the run's disk has room for the checkpoints that are kept; on rank 0.

    Raises:
        UserError: it has less.
    """
    parameters = sum(p.numel() for p in model.parameters())
    one = parameters * checkpoint_bytes_per_parameter(config)
    # Those kept, the best, and the one that is written before the oldest is deleted.
    needed = one * (config.checkpoints.keep + 2)
    existing = (config.run / "checkpoints").rglob("*")
    used = sum(f.stat().st_size for f in existing if f.is_file())
    free = shutil.disk_usage(config.run).free
    if used + free < needed:
        raise UserError(
            f"{config.run}: expected room for {needed / 1e9:.2f} GB of checkpoints "
            f"({config.checkpoints.keep} kept, the best, and one being written, of "
            f"{one / 1e9:.2f} GB), found {free / 1e9:.2f} GB free; free some, name another folder "
            "with --run, or lower checkpoints.keep"
        )
