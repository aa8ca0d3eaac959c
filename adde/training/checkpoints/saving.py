"""Write checkpoints: every rank its part, in the background, complete or not at all.

Every rank writes its part file into a temporary folder and, once that is on disk, a manifest with
its hash and its flat shards. Rank 0 waits for all manifests, checks that the shards cover every
tensor exactly, writes tensors.json and state.json, and renames the folder. Ranks coordinate through
files only, so saving cannot interleave with training's collectives or hang on a dead rank. A kill
at any moment leaves the previous checkpoint intact.
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
from adde.training.checkpoints.background import Background
from adde.training.checkpoints.checkpoint import (
    FORMAT,
    STATE_NAME,
    TENSORS_NAME,
    Position,
    checkpoint_path,
    delete_old,
    mark_best,
    part_name,
)
from adde.training.checkpoints.flat_shards import FlatShard, HostBuffers
from adde.training.checkpoints.upload import Bucket, Uploads
from adde.training.config import Config

GRACE = 5.0
"""Seconds to wait for the other ranks' parts after the run has failed."""


class Saver:
    """Writes a run's checkpoints; on all ranks.

    Args:
        config: of the run.
        index: of the shards that it is trained on, with the model's schema.
        writer: rank 0's process (`adde.files.this_process`).
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
        shards: Callable[[], dict[str, FlatShard]],
        scaler: dict[str, Any] | None = None,
        best: dict[str, float] | None = None,
    ) -> None:
        """Start to write a checkpoint and to delete those no longer kept; on all ranks.

        Training waits until the previous checkpoint is complete and this rank's shards are copied
        to host memory. A position that was just saved is not written again.

        Args:
            position: of the training.
            shards: returns what this rank writes, by the tensors' names.
            scaler: state of the loss scale, in fp16.
            best: validation metrics that make it the best so far.
        """
        started = time.perf_counter()
        path = checkpoint_path(self._config.run, position.step)
        if position != self._saved:
            self._background.wait()  # until the buffers are on disk
            copies = self._buffers.copy(shards())
            self._background.start(functools.partial(self._write, path, position, copies, scaler))
            self._saved = position
        if best is not None and rank() == 0:
            self._background.start(functools.partial(self._mark_best, path, best))
        self._stalled += time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """Return figures for the log: seconds that training waited since the last call, and the
        number of failed uploads so far.
        """
        found = {"checkpoint_stall": self._stalled}
        if self._uploads is not None:
            found["upload_failures"] = float(self._uploads.failures)
        self._stalled = 0.0
        return found

    def check(self) -> None:
        """Raise what writing has raised; do not wait."""
        self._background.check()

    def wait(self) -> None:
        """Wait until this rank's part (on rank 0, the checkpoint) is written; raise its error."""
        self._background.wait()

    def close(self, failed: bool = False) -> None:
        """Wait for the checkpoint under way; only a few seconds if the run has failed."""
        if failed:
            self._abandoned.set()
        self._background.close()
        if self._uploads is not None:
            self._uploads.close(GRACE if failed else self._config.checkpoints.timeout)

    def _write(
        self,
        path: Path,
        position: Position,
        shards: dict[str, FlatShard],
        scaler: dict[str, Any] | None,
    ) -> None:
        folder = sibling(path, self._writer)
        try:
            _write_part(folder, path, shards)
            if rank() == 0:
                self._complete(folder, path, position, scaler)
                self._delete_old()
        finally:
            if rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def _complete(
        self, folder: Path, path: Path, position: Position, scaler: dict[str, Any] | None
    ) -> None:
        timeout = self._config.checkpoints.timeout
        manifests = _wait_for_manifests(folder, path, timeout, self._abandoned)
        write_json(folder / TENSORS_NAME, _merge(path, manifests), indent=None)
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

    def _mark_best(self, path: Path, best: dict[str, float]) -> None:
        mark_best(self._config.run, path, best)
        self._delete_old()

    def _delete_old(self) -> None:
        """Delete checkpoints that are no longer kept, here and at the upload address."""
        if self._uploads is None:
            delete_old(self._config.run, self._config.checkpoints.keep)
        else:
            self._uploads.request()


def _manifest_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.json"


def _write_part(folder: Path, path: Path, shards: dict[str, FlatShard]) -> None:
    """Write this rank's part, then its manifest; on failure a manifest with the error."""
    folder.mkdir(parents=True, exist_ok=True)  # by the first rank
    part = folder / part_name(rank())
    try:
        with naming(path):
            try:
                part.touch()
                mode = part.stat().st_mode
                values = {name: shard.values for name, shard in shards.items()}
                safetensors.torch.save_file(values, part)
                part.chmod(mode)  # safetensors makes files that only their owner can read
            except SafetensorError as error:  # its own, for a full disk
                raise UserError(f"{path}: the checkpoint is not written: {error}") from None
            sync(part)
            runs = {
                name: {
                    "shape": shard.shape,
                    "dtype": str(shard.values.dtype).removeprefix("torch."),
                    "start": shard.start,
                    "stop": shard.start + len(shard.values),
                }
                for name, shard in shards.items()
            }
            manifest = {"sha256": sha256_of_file(part), "runs": runs}
            write_json(_manifest_path(folder, rank()), manifest, indent=None)
    except Exception as error:
        with suppress(OSError):
            write_json(_manifest_path(folder, rank()), {"error": str(error)})
        raise


def _wait_for_manifests(
    folder: Path, path: Path, timeout: float, abandoned: threading.Event
) -> list[dict[str, Any]]:
    """Return the manifests of all ranks, once they are there.

    Raises:
        UserError: a rank failed, or its manifest is late; names the ranks.
    """
    deadline = time.monotonic() + timeout
    paths = [_manifest_path(folder, part) for part in range(world_size())]
    while True:
        there = {entry.name for entry in folder.iterdir()}
        missing = [part for part, manifest in enumerate(paths) if manifest.name not in there]
        if not missing:
            break
        if abandoned.is_set():
            deadline = min(deadline, time.monotonic() + GRACE)
            abandoned.clear()
        if time.monotonic() > deadline:
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(
                f"{path}: expected the parts of {world_size()} ranks within {timeout:g} s "
                f"(checkpoints.timeout), found none from ranks {some}; put the run's folder on a "
                "disk that all machines share"
            )
        time.sleep(0.02)
    manifests = [read_json(manifest) for manifest in paths]
    for part, manifest in enumerate(manifests):
        if "error" in manifest:
            raise UserError(f"{path}: rank {part} could not write its part: {manifest['error']}")
    return manifests


def _merge(path: Path, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge all ranks' manifests into every tensor's shape, dtype and shards in order.

    Raises:
        UserError: a tensor's shards overlap or leave a gap.
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
                    f"{path}: {name}: expected rank {part} to continue at element {at}, found "
                    f"{start}"
                )
            at = stop
        if at != prod(entry["shape"]):
            raise UserError(f"{path}: {name}: expected {prod(entry['shape'])} elements, found {at}")
    return tensors
