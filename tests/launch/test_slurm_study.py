"""launch/slurm_study.sh."""

import os
import re
import runpy
import subprocess

import tyro
from launching import LAUNCH, ROOT, require_usage

WORDS = ("train/studies/locatello.toml", "studies/a b")


def test_a_task_of_the_array_runs_its_unit(stubs):
    stubs.add("python")
    environment = {"PATH": stubs.path, "SLURM_ARRAY_TASK_ID": "17"}
    script = LAUNCH / "slurm_study.sh"
    subprocess.run(["bash", script, *WORDS], env=environment, cwd=ROOT, check=True)
    ((program, *options),) = stubs.calls("python")
    assert program == "train/study.py"
    function = runpy.run_path(str(ROOT / program))["run_study"]
    parsed = {}

    def record(study, out, engine="processes", workers=None, unit=None):
        parsed.update(study=str(study), out=str(out), engine=engine, workers=workers, unit=unit)

    record.__annotations__ = function.__annotations__
    tyro.cli(record, args=options)
    assert parsed == {
        **dict(zip(("study", "out"), WORDS)),
        "engine": "processes",
        "workers": 1,
        "unit": 17,
    }


def test_the_array_of_its_usage_has_a_task_for_each_unit():
    text = (LAUNCH / "slurm_study.sh").read_text()
    ((last, study),) = re.findall(r"sbatch --array=0-(\d+)%\d+ \S+ (\S+\.toml)", text)
    # tests/study counts the units.
    assert (last, study) == ("503", "train/studies/locatello.toml")
    assert "#SBATCH --requeue" in text  # and so that a task is preempted without loss


def test_the_script_parses_and_says_how_it_is_used():
    require_usage("slurm_study.sh")
    without = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm_study.sh", *WORDS], env=without, capture_output=True, text=True
    )
    assert done.returncode and "usage: sbatch --array" in done.stderr
