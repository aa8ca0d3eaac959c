"""What a run was started with: code, versions, ranks, device."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from adde.distributed import world_size

PACKAGES = ("adde", "torch", "timm", "accelerate")


def describe_start() -> dict[str, Any]:
    """Plain values by name; `commit` and `dirty` are null where the code is no git checkout."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        **git_state(),
        "ranks": world_size(),
        "device": gpu or platform.machine(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """`commit`, and whether tracked files differ from it (`dirty`), of the checkout of a folder."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no checkout, or one that is not this user's
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
