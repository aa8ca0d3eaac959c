"""Run a unit: train its models, score their codes, and store the scores in one file.

units/<key>.parquet   scores of a finished unit
units/<key>.pt        checkpoint of one under way
"""

import importlib.metadata
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from adde.disentanglement import score
from adde.errors import untrusted
from adde.files import atomic_path
from adde.methods.vae.evaluation import figures, represent
from adde.methods.vae.model import VAE
from adde.mining.distances import allow_tf32, full_precision
from adde.shards.index import ShardIndex
from adde.study.ensemble import Ensemble
from adde.study.pictures import Pictures, read_pictures
from adde.study.results import Row, write_rows
from adde.study.settings import Unit
from adde.training.disentanglement import coded_outputs
from adde.training.evaluation import EncodedSplit

UNITS = "units"

SIZES = (1, 8, 25)
"""Numbers of models trained as one that are timed."""
TIMED_SHARE, TIMED_SECONDS = 0.01, 20.0
"""Share of a unit's steps that each is timed for, and at most so long."""

BATCH = 256
"""Pictures encoded at a time."""

VERSIONS = ("adde", "torch", "numpy", "scikit-learn", "lightgbm")

UNLABELLED = ("elbo", "reconstruction", "kl", "total_correlation", "active")
"""Figures of a VAE without labels that are stored; see `adde.methods.vae.evaluation.figures`."""


class UnitRunner:
    """Runs units into the folder of a study; picklable.

    Args:
        out: folder of the study.
        checkpoint_steps: steps between two checkpoints.
        ensemble: models trained as one; None: the fastest of SIZES.
        downstream: score downstream tasks too.
        threads: of torch on a CPU; None: as they are.
    """

    def __init__(
        self,
        out: Path,
        checkpoint_steps: int,
        ensemble: int | None = None,
        downstream: bool = False,
        threads: int | None = None,
    ) -> None:
        self._out, self._every, self._ensemble = out, checkpoint_steps, ensemble
        self._downstream, self._threads = downstream, threads

    def __call__(self, job: tuple[int, Unit]) -> str:
        """Run a unit, whose number chooses the GPU, unless it is done; return what was done."""
        number, unit = job
        path = unit_path(self._out, unit)
        if path.exists():
            return f"{unit.label}: done before"
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        allow_tf32(unit.config.precision == "tf32")
        begun = time.perf_counter()
        device = _device(number)
        index, pictures, scored = _opened(
            unit.config.data.shards, unit.split, unit.config.image_size, device
        )
        progress = _Progress(path.with_suffix(".pt"))
        size = progress.size or self._ensemble or _fastest(unit, index, pictures)
        trained = 0.0
        for start in range(progress.done, len(unit.seeds), size):
            seeds = unit.seeds[start : start + size]
            ensemble = Ensemble(unit.config, seeds, index, pictures, unit.steps)
            progress.restore(ensemble)
            trained -= time.perf_counter()
            self._train(ensemble, unit, progress, start, size)
            trained += time.perf_counter()
            for place, seed in enumerate(seeds):
                progress.rows += self._score(unit, seed, ensemble.model(place), index, scored)
            progress.save(start + len(seeds), size)
        write_rows(progress.rows, path)
        progress.remove()
        whole = time.perf_counter() - begun
        return (
            f"{unit.label}: {whole:.0f} s, of them {trained:.0f} s training {size} at a time "
            f"({3600 * len(unit.seeds) / whole:.0f} models an hour)"
        )

    def _train(
        self, ensemble: Ensemble, unit: Unit, progress: "_Progress", start: int, size: int
    ) -> None:
        bar = tqdm(
            desc=unit.label, total=unit.steps, initial=ensemble.step, unit="step", disable=None
        )
        with bar:
            while ensemble.step < unit.steps:
                steps = min(self._every - ensemble.step % self._every, unit.steps - ensemble.step)
                for part in _parts(steps):
                    ensemble.train(part)
                    bar.update(part)
                progress.save(start, size, ensemble)

    def _score(
        self, unit: Unit, seed: int, model: VAE, index: ShardIndex, scored: Pictures
    ) -> list[Row]:
        row = Row(
            study=unit.study,
            set=unit.set,
            method=unit.config.loss,
            hp=unit.config.strength,
            seed=seed,
            steps=unit.steps,
            versions=versions(),
        )
        encoded = _encode(model, scored)
        means = encoded.outputs["mean"]
        if not (np.isfinite(means).all() and np.ptp(means, axis=0).any()):
            tqdm.write(f"{unit.label}: codes of seed {seed} are constant or no numbers: no scores")
            return [row.of("failed", 1.0)]
        own = figures(model, encoded)
        rows = [row.of(name, own[name]) for name in UNLABELLED]
        outputs = {"codes": means, "log_variance": encoded.outputs["log_variance"]}
        coded, sampled = coded_outputs(
            EncodedSplit(outputs, encoded.labels, encoded.rows), index.schema.names, None
        )
        return rows + row.of_scores(score(coded, sampled=sampled, tasks=self._downstream))


