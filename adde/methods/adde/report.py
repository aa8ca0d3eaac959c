"""Contents of the report and W&B for ADDE: answers, prototypes, test metrics."""

import math
from typing import Any

import numpy as np

from adde.methods.adde import similarity
from adde.methods.adde.model import ADDE
from adde.methods.adde.prototypes import block_energy, cosines, nearest
from adde.ranking import BASELINES
from adde.training.watching.displays import Matrix, Summary, Table

ANSWERS = (
    "The item asked about, the ten items of the validation split nearest to it, and the ten best "
    "answers to the edit by match score. Green with a tick: all attributes are as asked."
)

MEASURES = {
    "hit@1": "hit@1",
    "hit@10": "hit@10",
    "hit@30": "hit@30",
    "ndcg@30": "NDCG@30",
    "ndcg_target@30": "NDCG@30 target",
    "ndcg_others@30": "NDCG@30 others",
}


def prototypes(model: ADDE) -> tuple[Matrix, Table, dict[str, float]]:
    """Show the cosines of the prototypes, the nearest of each, and block energies as metrics."""
    columns = model.memory.weight.detach().float().cpu().numpy().T
    schema, names = model.schema, model.schema.value_names
    similarity = cosines(columns)
    matrix = Matrix(
        "How alike the prototypes are",
        "Cosine similarity of the memory's columns; outlined: the values of one attribute.",
        similarity,
        names,
        schema.sizes,
    )
    energy = [None if math.isnan(e) else float(e) for e in block_energy(columns, schema.sizes)]
    found = nearest(similarity, names)
    table = Table(
        "nearest_prototypes",
        "Prototypes",
        "Block energy: the share of a prototype's squared norm in its own attribute's block; at "
        "100 % its edit touches no other attribute. Beside it the values whose prototypes are "
        "nearest, with their cosines.",
        ["value", "block energy", *(f"nearest {i + 1}" for i in range(len(found[0])))],
        [
            [name, own, *(f"{other} {cosine:.2f}" for other, cosine in others)]
            for name, own, others in zip(names, energy, found)
        ],
        bars=True,
    )
    figures = {f"block_energy/{n}": e for n, e in zip(names, energy) if e is not None}
    mean = {"block_energy": float(np.mean(list(figures.values())))} if figures else {}
    return matrix, table, mean | figures


def summary(metrics: dict[str, Any]) -> Summary:
    """Summarise the test metrics of `train/evaluate.py`; older runs have no match score."""
    headline, tables, matrix = list[tuple[str, float | str]](), list[Table](), None
    if "adde" in metrics:
        best = metrics.get("match", metrics["adde"])
        headline += [(MEASURES[m], best[m]) for m in MEASURES if "_" not in m]
        headline.append(("attribute accuracy", metrics["attribute_accuracy"]["mean"]))
        tables += [_retrieval(metrics), _edits(metrics), _attributes(metrics)]
    if found := metrics.get("similarity"):
        headline.append(("MAP in own subspaces", found["map"]["subspace"]["mean"]))
        tables += similarity.tables(found)
        matrix = similarity.leak_matrix(found)
    return Summary(headline, [table for table in tables if table.rows], matrix)


def _retrieval(metrics: dict[str, Any]) -> Table:
    """Compare the match score, ADDE's distance and the baselines."""
    found = {"match score": metrics.get("match"), "ADDE": metrics["adde"], **metrics["baselines"]}
    order = [n for n in ("match score", "ADDE", *reversed(BASELINES)) if found.get(n)]
    return Table(
        "retrieval",
        f"Against the baselines, {metrics['split']} split",
        f"{metrics['adde']['queries']:,} queries, in percent, from pictures alone; the best of "
        "each column in bold.",
        ["", *MEASURES.values()],
        [[name.replace("_", " "), *(found[name][m] for m in MEASURES)] for name in order],
        best=True,
    )


def _edits(metrics: dict[str, Any]) -> Table:
    return Table(
        "edits",
        f"Does it obey, {metrics['split']} split",
        "Edits of known labels, whether or not an item has exactly what is asked: in percent, how "
        "often the first answer has the values asked for, and how many of the first ten.",
        ["", "edits at once", "first answer", "first ten", "questions"],
        [
            [name.replace("_", " "), str(n), r["first_wanted"], r["wanted@10"], r["queries"]]
            for name, rows in metrics.get("edits", {}).items()
            for n, r in rows.items()
        ],
    )


def _attributes(metrics: dict[str, Any]) -> Table:
    accuracy = {k: v for k, v in metrics["attribute_accuracy"].items() if k != "mean"}
    hits = {k: v for k, v in metrics.get("by_attribute", {}).items() if k != "macro"}
    return Table(
        "attributes",
        f"By attribute, {metrics['split']} split",
        "In percent; a dash where the split has no such label or edit.",
        ["attribute", "accuracy", "hit@10 of its edits"],
        [
            [name, accuracy.get(name), hits.get(name, {}).get("hit@10")]
            for name in dict.fromkeys([*accuracy, *hits])
        ],
        bars=True,
    )
