"""Checkpoints: safetensors and JSON, whole or not there, found damaged by hash.

A run's checkpoints/ holds step-<global step>/ folders and best.json, which names the best one::

    part-<rank>.safetensors  what one rank wrote: runs of elements of tensors (`pieces.py`)
    tensors.json             of every tensor its shape, dtype and [part, start, stop] of its runs
    state.json               position, schema, fingerprint of the training shards, configuration,
                             sha256 of the files above; written last (`saving.py`)

A tensor's name is `model/<name>`, `ema/<name>` (averaged weights, where the recipe asks for them),
`optimizer/<parameter>/<entry>`, or one that the method's objective gave (`Objective.state`). How
many ranks wrote them, and under which strategy, makes no difference to who reads them.

The random state is not stored: every step seeds its generators from (seed, step, rank), and the
sample order from (seed, epoch), so that (seed, step) is the whole of it on any number of ranks.
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
"""Files whose hashes are taken at a time."""


def part_name(number: int) -> str:
    """File of what one rank wrote."""
    return f"part-{number:05d}.safetensors"


@dataclass(frozen=True)
class Position:
    """Where training stands: steps done of a stage, and steps done in all."""

    stage: str
    stage_step: int
    step: int


class Parts:
    """The part files of one checkpoint, opened when they are first read from."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, {}

    def read(self, part: int, name: str, start: int, stop: int) -> Tensor:
        """Elements of the run of tensor `name` that lies in a part, counted from the run's."""
        if part not in self._open:
            self._open[part] = safe_open(self._folder / part_name(part), "pt")
        return self._open[part].get_slice(name)[start:stop]


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint; what is read of it is all that comes into memory."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    runs: list[tuple[int, int, int]]
    """(part, start, stop), in order and without a gap."""
    parts: Parts

    def read(self, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` in row-major order, (stop - start,)."""
        found = torch.empty(max(0, stop - start), dtype=self.dtype)
        for part, first, last in self.runs:
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                values = self.parts.read(part, self.name, begin - first, end - first)
                found[begin - start : end - start] = values
        return found

    def whole(self) -> Tensor:
        """The tensor in its shape."""
        return self.read(0, prod(self.shape)).view(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where training stood."""
        return Position(**self.state["position"])

    def tensors(self, kind: str) -> dict[str, Stored]:
        """Its tensors of a kind (`model`, `ema`, `optimizer`, or the objective's own), by name."""
        parts = Parts(self.path)
        return {
            name.removeprefix(f"{kind}/"): Stored(
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
    """Whether the deciding validation figures are above those of the best checkpoint so far.

    The first one decides; of equals the second does, and so on.
    """
    path = run / "checkpoints" / BEST_NAME
    if not path.exists():
        return True
    best = read_json(path)
    return list(figures.values()) > [best[name] for name in figures]


def mark_best(run: Path, path: Path, figures: dict[str, float]) -> None:
    """Names `path` as the best checkpoint, with the validation figures that made it so."""
    write_json(run / "checkpoints" / BEST_NAME, {"checkpoint": path.name, **figures})


def delete_old(run: Path, keep: int, busy: str | None = None) -> None:
    """Deletes all but the newest `keep` checkpoints, the best, and one that is being read."""
    best = run / "checkpoints" / BEST_NAME
    kept = {busy, read_json(best)["checkpoint"] if best.exists() else None}
    for path in folders(run)[keep:]:
        if path.name not in kept:
            shutil.rmtree(path)


def delete_unfinished(run: Path) -> None:
    """Deletes what a process that was killed while it wrote a checkpoint has left.

    A run has one writer at a time, so whatever machine that was on, it is gone.
    """
    remove_leftovers(run / "checkpoints", of_any_machine=True)


def last_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named on stderr and passed over.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = folders(run)
    for path in found:
        try:
            return read_checkpoint(path)
        except UserError as error:
            print(f"warning: {error}; trying the one before it", file=sys.stderr)
    if found:
        raise UserError(f"{run}: expected a whole checkpoint, found all {len(found)} damaged")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads state.json and checks every file against its hash.

    Raises:
        UserError: a file is missing or damaged, or the format is another; names it.
    """
    found = open_checkpoint(path)
    with ThreadPoolExecutor(READERS, "hash") as pool:
        list(
            pool.map(lambda item: _require(path / item[0], item[1]), found.state["sha256"].items())
        )
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose files another rank has checked.

    Raises:
        UserError: it cannot be read, or its format is another.
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
    """The checkpoint that validated best.

    Raises:
        UserError: there is none yet, or it is damaged.
    """
    best = run / "checkpoints" / BEST_NAME

    def name() -> str:
        if best.exists():
            return read_json(best)["checkpoint"]
        raise UserError(
            f"{best}: no such file; the run was not evaluated yet, use its last checkpoint"
        )

    # At a run's end it may be new, and other machines still see the one before it.
    return read_checkpoint(best.parent / broadcast_from_main(name))


def folders(run: Path) -> list[Path]:
    """Checkpoint folders, newest first. Temporary names do not match."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)