class _Progress:
    """The checkpoint of a unit: rows of finished models, and an ensemble under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done, self.size, self.rows = 0, 0, list[Row]()
        self._state: dict[str, Any] | None = None
        if path.exists():
            with untrusted(path, "the checkpoint of a unit", "delete it to train the unit anew"):
                found = torch.load(path, weights_only=True)
                self.done, self.size, self._state = found["done"], found["size"], found["state"]
                self.rows = [Row(**row) for row in found["rows"]]

    def save(self, done: int, size: int, ensemble: Ensemble | None = None) -> None:
        state = None if ensemble is None else ensemble.state()
        rows = [vars(row) for row in self.rows]
        with atomic_path(self._path) as temporary:
            torch.save({"done": done, "size": size, "rows": rows, "state": state}, temporary)

    def restore(self, ensemble: Ensemble) -> None:
        """Continue the ensemble that was under way, if there was one."""
        if self._state is not None:
            ensemble.restore(self._state)
            self._state = None

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def unit_path(out: Path, unit: Unit) -> Path:
    """Return the file of a unit's scores."""
    return out / UNITS / f"{unit.key}.parquet"


@lru_cache(maxsize=1)
def versions() -> str:
    """Return the versions of the packages that scores depend on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)


@lru_cache(maxsize=1)
def _opened(
    shards: str, split: str, size: int, device: torch.device
) -> tuple[ShardIndex, Pictures, Pictures]:
    """The pictures to train on and to score; the set that was read last is kept."""
    index = ShardIndex.read(shards)
    train, scored = (read_pictures(index, name, size, device) for name in ("train", split))
    return index, train, scored


def _device(number: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Under Ray and Slurm only the GPUs of this task are visible.
    return torch.device("cuda", number % torch.cuda.device_count())


def _parts(steps: int) -> Sequence[int]:
    """Steps in parts between which a progress bar moves."""
    return [min(100, steps - start) for start in range(0, steps, 100)]


_fastest_sizes: dict[tuple[str, str, int], int] = {}


def _fastest(unit: Unit, index: ShardIndex, pictures: Pictures) -> int:
    """The number of models of a unit that train fastest as one.

    A strength costs nothing, so units of one set and loss are timed once in a process.
    """
    key = unit.set, unit.config.loss, len(unit.seeds)
    if key not in _fastest_sizes:
        sizes = sorted({min(size, len(unit.seeds)) for size in SIZES})
        speeds = {
            size: models_per_second(unit, unit.seeds[:size], index, pictures) for size in sizes
        }
        _fastest_sizes[key] = max(sizes, key=lambda size: speeds[size])
        shown = ", ".join(f"{size}: {speeds[size]:.1f}" for size in sizes)
        tqdm.write(
            f"{unit.set}, {unit.config.loss}: steps a second times models, by the number of "
            f"models trained as one: {shown}"
        )
    return _fastest_sizes[key]


def models_per_second(
    unit: Unit, seeds: Sequence[int], index: ShardIndex, pictures: Pictures
) -> float:
    """Time a few steps of these seeds' models trained as one.

    Returns:
        Steps a second, times the number of models.
    """
    ensemble = Ensemble(unit.config, seeds, index, pictures, unit.steps)
    device = pictures.images.device
    ensemble.train(1)
    _synchronise(device)
    begun, steps = time.perf_counter(), 0
    while steps < max(3, TIMED_SHARE * unit.steps) and (
        time.perf_counter() - begun < TIMED_SECONDS
    ):
        ensemble.train(1)
        _synchronise(device)
        steps += 1
    return steps * len(seeds) / (time.perf_counter() - begun)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _encode(model: VAE, scored: Pictures) -> EncodedSplit:
    parts: list[dict[str, Any]] = []
    for images in scored.images.split(BATCH):
        with full_precision(images):
            parts.append(represent(model, images))
    outputs = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return EncodedSplit(outputs, scored.labels, np.arange(len(scored.labels)))


def workers_of(asked: int | None) -> int:
    """Return the number of processes: as asked, one per GPU, or one per usable core."""
    if asked is not None:
        return asked
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))
