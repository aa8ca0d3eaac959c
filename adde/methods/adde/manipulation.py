"""The task `manipulation`: retrieval of edits beside its baselines, and attribute accuracy."""

from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adde.edits import MAX_QUERIES
from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.evaluation import encode_split, evaluate_split, memory_edit
from adde.methods.adde.model import ADDE
from adde.metrics import manipulation_queries
from adde.schema import Schema
from adde.shards.queries import read_queries
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator
from adde.training.method import Measured
from adde.training.ranking import ranker_for

COLUMNS = ("hit@1", "hit@10", "hit@30", "ndcg@30", "ndcg_target@30", "ndcg_others@30")


def measure(
    model: ADDE, checkpoint: Checkpoint, evaluator: Evaluator, split: str, queries: int
) -> Measured:
    """Attribute manipulation retrieval and attribute accuracy; see `adde.training.method.Task`."""
    calibration, _ = calibration_of(checkpoint, model, evaluator)
    encoded = encode_split(evaluator, model, split)
    given = None
    if isinstance(evaluator.index.root, Path):
        given = read_queries(evaluator.index, split)
    else:
        print("shards at an address: a dataset's own queries are not used")
    if given is not None:
        print(f"using the {len(given)} queries that come with the shards")
    asked = (manipulation_queries(encoded.labels) if given is None else given).spread(queries)
    watch = partial(tqdm, desc="rank", unit="block", leave=False, disable=None)
    figures = evaluate_split(
        encoded,
        model.schema,
        memory_edit(model),
        calibration,
        asked,
        min(queries, MAX_QUERIES) or MAX_QUERIES,
        ranker_for(evaluator.device, watch),
    )
    return Measured(figures, "\n".join(tables(figures, model.schema)))


def tables(figures: dict[str, Any], schema: Schema) -> list[str]:
    """Format retrieval beside its baselines, edits of known labels, then every attribute."""
    headline = {name: figures[name] for name in ("match", "adde")}
    lines = [f"{'':18}" + "".join(f"{column:>16}" for column in COLUMNS)]
    for name, row in {**headline, **figures["baselines"]}.items():
        lines.append(f"{name:18}" + "".join(f"{row[column]:16.4f}" for column in COLUMNS))
        if name == "match":
            bounds = (row["interval"][column] for column in COLUMNS)
            cells = "".join(f"  {a:.4f}-{b:.4f}" for a, b in bounds)
            lines.append(f"{'  95 % interval':18}{cells}")
    lines += [f"{headline['adde']['queries']} queries", ""]

    lines.append(f"{'edits at once':18}{'first_wanted':>16}{'wanted@10':>16}{'queries':>16}")
    for name, rows in figures["edits"].items():
        for count, row in rows.items():
            cells = f"{row['first_wanted']:16.4f}{row['wanted@10']:16.4f}{row['queries']:16d}"
            lines.append(f"{f'{name}, {count}':18}{cells}")
    lines.append("")

    edits = figures["edits"]["match"].get("1", {}).get("by_attribute", {})
    accuracy, hits = figures["attribute_accuracy"], figures["by_attribute"]
    columns = ("hit@1", "hit@10", "hit@30", "first_wanted", "wanted@10")
    heading = "".join(f"{c:>16}" for c in columns)
    lines.append(f"{'match by attribute':18}{'accuracy':>16}{heading}")
    for name in ("macro", *schema.names):
        row = {**hits.get(name, {}), **edits.get(name, {})}
        row["accuracy"] = accuracy.get("mean" if name == "macro" else name)
        found = (row.get(column) for column in ("accuracy", *columns))
        cells = "".join(f"{'-':>16}" if c is None else f"{c:16.4f}" for c in found)
        lines.append(f"{name:18}{cells}")
    return lines
