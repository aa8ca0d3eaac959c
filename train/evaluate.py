"""Evaluate a run's checkpoint on a split: print tables and write a file of metrics.

With --disentanglement, score how well the codes of runs of any method keep factors apart.

python train/evaluate.py --run runs/quickstart --split test
python train/evaluate.py --run runs/quickstart --task similarity
python train/evaluate.py --run runs/quickstart --split val --checkpoint last
python train/evaluate.py --disentanglement --run runs/beta-tcvae runs/quickstart --codes theirs.npz
"""

from pathlib import Path
from typing import Literal

import torch
import tyro

from adde.disentanglement import as_text
from adde.errors import UserError, did_you_mean, run_program
from adde.files import write_json
from adde.schema import Schema
from adde.training.disentanglement import score_encoders
from adde.training.evaluation import Evaluator
from adde.training.method import Task, find_method
from adde.training.opening import load_model
from adde.training.resilience.requirements import require_split
from adde.training.run_folder import open_shards
from adde.training.watching.encoder_scores import SCORES_NAME
from adde.training.watching.report import results_path, write_report

Split = Literal["train", "val", "test"]


def evaluate(
    run: tuple[Path, ...] = (),
    split: Split = "test",
    task: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    shards: str | None = None,
    batch_size: int = 256,
    queries: int = 20_000,
    disentanglement: bool = False,
    codes: tuple[Path, ...] = (),
    trees: Literal["lgbm", "sklearn"] = "lgbm",
    tasks: bool = False,
    bundle: tuple[Path, ...] = (),
    untrained: bool = False,
) -> None:
    """Run one of the method's evaluations (docs/architecture.md), or measure the disentanglement
    of codes (docs/vae.md).

    A run of ADDE has the tasks `manipulation` (retrieval of edits, and attribute accuracy) and
    `similarity` (conditional similarity, and the leak matrix); one of `outfits` has `outfits`, and
    one of `decoder` has `drawing` (docs/drawing.md).

    Manipulation of the test split writes metrics.json, of another split metrics-<split>.json; any
    other task writes <task>-<split>.json. The report shows the test split's files. Scores of codes
    go to disentanglement.json.

    Args:
        run: folders of runs.
        split: items for gallery and queries, or items to encode.
        task: what to evaluate; default: the method's first task.
        checkpoint: best on the validation split, or last.
        shards: folder or address of shards; default: those the run was trained on.
        batch_size: pictures encoded at a time.
        queries: maximum number of queries, evenly spaced over all; 0: all.
        disentanglement: score the codes of runs of any method, in one table.
        codes: .npz files of other codes for that table: codes (N, L) and labels (N, K), optionally
            factors (K names), blocks (L,) and sampled (N, L).
        trees: of DCI; sklearn's are the published ones, and 50 times slower.
        tasks: also score downstream tasks, which takes longer than all other scores.
        bundle: folders of exported bundles for that table; they encode --shards.
        untrained: also score each run's model as it was before training.
    """
    if not run and not codes and not bundle:
        raise UserError("expected --run with the folder of a run, found none")
    if disentanglement or codes or bundle or untrained:
        scores = score_encoders(
            run, codes, split, checkpoint, shards, batch_size, trees, tasks, bundle, untrained
        )
        print(as_text(scores))
        for one in run:
            print(f"\n{one / SCORES_NAME}, {write_report(one)}")
        return
    for one in run:
        evaluate_task(one, split, task, checkpoint, shards, batch_size, queries)


def evaluate_task(
    run: Path,
    split: Split,
    task: str | None,
    checkpoint: str,
    shards: str | None,
    batch_size: int,
    queries: int,
) -> None:
    """Evaluate a run by one of its method's tasks; see `evaluate`."""
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
            f"one of {method!r}; train/evaluate.py --disentanglement scores the codes of any"
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
