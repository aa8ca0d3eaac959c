"""Run a study in a folder: its units by processes or Ray, then results and page.

study.json            units and pictures that the folder belongs to
units/                see `adde.study.units`
results.parquet       see `adde.study.results`
study.html            the page
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.shards.index import ShardIndex
from adde.shards.packing.ray_data import map_jobs, on_row, ray_cluster
from adde.shards.packing.workers import in_order
from adde.study.results import RESULTS_NAME, Row, read_rows, supervised_rows, write_rows
from adde.study.settings import Study, Unit
from adde.study.units import UnitRunner, unit_path, workers_of
from adde.training.resilience.requirements import require_split

Engine = Literal["processes", "ray"]

STUDY_NAME = "study.json"

AT_A_TIME = 256
"""Units that Ray receives at once."""


def open_study(study: Study, out: Path) -> Sequence[Unit]:
    """Return the study's units; check that the folder is new, or this study's.

    Raises:
        UserError: the folder belongs to other units or other pictures, or a set lacks a split.
    """
    units = study.units
    sets: dict[str, Any] = {}
    for one in study.sets:
        index = ShardIndex.read(one.shards)
        for split in ("train", study.split):
            require_split(index, split)
            sets[f"{one.name}, {split}"] = index.fingerprint(split)
    content = {"sets": sets, "units": {unit.key: unit.label for unit in units}}
    path = out / STUDY_NAME
    if not path.exists():
        write_json(path, content)
    elif (found := read_json(path)) != content:
        raise UserError(
            f"{path}: expected this study's units, found others: {_difference(found, content)}; "
            f"name another --out, or delete {out}"
        )
    return units


def _difference(found: dict[str, Any], content: dict[str, Any]) -> str:
    for name, fingerprint in content["sets"].items():
        if name in found["sets"] and found["sets"][name] != fingerprint:
            return f"the pictures of {name} are not those that the folder's models were trained on"
    new = [label for key, label in content["units"].items() if key not in found["units"]]
    old = [label for key, label in found["units"].items() if key not in content["units"]]
    parts = [
        f"{len(labels)} {what}, such as {labels[0]!r}"
        for labels, what in ((new, "that the folder lacks"), (old, "that the study lacks"))
        if labels
    ]
    return "; ".join(parts) or "they are in another order"


def run_units(
    study: Study, units: Sequence[tuple[int, Unit]], out: Path, engine: Engine, workers: int | None
) -> Iterator[str]:
    """Run the units that are not done, and yield what was done for each, in order.

    Args:
        study: that they belong to.
        units: with their numbers in the study.
        out: folder of the study.
        engine: processes of this machine, or the Ray cluster of RAY_ADDRESS.
        workers: number of processes; None: one per GPU, or one per core.
    """
    count = workers_of(workers)
    # Units that train side by side would fight for the same cores.
    threads = 1 if count > 1 else None
    runner = UnitRunner(
        out.resolve(), study.checkpoint_steps, study.ensemble, study.downstream, threads
    )
    left = [(number, unit) for number, unit in units if not unit_path(out, unit).exists()]
    if engine == "processes":
        yield from in_order(runner, left, min(count, max(1, len(left))))
        return
    with ray_cluster("--engine ray") as ray:
        options = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
        yield from map_jobs(partial(on_row, runner), left, AT_A_TIME, **options)


def collect(study: Study, units: Sequence[Unit], out: Path) -> tuple[list[Row], list[str]]:
    """Join the scores of finished units and of supervised runs, and store them.

    Returns:
        All rows, and notices of what is missing.
    """
    rows: list[Row] = []
    missing: list[Unit] = []
    for unit in units:
        path = unit_path(out, unit)
        if path.exists():
            rows += read_rows(path)
        else:
            missing.append(unit)
    notices = []
    if missing:
        notices.append(
            f"{len(missing)} of {len(units)} units are not done, such as {missing[0].label}"
        )
    supervised, more = supervised_rows(study)
    rows += supervised
    write_rows(rows, out / RESULTS_NAME)
    return rows, [*notices, *more]
