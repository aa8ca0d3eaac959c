"""Evaluate a run's checkpoint on a split: prints tables and writes metrics.json.

With --disentanglement, score how well the codes of runs of any method keep factors apart.

python train/evaluate.py --run runs/quickstart --split test
python train/evaluate.py --run runs/quickstart --split val --checkpoint last
python train/evaluate.py --disentanglement --run runs/beta-tcvae runs/quickstart --codes theirs.npz
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from adde.disentanglement import as_text
from adde.edits import MAX_QUERIES
from adde.errors import UserError, run_program
from adde.files import write_json
from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.evaluation import encode_split, evaluate_split, memory_edit
from adde.methods.adde.opening import load_adde
from adde.metrics import manipulation_queries
from adde.schema import Schema
from adde.shards.queries import read_queries
from adde.training.disentanglement import score_encoders
from adde.training.evaluation import Evaluator
from adde.training.ranking import ranker_for
from adde.training.resilience.requirements import require_split
from adde.training.run_folder import open_shards
from adde.training.watching.encoder_scores import SCORES_NAME
from adde.training.watching.report import write_report

COLUMNS = ("hit@1", "hit@10", "hit@30", "ndcg@30", "ndcg_target@30", "ndcg_others@30")


Split = Literal["train", "val", "test"]


def evaluate(
    run: tuple[Path, ...] = (),
    split: Split = "test",
    checkpoint: Literal["best", "last"] = "best",
    shards: str | None = None,
    batch_size: int = 256,
    queries: int = 20_000,
    disentanglement: bool = False,
    codes: tuple[Path, ...] = (),
    trees: Literal["lgbm", "sklearn"] = "lgbm",
    tasks: bool = False,
) -> None:
    """Measure attribute manipulation retrieval and attribute accuracy (docs/architecture.md), or
    the disentanglement of codes (docs/vae.md).

    The test split's metrics go to metrics.json, which the report and the model card use; another
    split's go to metrics-<split>.json. Scores of codes go to disentanglement.json.

    Args:
        run: folders of runs.
        split: items for gallery and queries, or items to encode.
        checkpoint: best on the validation split, or last.
        shards: folder or address of shards; default: those the run was trained on.
        batch_size: pictures encoded at a time.
        queries: maximum number of queries, evenly spaced over all; 0: all.
        disentanglement: score the codes of runs of any method, in one table.
        codes: .npz files of other codes for that table: codes (N, L) and labels (N, K), optionally
            factors (K names), blocks (L,) and sampled (N, L).
        trees: of DCI; sklearn's are the published ones, and 50 times slower.
        tasks: also score downstream tasks, which takes longer than all other scores.
    """
    if not run and not codes:
        raise UserError("expected --run with the folder of a run, found none")
    if disentanglement or codes:
        scores = score_encoders(run, codes, split, checkpoint, shards, batch_size, trees, tasks)
        print(as_text(scores))
        for one in run:
            print(f"\n{one / SCORES_NAME}, {write_report(one)}")
        return
    for one in run:
        evaluate_edits(one, split, checkpoint, shards, batch_size, queries)


def evaluate_edits(
    run: Path, split: Split, checkpoint: str, shards: str | None, batch_size: int, queries: int
) -> None:
    """Measure retrieval and attribute accuracy of a run of ADDE; see `evaluate`."""
    model, config, found = load_adde(run, checkpoint)
    index = open_shards(config, shards)
    require_split(index, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.schema.require_same(index.schema, str(found.path), str(index.root))

    evaluator = Evaluator(index, batch_size, config.data.workers, device)
    calibration, _ = calibration_of(found, model, evaluator)
    encoded = encode_split(evaluator, model, split)
    given = None
    if isinstance(index.root, Path):
        given = read_queries(index, split)
    else:
        print("shards at an address: a dataset's own queries are not used")
    if given is not None:
        print(f"using the {len(given)} queries that come with the shards")
    asked = (manipulation_queries(encoded.labels) if given is None else given).spread(queries)
    figures = evaluate_split(
        encoded,
        model.schema,
        memory_edit(model),
        calibration,
        asked,
        min(queries, MAX_QUERIES) or MAX_QUERIES,
        ranker_for(device, partial(tqdm, desc="rank", unit="block", leave=False, disable=None)),
    )
    content = {"split": split, "checkpoint": found.path.name, **figures}
    path = run / ("metrics.json" if split == "test" else f"metrics-{split}.json")
    write_json(path, content)
    print_tables(figures, model.schema)
    print(f"\n{found.path.name} of {run} on {split}: {path}, {write_report(run)}")


def print_tables(figures: dict[str, Any], schema: Schema) -> None:
    """Print retrieval and its baselines, edits of known labels, and every attribute."""
    headline = {name: figures[name] for name in ("match", "adde")}
    print(f"{'':18}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, row in {**headline, **figures["baselines"]}.items():
        print(f"{name:18}" + "".join(f"{row[column]:16.4f}" for column in COLUMNS))
        if name == "match":
            bounds = (row["interval"][column] for column in COLUMNS)
            print(f"{'  95 % interval':18}" + "".join(f"  {a:.4f}-{b:.4f}" for a, b in bounds))
    print(f"{headline['adde']['queries']} queries\n")

    print(f"{'edits at once':18}{'first_wanted':>16}{'wanted@10':>16}{'queries':>16}")
    for name, rows in figures["edits"].items():
        for count, row in rows.items():
            cells = f"{row['first_wanted']:16.4f}{row['wanted@10']:16.4f}{row['queries']:16d}"
            print(f"{f'{name}, {count}':18}{cells}")
    print()

    edits = figures["edits"]["match"].get("1", {}).get("by_attribute", {})
    accuracy, hits = figures["attribute_accuracy"], figures["by_attribute"]
    columns = ("hit@1", "hit@10", "hit@30", "first_wanted", "wanted@10")
    print(f"{'match by attribute':18}{'accuracy':>16}" + "".join(f"{c:>16}" for c in columns))
    for name in ("macro", *schema.names):
        row = {**hits.get(name, {}), **edits.get(name, {})}
        row["accuracy"] = accuracy.get("mean" if name == "macro" else name)
        cells = (row.get(column) for column in ("accuracy", *columns))
        print(f"{name:18}" + "".join(f"{'-':>16}" if c is None else f"{c:16.4f}" for c in cells))


if __name__ == "__main__":
    run_program(lambda: tyro.cli(evaluate))
