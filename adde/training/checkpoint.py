"""Checkpoints: safetensors and JSON, whole or not there, found damaged by hash.

A run's checkpoints/ holds step-<global step>/ folders and best.json, which names the best one::

    model.safetensors      weights and buffers
    ema.safetensors        averaged weights, where the recipe asks for them
    optimizer.safetensors  "<parameter>/<state>" tensors
    state.json             position, schema, fingerprint of the training shards, configuration,
                           sha256 of the files above

The random state is not stored: every step seeds its generators from (seed, step, rank), and the
sample order from (seed, epoch), so that (seed, step) is the whole of it on any number of ranks.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from adde.errors import UserError
from adde.files import atomic_path, read_json, remove_leftovers, sha256_of_file, write_json
from adde.model import ADDE
from adde.schema import Schema
from adde.shards.index import ShardIndex
from adde.training.config import CONFIG_NAME, Config, read_recipe

FORMAT = 2

DECIDING = ("hit@30", "hit@10", "hit@1")
"""Validation figures that choose the best checkpoint, in this order."""


@dataclass(frozen=True)
class Position:
    """Where training stands: steps done of a stage, and steps done in all."""

    stage: str
    stage_step: int
    step: int


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder whose hashes have been found right."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where training stood."""
        return Position(**self.state["position"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Content of one of the safetensors files."""
        return safetensors.torch.load_file(self.path / name)


def save_checkpoint(
    run: Path,
    position: Position,
    files: dict[str, dict[str, Tensor]],
    config: Config,
    index: ShardIndex,
    scaler: dict[str, Any] | None,
) -> Path:
    """Writes one checkpoint, on the main rank.

    Args:
        run: the run's folder.
        position: where training stands.
        files: whole tensors by name: of `model`, `optimizer` and, where there is one, `ema`.
        config: of the run.
        index: of the shards that it is trained on, with the model's schema.
        scaler: state of the loss scale, in fp16.
    """
    path = run / "checkpoints" / f"step-{position.step:08d}"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name, tensors in files.items():
            contiguous = {key: value.contiguous() for key, value in tensors.items()}
            try:
                safetensors.torch.save_file(contiguous, temporary / f"{name}.safetensors")
            except SafetensorError as error:  # its own, where the disk is full
                raise UserError(f"{path}: the checkpoint is not written: {error}") from None
        state = {
            "format": FORMAT,
            "position": vars(position),
            "schema_hash": index.schema.hash,
            "schema": index.schema.to_json(),
            "shards": index.fingerprint("train"),
            "config": config.to_json(),
            "sha256": {f.name: sha256_of_file(f) for f in sorted(temporary.iterdir())},
            "scaler": scaler,
        }
        write_json(temporary / "state.json", state)
    return path


def is_best(run: Path, figures: dict[str, float]) -> bool:
    """Whether validation figures are above those of the best checkpoint so far.

    hit@30 decides. Where an easy catalogue has it at 1 from early on, hit@10 and then hit@1 do.
    """
    path = run / "checkpoints" / "best.json"
    if not path.exists():
        return True
    best = read_json(path)
    return [figures[name] for name in DECIDING] > [best[name] for name in DECIDING]


def mark_best(run: Path, path: Path, figures: dict[str, float]) -> None:
    """Names `path` as the best checkpoint, with the validation figures that made it so."""
    best = {"checkpoint": path.name, **{name: figures[name] for name in DECIDING}}
    write_json(run / "checkpoints" / "best.json", best)


def delete_old(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints and the best."""
    best = run / "checkpoints" / "best.json"
    kept = {read_json(best)["checkpoint"]} if best.exists() else set()
    for path in _folders(run)[keep:]:
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
    folders = _folders(run)
    for path in folders:
        try:
            return read_checkpoint(path)
        except UserError as error:
            print(f"warning: {error}; trying the one before it", file=sys.stderr)
    if folders:
        raise UserError(f"{run}: expected a whole checkpoint, found all {len(folders)} damaged")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads state.json and checks every file against its hash.

    Raises:
        UserError: a file is missing or damaged, or the format is another; names it.
    """
    state = read_json(path / "state.json")
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {state.get('format')}")
    for name, expected in state["sha256"].items():
        file = path / name
        found = sha256_of_file(file) if file.exists() else "no file"
        if found != expected:
            raise UserError(f"{file}: damaged: expected sha256 {expected}, found {found}")
    return Checkpoint(path, state)


def load_model(run: Path, which: str = "best") -> tuple[ADDE, Config, Checkpoint]:
    """The model of a run's best or last checkpoint (averaged weights where it has them).

    Returns:
        The model in eval mode on the CPU, the run's configuration, and the checkpoint.

    Raises:
        UserError: `run` is no run folder or has no such checkpoint, or it is damaged.
    """
    if not (run / CONFIG_NAME).exists():
        raise UserError(f"{run}: expected a run folder with {CONFIG_NAME}, found none")
    config = read_recipe(run / CONFIG_NAME)
    checkpoint = last_checkpoint(run) if which == "last" else _best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: expected a checkpoint, found none; train first")
    schema = Schema.from_json(checkpoint.state["schema"], str(checkpoint.path / "state.json"))
    model = ADDE(config.model.without_start_weights(), schema)
    averaged = (checkpoint.path / "ema.safetensors").exists()
    name = "ema.safetensors" if averaged else "model.safetensors"
    try:
        model.load_state_dict(checkpoint.tensors(name))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint.path / name}: expected weights of the model that {run / CONFIG_NAME} "
            f"describes, found: {error}"
        ) from None
    return model.eval(), config, checkpoint


def _best_checkpoint(run: Path) -> Checkpoint:
    best = run / "checkpoints" / "best.json"
    if not best.exists():
        raise UserError(
            f"{best}: no such file; the run was not evaluated yet, use its last checkpoint"
        )
    return read_checkpoint(best.parent / read_json(best)["checkpoint"])


def _folders(run: Path) -> list[Path]:
    """Checkpoint folders, newest first. Temporary names do not match."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)
