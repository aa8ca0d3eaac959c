"""Writing checkpoints: every rank its part, beside the training, complete or not there.

Into a temporary folder every rank writes its part file and, once that is on the disk, a manifest
with its hash and the runs of tensors in it. The main rank waits for all manifests, checks that the
runs make up every tensor, writes tensors.json and state.json and renames the folder. Ranks
coordinate through files only, so saving cannot interleave with training's collectives or hang on a
dead rank. A kill at any moment leaves the previous checkpoint intact.
"""

import functools
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from adde.distributed import rank, world_size
from adde.errors import UserError
from adde.files import naming, put_in_place, read_json, sha256_of_file, sync, write_json
from adde.files import temporary_sibling as sibling
from adde.shards.index import ShardIndex
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints.background import Background
from adde.training.checkpoints.checkpoint import (
    FORMAT,
    STATE_NAME,
    TENSORS_NAME,
    Position,
    part_name,
)
from adde.training.checkpoints.flat_shards import FlatShard, HostBuffers
from adde.training.checkpoints.upload import Bucket, Uploads
from adde.training.config import Config

GRACE = 5.0
"""Seconds for the other ranks' parts when the run ends by an error."""


class Saver:
    """Writes a run's checkpoints; on all ranks.

    Args:
        config: of the run.
        index: of the shards that it is trained on, with the model's schema.
        writer: the main rank's process (`adde.files.this_process`).
    """

    def __init__(self, config: Config, index: ShardIndex, writer: str) -> None:
        self._config, self._index, self._writer = config, index, writer
        self._background, self._buffers = Background(), HostBuffers()
        self._abandoned = threading.Event()
        self._saved: Position | None = None
        address = config.checkpoints.upload if rank() == 0 else None
        keep = config.checkpoints.keep
        self._uploads = Uploads(Bucket(address), config.run, keep) if address else None
        self._stalled = 0.0

    def save(
        self,
        position: Position,
        pieces: Callable[[], dict[str, FlatShard]],
        scaler: dict[str, Any] | None = None,
        best: dict[str, float] | None = None,
    ) -> None:
        """Has a checkpoint written and those no longer kept deleted; called on all ranks.

        Training waits for a copy of this rank's pieces in the CPU's memory, and for the checkpoint
        before, should that not be complete yet. Of a position that was just saved nothing is
        written again.

        Args:
            position: where training stands.
            pieces: gives what this rank writes, by tensors' names.
            scaler: state of the loss scale, in fp16.
            best: validation figures that make it the best.
        """
        started = time.perf_counter()
        path = self._config.run / "checkpoints" / f"step-{position.step:08d}"
        if position != self._saved:
            self._background.wait()  # until the buffers are on disk
            copies = self._buffers.copy(pieces())
            self._background.start(functools.partial(self._write, path, position, copies, scaler))
            self._saved = position
        if best is not None and rank() == 0:
            self._background.start(functools.partial(self._mark, path, best))
        self._stalled += time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """Of the log, since the last call: seconds that saving took from training; and how often
        uploading was given up, of the whole run.
        """
        found = {"checkpoint_stall": self._stalled}
        if self._uploads is not None:
            found["upload_failures"] = float(self._uploads.failures)
        self._stalled = 0.0
        return found

    def check(self) -> None:
        """Raises what writing raised; waits for nothing."""
        self._background.check()

    def wait(self) -> None:
        """Waits until all is written, by this rank, and on the main one by all; raises as above."""
        self._background.wait()

    def close(self, failed: bool = False) -> None:
        """Waits for what is being written; where the run has failed, for few seconds only."""
        if failed:
            self._abandoned.set()
        self._background.close()
        if self._uploads is not None:
            self._uploads.close(GRACE if failed else self._config.checkpoints.timeout)

    def _write(
        self,
        path: Path,
        position: Position,
        pieces: dict[str, FlatShard],
        scaler: dict[str, Any] | None,
    ) -> None:
        folder = sibling(path, self._writer)
        try:
            _write_part(folder, path, pieces)
            if rank() == 0:
                self._complete(folder, path, position, scaler)
                self._tidy()
        finally:
            if rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def _complete(
        self, folder: Path, path: Path, position: Position, scaler: dict[str, Any] | None
    ) -> None:
        manifests = _wait_for_manifests(
            folder, path, self._config.checkpoints.timeout, self._abandoned
        )
        write_json(folder / TENSORS_NAME, _tensors(path, manifests), indent=None)
        hashes = {part_name(part): manifest["sha256"] for part, manifest in enumerate(manifests)}
        hashes[TENSORS_NAME] = sha256_of_file(folder / TENSORS_NAME)
        state = {
            "format": FORMAT,
            "position": vars(position),
            "schema_hash": self._index.schema.hash,
            "schema": self._index.schema.to_json(),
            "shards": self._index.fingerprint("train"),
            "config": self._config.to_json(),
            "sha256": hashes,
            "scaler": scaler,
        }
        write_json(folder / STATE_NAME, state)
        for part in range(len(manifests)):
            _manifest_path(folder, part).unlink()
        put_in_place(folder, path)

    def _mark(self, path: Path, best: dict[str, float]) -> None:
        checkpoints.mark_best(self._config.run, path, best)
        self._tidy()

    def _tidy(self) -> None:
        """Deletes what is no longer kept, and has the copies elsewhere follow."""
        if self._uploads is None:
            checkpoints.delete_old(self._config.run, self._config.checkpoints.keep)
        else:
            self._uploads.follow()


