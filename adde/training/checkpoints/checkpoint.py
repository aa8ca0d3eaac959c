"""Read checkpoints: safetensors and JSON, verified by hash.

A run's checkpoints/ holds step-<global step>/ folders, and best.json, which names the best one::

    part-<rank>.safetensors  flat shards of tensors, written by one rank (`flat_shards.py`)
    tensors.json             every tensor's shape, dtype and shards as [part, start, stop]
    state.json               position, schema, fingerprint of the training shards, configuration,
                             sha256 of the files above; written last (`saving.py`)

A tensor's name is `model/<name>`, `ema/<name>` (averaged weights, if the recipe asks for them),
`optimizer/<parameter>/<entry>`, or one of the objective's (`Objective.state`). Readers need not
know how many ranks wrote it, nor under which strategy.

The random state is not stored: every step seeds its generators from (seed, step, rank), and every
epoch the sample order from (seed, epoch), so seed and step determine it on any number of ranks.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from adde.distributed import broadcast_from_main
from adde.errors import UserError
from adde.files import read_json, remove_leftovers, sha256_of_file, write_json

FORMAT = 3
STATE_NAME = "state.json"
TENSORS_NAME = "tensors.json"
BEST_NAME = "best.json"
READERS = 4
"""Files that are hashed at a time."""


def part_name(number: int) -> str:
    """Return the name of one rank's part file."""
    return f"part-{number:05d}.safetensors"


@dataclass(frozen=True)
class Position:
    """How far training is: completed steps of the current stage, and of all stages."""

    stage: str
    stage_step: int
    step: int


class Parts:
    """The part files of one checkpoint, opened at the first read."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, {}

    def read(self, part: int, name: str, start: int, stop: int) -> Tensor:
        """Read elements of the flat shard of tensor `name` in a part, counted from its start."""
        if part not in self._open:
            self._open[part] = safe_open(self._folder / part_name(part), "pt")
        return self._open[part].get_slice(name)[start:stop]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint; only the elements that are read are loaded."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    runs: list[tuple[int, int, int]]
    """(part, start, stop) of its flat shards, in order and without gaps."""
    parts: Parts

    def read(self, start: int, stop: int) -> Tensor:
        """Read elements `start` to `stop` in row-major order, (stop - start,)."""
        found = torch.empty(max(0, stop - start), dtype=self.dtype)
        for part, first, last in self.runs:
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                values = self.parts.read(part, self.name, begin - first, end - first)
                found[begin - start : end - start] = values
        return found

    def whole(self) -> Tensor:
        """Read the tensor in its shape."""
        return self.read(0, prod(self.shape)).view(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> Position:
        """How far training was."""
        return Position(**self.state["position"])

    def load(self, kind: str) -> dict[str, Tensor]:
        """Read all tensors of a kind, as `tensors`."""
        return {name: stored.whole() for name, stored in self.tensors(kind).items()}

    def tensors(self, kind: str) -> dict[str, StoredTensor]:
        """Return tensors of a kind (`model`, `ema`, `optimizer`, or the objective's), by name."""
        parts = Parts(self.path)
        return {
            name.removeprefix(f"{kind}/"): StoredTensor(
                name,
                tuple(entry["shape"]),
                getattr(torch, entry["dtype"]),
                [tuple(run) for run in entry["runs"]],
                parts,
            )
            for name, entry in read_json(self.path / TENSORS_NAME).items()
            if name.startswith(f"{kind}/")
        }


def is_best(run: Path, figures: dict[str, float]) -> bool:
    """Whether validation metrics are above those of the best checkpoint so far.

    The first metric decides; if it is equal, the second does, and so on.
    """
    path = run / "checkpoints" / BEST_NAME
    if not path.exists():
        return True
    best = read_json(path)
    return list(figures.values()) > [best[name] for name in figures]


def mark_best(run: Path, path: Path, figures: dict[str, float]) -> None:
    """Record `path` as the best checkpoint, with the validation metrics that made it so."""
    write_json(run / "checkpoints" / BEST_NAME, {"checkpoint": path.name, **figures})


def delete_old(run: Path, keep: int, busy: str | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, the best, and one that is being read."""
    best = run / "checkpoints" / BEST_NAME
    kept = {busy, read_json(best)["checkpoint"] if best.exists() else None}
    for path in folders(run)[keep:]:
        if path.name not in kept:
            shutil.rmtree(path)


def delete_unfinished(run: Path) -> None:
    """Delete the temporary files of a process that was killed while it wrote a checkpoint.

    A run has one writer at a time, so the writer has ended, on whatever machine it was.
    """
    remove_leftovers(run / "checkpoints", of_any_machine=True)


def last_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint; warn on stderr about damaged ones and skip them.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = folders(run)
    for path in found:
        try:
            return read_checkpoint(path)
        except UserError as error:
            print(f"warning: {error}; trying the previous one", file=sys.stderr)
    if found:
        raise UserError(f"{run}: expected an intact checkpoint, found all {len(found)} damaged")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read state.json and check every file against its hash.

    Raises:
        UserError: a file is missing or damaged, or the format is unknown; names it.
    """
    found = open_checkpoint(path)
    with ThreadPoolExecutor(READERS, "hash") as pool:
        list(
            pool.map(lambda item: _require(path / item[0], item[1]), found.state["sha256"].items())
        )
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint whose files another rank has checked.

    Raises:
        UserError: it cannot be read, or its format is unknown.
    """
    state = read_json(path / STATE_NAME)
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {state.get('format')}")
    return Checkpoint(path, state)


def _require(file: Path, expected: str) -> None:
    found = sha256_of_file(file) if file.exists() else "no file"
    if found != expected:
        raise UserError(f"{file}: damaged: expected sha256 {expected}, found {found}")


def best_checkpoint(run: Path) -> Checkpoint:
    """Return the checkpoint with the best validation metrics.

    Raises:
        UserError: there is none yet, or it is damaged.
    """
    best = run / "checkpoints" / BEST_NAME

    def name() -> str:
        if best.exists():
            return read_json(best)["checkpoint"]
        raise UserError(
            f"{best}: expected a file, found none; the run was not evaluated yet, use its last "
            "checkpoint"
        )

    # At the end of a run it may be new, and other machines may still see its predecessor.
    return read_checkpoint(best.parent / broadcast_from_main(name))


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def folders(run: Path) -> list[Path]:
    """Return the checkpoint folders, newest first, without temporary ones."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)
