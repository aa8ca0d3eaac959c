"""Measures a run's checkpoint on a split: a table, and metrics.json in the run's folder.

python train/evaluate.py --run runs/quickstart --split test
python train/evaluate.py --run runs/quickstart --split val --checkpoint last
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from adde import metrics
from adde.errors import run_program
from adde.files import write_json
from adde.schema import Schema
from adde.shards.queries import read_queries
from adde.training.checkpoint import load_model
from adde.training.evaluation import Evaluator, MemoryEdit, top_k_on
from adde.training.preflight import require_split
from adde.training.report import write_report
from adde.training.run_folder import open_shards

COLUMNS = ("hit@1", "hit@10", "hit@30", "ndcg@30", "ndcg_target@30", "ndcg_others@30")


def evaluate(
    run: Path,
    split: Literal["train", "val", "test"] = "test",
    checkpoint: Literal["best", "last"] = "best",
    shards: str | None = None,
    batch_size: int = 256,
) -> None:
    """Attribute manipulation retrieval and attribute accuracy (DESIGN 5).

    The test split's figures are metrics.json, from which report and model card are made; another
    split's are metrics-<split>.json.

    Args:
        run: folder of the run.
        split: whose items are gallery and queries.
        checkpoint: best on the validation split, or last.
        shards: folder or address of shards; default: those the run was trained on.
        batch_size: pictures encoded at a time.
    """
    model, config, found = load_model(run, checkpoint)
    index = open_shards(config, shards)
    require_split(index, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.schema.require_same(index.schema, str(found.path), str(index.root))

    encoded = Evaluator(index, batch_size, config.data.workers, device).encode(model, split)
    given = None
    if isinstance(index.root, Path):
        given = read_queries(index, split)
    else:
        print("behind an address, queries that a dataset brings along are not looked for")
    if given is not None:
        print(f"{len(given)} queries given with the shards are asked, and no others")
    figures = metrics.evaluate_split(
        encoded.embeddings,
        encoded.logits,
        encoded.labels,
        model.schema,
        MemoryEdit(model),
        given,
        top_k_on(device),
        partial(tqdm, desc="rank", unit="block", leave=False, disable=None),
    )
    content = {"split": split, "checkpoint": found.path.name, **figures}
    path = run / ("metrics.json" if split == "test" else f"metrics-{split}.json")
    write_json(path, content)
    print_tables(figures, model.schema)
    print(f"\n{found.path.name} of {run} on {split}: {path}, {write_report(run)}")


def print_tables(figures: dict[str, Any], schema: Schema) -> None:
    """Retrieval beside its baselines, then every attribute."""
    print(f"{'':18}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, row in {"adde": figures["adde"], **figures["baselines"]}.items():
        print(f"{name:18}" + "".join(f"{row[column]:16.4f}" for column in COLUMNS))
    print(f"{figures['adde']['queries']} queries\n")
    print(f"{'attribute':18}{'accuracy':>16}{'hit@10':>16}{'hit@30':>16}{'queries':>16}")
    accuracy, hits = figures["attribute_accuracy"], figures["by_attribute"]
    for name in ("mean", *schema.names):
        row = f"{name:18}{accuracy[name]:16.4f}" if name in accuracy else f"{name:18}{'-':>16}"
        if name in hits:
            hit = hits[name]
            row += f"{hit['hit@10']:16.4f}{hit['hit@30']:16.4f}{hit['queries']:16d}"
        print(row)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(evaluate))