def _manifest_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.json"


def _write_part(folder: Path, path: Path, pieces: dict[str, FlatShard]) -> None:
    """Writes this rank's part, then its manifest, or one with the error for the main rank."""
    folder.mkdir(parents=True, exist_ok=True)  # whoever comes first
    part = folder / part_name(rank())
    try:
        with naming(path):
            try:
                part.touch()
                mode = part.stat().st_mode
                values = {name: piece.values for name, piece in pieces.items()}
                safetensors.torch.save_file(values, part)
                part.chmod(mode)  # safetensors makes files that only their owner can read
            except SafetensorError as error:  # its own, where the disk is full
                raise UserError(f"{path}: the checkpoint is not written: {error}") from None
            sync(part)
            runs = {
                name: {
                    "shape": piece.shape,
                    "dtype": str(piece.values.dtype).removeprefix("torch."),
                    "start": piece.start,
                    "stop": piece.start + len(piece.values),
                }
                for name, piece in pieces.items()
            }
            write_json(
                _manifest_path(folder, rank()),
                {"sha256": sha256_of_file(part), "runs": runs},
                indent=None,
            )
    except Exception as error:
        with suppress(OSError):
            write_json(_manifest_path(folder, rank()), {"error": str(error)})
        raise


def _wait_for_manifests(
    folder: Path, path: Path, timeout: float, abandoned: threading.Event
) -> list[dict[str, Any]]:
    """The manifests of all ranks, once they are there.

    Raises:
        UserError: a rank failed, or its manifest is not there in time; names the ranks.
    """
    deadline = time.monotonic() + timeout
    while True:
        there = {entry.name for entry in folder.iterdir()}
        missing = [
            part for part in range(world_size()) if _manifest_path(folder, part).name not in there
        ]
        if not missing:
            break
        if abandoned.is_set():
            deadline = min(deadline, time.monotonic() + GRACE)
            abandoned.clear()
        if time.monotonic() > deadline:
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(
                f"{path}: expected the parts of {world_size()} ranks within {timeout:g} s "
                f"(checkpoints.timeout), found none of ranks {some}; the run's folder must lie on "
                "a disk that all machines share"
            )
        time.sleep(0.02)
    manifests = [read_json(_manifest_path(folder, part)) for part in range(world_size())]
    for part, manifest in enumerate(manifests):
        if "error" in manifest:
            raise UserError(f"{path}: rank {part} could not write its part: {manifest['error']}")
    return manifests


def _tensors(path: Path, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Every tensor's shape, dtype and runs in order, of all ranks' manifests.

    Raises:
        UserError: some tensor's runs are not exactly all of it.
    """
    tensors: dict[str, Any] = {}
    for part, manifest in enumerate(manifests):
        for name, run in manifest["runs"].items():
            entry = tensors.setdefault(
                name, {"shape": run["shape"], "dtype": run["dtype"], "runs": []}
            )
            entry["runs"].append([part, run["start"], run["stop"]])
    for name, entry in tensors.items():
        entry["runs"].sort(key=lambda run: run[1:])
        at = 0
        for part, start, stop in entry["runs"]:
            if start != at:
                raise UserError(
                    f"{path}: {name}: expected rank {part} to go on at element {at}, found {start}"
                )
            at = stop
        if at != prod(entry["shape"]):
            raise UserError(f"{path}: {name}: expected {prod(entry['shape'])} elements, found {at}")
    return tensors
