"""Run a study: many small models of several methods, strengths and seeds, scored and compared.

python train/study.py --study train/studies/small.toml --out studies/small
python train/study.py --study train/studies/locatello.toml --out studies/locatello --engine ray
python train/study.py --study train/studies/locatello.toml --out studies/locatello --unit 17
sbatch --array=0-503%64 launch/slurm_study.sh train/studies/locatello.toml studies/locatello

The same command continues an interrupted study. When all units are done it only writes
results.parquet and the page again.
"""

import signal
import sys
from pathlib import Path

import tyro

from adde.errors import UserError, run_program
from adde.study.page import write_page
from adde.study.results import RESULTS_NAME
from adde.study.run import Engine, collect, open_study, run_units
from adde.study.settings import read_study


def run_study(
    study: Path,
    out: Path,
    engine: Engine = "processes",
    workers: int | None = None,
    unit: int | None = None,
) -> None:
    """Run the units of a study (docs/study.md); then write results.parquet and study.html.

    Args:
        study: the study's TOML file.
        out: folder of the study.
        engine: processes of this machine, or the Ray cluster of RAY_ADDRESS, which must see the
            same folders.
        workers: number of processes; default: one per GPU, or one per core.
        unit: run the unit of this number (from 0) alone, without results and page; for job arrays.
    """
    read = read_study(study)
    units = open_study(read, out)
    jobs = list(enumerate(units))
    if unit is not None:
        if not 0 <= unit < len(units):
            raise UserError(f"--unit: expected 0 to {len(units) - 1}, found {unit}")
        jobs = jobs[unit : unit + 1]
    for done in run_units(read, jobs, out, engine, workers):
        print(done, flush=True)
    if unit is not None:
        return
    rows, notices = collect(read, units, out)
    for notice in notices:
        print(f"notice: {notice}")
    print(f"{out / RESULTS_NAME}, {write_page(read, rows, notices, out)}")


if __name__ == "__main__":
    # On SIGTERM, clean up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_program(lambda: tyro.cli(run_study))
