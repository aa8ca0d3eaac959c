"""Measures a run's checkpoint on a split: a table, and a JSON file in the run's folder.

python train/evaluate.py --run runs/quickstart --split test
python train/evaluate.py --run runs/quickstart --split val --checkpoint last
python train/evaluate.py --run runs/quickstart --task similarity
"""

from pathlib import Path
from typing import Literal

import torch
import tyro

from adde.errors import UserError, did_you_mean, run_program
from adde.files import write_json
from adde.schema import Schema
from adde.training.evaluation import Evaluator
from adde.training.method import Task, find_method
from adde.training.opening import load_model
from adde.training.resilience.requirements import require_split
from adde.training.run_folder import open_shards
from adde.training.watching.report import results_path, write_report


def evaluate(
    run: Path,
    split: Literal["train", "val", "test"] = "test",
    task: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    shards: str | None = None,
    batch_size: int = 256,
    queries: int = 20_000,
) -> None:
    """Runs one of the method's evaluations (docs/architecture.md).

    An ADDE is evaluated by the tasks `manipulation` (retrieval of edits, and attribute accuracy)
    and `similarity` (conditional similarity, and the leak matrix).

    Manipulation on the test split writes metrics.json, on another split metrics-<split>.json. Any
    other task writes <task>-<split>.json. The report shows the files of the test split.

    Args:
        run: folder of the run.
        split: whose items are gallery and queries.
        task: what is evaluated; default: the method's first task.
        checkpoint: best on the validation split, or last.
        shards: folder or address of shards; default: those the run was trained on.
        batch_size: pictures encoded at a time.
        queries: most that are asked, evenly spaced over all; 0: all.
    """
    model, config, found = load_model(run, checkpoint)
    name, measure = _task(run, config.method, task)
    index = open_shards(config, shards)
    require_split(index, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    schema = Schema.from_json(found.state["schema"], str(found.path))
    schema.require_same(index.schema, str(found.path), str(index.root))
    evaluator = Evaluator(index, batch_size, config.data.workers, device)
    measured = measure(model.to(device), found, evaluator, split, queries)
    path = results_path(run, name, split)
    write_json(path, {"split": split, "checkpoint": found.path.name, **measured.content})
    print(measured.text)
    print(f"\n{found.path.name} of {run} on {split}: {path}, {write_report(run)}")


def _task(run: Path, method: str, name: str | None) -> tuple[str, Task]:
    tasks = find_method(method).tasks
    if not tasks:
        raise UserError(
            f"{run}: expected a run of a method with evaluations of its own, such as 'adde', found "
            f"one of {method!r}"
        )
    name = name or next(iter(tasks))
    if name not in tasks:
        raise UserError(
            f"--task: expected an evaluation of the method {method!r}, found {name!r}; "
            f"{did_you_mean(name, tasks)}"
        )
    return name, tasks[name]


if __name__ == "__main__":
    run_program(lambda: tyro.cli(evaluate))
