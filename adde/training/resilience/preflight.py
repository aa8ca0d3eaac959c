"""Before the first step: that all ranks run the same, and that there is what the run needs."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adde
from adde.distributed import broadcast_from_main, gather_objects, rank, sum_over_ranks, world_size
from adde.errors import UserError
from adde.files import temporary_sibling
from adde.shards.index import ShardIndex
from adde.training.config import Config
from adde.training.resilience.code_state import git_state

PREFLIGHT_NAME = "preflight.jsonl"

PROBE_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Of the tensor whose all-reduce is timed."""

LARGEST_SKEW = 1.0
"""Seconds that the ranks' clocks may be apart without a warning."""

SEEN_WITHIN = 30.0
"""Seconds after which a file that one machine has made is on the others: NFS remembers for a while
that there was none.
"""

OWN = ("data.shards", "data.workers")
"""Settings that ranks may have of their own; what the shards hold is compared by fingerprint."""

PACKAGES = ("torch", "accelerate", "deepspeed", "timm", "numpy")


@dataclass(frozen=True)
class Preflight:
    """What was found; the same on every rank."""

    restarts: int
    """Times that the launcher has started this run's ranks again."""
    launch: str
    """The launcher's name for this job; empty where it gives none."""
    facts: dict[str, str]
    """On which all ranks agree: versions, hashes."""
    all_reduce_gb_per_s: float
    """Bytes of the tensor a second; 0 for a rank alone."""
    clock_skew_s: float

    def resumes(self, run: Path) -> bool:
        """Whether the launcher has started `run` before, so that it is to go on by itself."""
        return self.restarts > 0 or (self.launch != "" and self.launch == _last_launch(run))

    def write(self, run: Path, step: int) -> dict[str, Any]:
        """Adds this start to `run`/preflight.jsonl, and prints it in two lines; returns what it
        added, with the state of the code's checkout.
        """
        where = f"{world_size()} rank{'s' if world_size() > 1 else ''} on {self.facts['device']}"
        again = f", restart {self.restarts}" if self.restarts else ""
        versions = ", ".join(f"{p} {self.facts[p]}" for p in PACKAGES if p in self.facts)
        print(
            f"preflight: {where}{again}; code {self.facts['code']}, {versions}; "
            f"float32 is computed as {self.facts['float32']}"
        )
        if world_size() > 1:
            print(
                f"preflight: ranks agree; all-reduce {self.all_reduce_gb_per_s:.2f} GB/s, "
                f"clocks {self.clock_skew_s:.3f} s apart"
            )
        if self.clock_skew_s > LARGEST_SKEW:
            print(
                f"warning: the ranks' clocks are {self.clock_skew_s:.1f} s apart: times in logs of "
                "several machines cannot be compared; have them follow one time server (chrony)"
            )
        when = {"time": round(time.time(), 3), "step": step, "ranks": world_size()}
        line = {**when, **git_state(), **vars(self)}
        with (run / PREFLIGHT_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def asked_for_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Accelerate or DeepSpeed was told to train on the CPU, whatever GPUs there are."""
    cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return cpu or environment.get("DS_ACCELERATOR") == "cpu"


def require_device(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses to train on the CPU where GPUs were asked for.

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
    """Refuses shards without a split. Raises UserError that says how to go on."""
    if split not in index.splits:
        ways = _ways(index, split, training)
        raise UserError(f"{index.root}: expected a split {split!r}, {ways}")


def say_what_will_fail(index: ShardIndex, environment: Mapping[str, str] = os.environ) -> None:
    """Prints what would come out only after the training, or look like a hang at its start."""
    if "test" not in index.splits:
        print(
            f"warning: {index.root}: there is no test split, so that train/evaluate.py and "
            f"export/to_onnx.py will be refused; {_ways(index, 'test')}"
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        print(
            f"warning: Accelerate compiles the model with {backend} (dynamo_backend of its "
            "default_config.yaml, which `accelerate env` shows, or --dynamo_backend): the first "
            "steps of each stage may take minutes; accelerate launch --dynamo_backend no does "
            "without"
        )


def _ways(index: ShardIndex, split: str, training: bool = False) -> str:
    """How to go on with shards that lack a split; training has no other split instead."""
    ways = [f"--split {name}" for name in index.splits if name != "train"] + ["--shards"]
    if training:
        ways = ["--data.shards"]
    return (
        f"found {' and '.join(index.splits) or 'none'}; go on with {' or '.join(ways)}, which "
        "names shards of the same attributes that have one. shards/build.py makes it with "
        f"--{split}-share 0.1, or from a table whose column of splits says so; items that a run "
        "was trained on tell nothing of others, so train on the new shards"
    )


def preflight(config: Config, index: ShardIndex, device: torch.device) -> Preflight:
    """Compares all ranks and measures what lies between them; on all ranks.

    Raises:
        UserError: they differ; names the ranks and what each has.
    """
    facts = _facts(config, index, device)
    require_same(facts)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return Preflight(
        # A machine that joined later has not been restarted itself.
        restarts=max(gather_objects(restarts)),
        launch="" if launch == "none" else launch,
        facts={key: value for key, value in facts.items() if not key.startswith("recipe ")},
        all_reduce_gb_per_s=_bandwidth(device),
        clock_skew_s=_clock_skew(device),
    )


def require_shared(run: Path, writer: str) -> None:
    """Refuses ranks that do not see the run's folder of the main one; on all ranks.

    Checkpoints are written there by all, which would come out only at the first of them.

    Args:
        run: folder, which the main rank has made.
        writer: the main rank's process (`adde.files.this_process`).

    Raises:
        UserError: names the ranks and their machines.
    """
    note = temporary_sibling(run / PREFLIGHT_NAME, writer)
    broadcast_from_main(note.touch)
    deadline = time.monotonic() + SEEN_WITHIN
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    nodes = gather_objects(None if note.exists() else os.uname().nodename)
    if rank() == 0:
        note.unlink()
    if blind := {number: node for number, node in enumerate(nodes) if node is not None}:
        raise UserError(
            f"{run}: expected a folder that all ranks share, found that what {writer} writes there "
            f"is not seen by {'; '.join(f'rank {n} on {node}' for n, node in blind.items())}; put "
            "--run on a disk that all machines have at the same path"
        )


def require_same(facts: dict[str, str]) -> None:
    """Refuses ranks that differ; on all ranks.

    Raises:
        UserError: in any of the facts; names the ranks and what each has.
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


def require_room(config: Config, model: nn.Module) -> None:
    """Refuses a disk on which the checkpoints that are kept do not fit; on the main rank.

    Raises:
        UserError: the file system of the run's folder has less room than they take.
    """
    moments = 2 if config.optimizer.name == "adamw" else 1
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    one = weights * (1 + moments + bool(config.optimizer.ema))
    # Those kept, the best, and the one that is written before the oldest is deleted.
    needed = one * (config.checkpoints.keep + 2)
    there = sum(f.stat().st_size for f in (config.run / "checkpoints").rglob("*") if f.is_file())
    free = shutil.disk_usage(config.run).free
    if there + free < needed:
        raise UserError(
            f"{config.run}: expected room for {needed / 1e9:.2f} GB of checkpoints "
            f"({config.checkpoints.keep} kept, the best, and one being written, of "
            f"{one / 1e9:.2f} GB), found {free / 1e9:.2f} GB free; free some, name another folder "
            "with --run, or lower checkpoints.keep"
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
        **{f"recipe {key}": value for key, value in _flat(config.to_json()).items()},
    }


def _code_hash() -> str:
    """Of this package's and the program's source, whatever git says of them."""
    digest = hashlib.sha256()
    package = Path(adde.__file__).parent
    program = getattr(sys.modules["__main__"], "__file__", None)
    for file in [*sorted(package.rglob("*.py")), *([Path(program)] if program else [])]:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        elif name not in OWN:
            found[name] = repr(value)
    return found


def _bandwidth(device: torch.device) -> float:
    if world_size() == 1:
        return 0.0
    probe = torch.zeros(PROBE_BYTES[device.type] // 4, device=device)
    times: list[float] = []
    for _ in range(3):  # the first opens connections
        started = time.perf_counter()
        sum_over_ranks(probe)[0].item()  # which waits for the device
        times.append(time.perf_counter() - started)
    return probe.numel() * 4 / min(times[1:]) / 1e9


def _clock_skew(device: torch.device) -> float:
    sum_over_ranks(torch.zeros(1, device=device)).item()  # all ranks are here
    clocks = gather_objects(time.time())
    return max(clocks) - min(clocks)


def _last_launch(run: Path) -> str:
    path = run / PREFLIGHT_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1])["launch"] if lines else ""


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
