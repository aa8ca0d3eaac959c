"""Compare all ranks before the first step, and record the start in preflight.jsonl."""

import hashlib
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import adde
from adde.distributed import gather_objects, sum_over_ranks, world_size
from adde.errors import UserError
from adde.shards.index import ShardIndex
from adde.training.config import Config
from adde.training.resilience.git_info import git_state

PREFLIGHT_NAME = "preflight.jsonl"

PROBE_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Size of the tensor whose all-reduce is timed, by device type."""

LARGEST_SKEW = 1.0
"""Seconds by which the ranks' clocks may differ without a warning."""

PER_RANK_SETTINGS = ("data.shards", "data.workers")
"""Settings that may differ between ranks; the shards' contents are compared by fingerprint."""

PACKAGES = ("torch", "accelerate", "deepspeed", "timm", "numpy")


@dataclass(frozen=True)
class Preflight:
    """The result of the comparison; equal on every rank."""

    restarts: int
    """How often the launcher has restarted this run's ranks."""
    launch: str
    """The launcher's name for this job; empty if it has none."""
    facts: dict[str, str]
    """Versions and hashes that are equal on all ranks."""
    all_reduce_gb_per_s: float
    """Bytes of the tensor per second; 0 for a single rank."""
    clock_skew_s: float

    def resumes(self, run: Path) -> bool:
        """Whether the launcher has started `run` before, so that it resumes without --resume."""
        return self.restarts > 0 or (self.launch != "" and self.launch == _last_launch(run))

    def write(self, run: Path, step: int) -> dict[str, Any]:
        """Print this start and append it to preflight.jsonl, with the state of the git checkout.

        Returns:
            The appended record.
        """
        where = f"{world_size()} rank{'s' if world_size() > 1 else ''} on {self.facts['device']}"
        restarted = f", restart {self.restarts}" if self.restarts else ""
        versions = ", ".join(f"{p} {self.facts[p]}" for p in PACKAGES if p in self.facts)
        print(
            f"preflight: {where}{restarted}; code {self.facts['code']}, {versions}; "
            f"float32 is computed as {self.facts['float32']}"
        )
        if world_size() > 1:
            print(
                f"preflight: ranks agree; all-reduce {self.all_reduce_gb_per_s:.2f} GB/s, "
                f"clocks {self.clock_skew_s:.3f} s apart"
            )
        if self.clock_skew_s > LARGEST_SKEW:
            print(
                f"warning: the ranks' clocks are {self.clock_skew_s:.1f} s apart, so times in the "
                "logs of several machines cannot be compared; synchronise them (chrony)"
            )
        start = {"time": round(time.time(), 3), "step": step, "ranks": world_size()}
        record = {**start, **git_state(), **vars(self)}
        with (run / PREFLIGHT_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record


def preflight(config: Config, index: ShardIndex, device: torch.device) -> Preflight:
    """Compare all ranks, and measure the connection between them; on all ranks.

    Raises:
        UserError: they differ; names the ranks and what each has.
    """
    facts = _facts(config, index, device)
    require_same(facts)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return Preflight(
        # A machine that joined later has a lower count.
        restarts=max(gather_objects(restarts)),
        launch="" if launch == "none" else launch,
        facts={key: value for key, value in facts.items() if not key.startswith("recipe ")},
        all_reduce_gb_per_s=_bandwidth(device),
        clock_skew_s=_clock_skew(device),
    )


def require_same(facts: dict[str, str]) -> None:
    """Check that all ranks have the same facts; on all ranks.

    Raises:
        UserError: they differ; names the ranks and what each has.
    """
    everyone = gather_objects(facts)
    differences: list[str] = []
    for key in dict.fromkeys(key for found in everyone for key in found):
        holders: dict[str, list[int]] = {}
        for other, found in enumerate(everyone):
            holders.setdefault(found.get(key, "nothing"), []).append(other)
        if len(holders) > 1:
            parts = [f"{value} on {_ranks(ranks)}" for value, ranks in holders.items()]
            differences.append(f"{key}: {', '.join(parts)}")
    if differences:
        raise UserError(
            "expected the same on all ranks, found " + "; ".join(differences[:5]) + ". Start all "
            "ranks with the same command, from the same code, environment, run folder and shards"
        )


def _facts(config: Config, index: ShardIndex, device: torch.device) -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    splits = {shard.split for shard in index.shards}
    return {
        "device": device.type,
        "float32": "TF32" if config.precision == "tf32" else "IEEE float32",
        "code": _code_hash(),
        **versions,
        "schema": index.schema.hash[:12],
        **{f"{split} shards": index.fingerprint(split)[:12] for split in sorted(splits)},
        **{f"recipe {key}": value for key, value in _flatten(config.to_json()).items()},
    }


def _code_hash() -> str:
    """Hash the source of this package and of the program; a checkout may have uncommitted edits."""
    digest = hashlib.sha256()
    package = Path(adde.__file__).parent
    program = getattr(sys.modules["__main__"], "__file__", None)
    for file in [*sorted(package.rglob("*.py")), *([Path(program)] if program else [])]:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= _flatten(value, f"{name}.")
        elif name not in PER_RANK_SETTINGS:
            found[name] = repr(value)
    return found


def _bandwidth(device: torch.device) -> float:
    if world_size() == 1:
        return 0.0
    probe = torch.zeros(PROBE_BYTES[device.type] // 4, device=device)
    times: list[float] = []
    for _ in range(3):  # the first opens connections
        started = time.perf_counter()
        sum_over_ranks(probe)[0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return probe.numel() * 4 / min(times[1:]) / 1e9


def _clock_skew(device: torch.device) -> float:
    sum_over_ranks(torch.zeros(1, device=device)).item()  # wait for all ranks
    clocks = gather_objects(time.time())
    return max(clocks) - min(clocks)


def _last_launch(run: Path) -> str:
    path = run / PREFLIGHT_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1])["launch"] if lines else ""


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
