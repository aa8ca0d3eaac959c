"""The report's table of a run's scores of disentanglement."""

from typing import Any

from adde.training.watching.displays import Table

SCORES_NAME = "disentanglement.json"
"""Written by `train/evaluate.py --disentanglement`."""

SHOWN_LARGE = {
    "factor_vae": "FactorVAE score",
    "mig": "MIG",
    "mig_v": "MIG by probes",
    "dci_lgbm_disentanglement": "DCI disentanglement",
    "dci_sklearn_disentanglement": "DCI disentanglement",
}


def headline(content: dict[str, Any]) -> list[tuple[str, float | str]]:
    """Scores shown large."""
    figures, split = content["figures"], content["split"]
    return [(f"{SHOWN_LARGE[n]}, {split}", figures[n]) for n in SHOWN_LARGE if n in figures]


def tables(content: dict[str, Any]) -> list[Table]:
    """All scores, and the accuracy of each factor from each block."""
    split, chance = content["split"], content["chance"]
    rows = [[name, f"{value:.3f}"] for name, value in content["figures"].items()]
    notes = "; ".join(content["notes"])
    leakage = [[block, *row.values()] for block, row in content["leakage"].items()]
    return [
        Table(
            "disentanglement",
            f"Disentanglement, {split} split",
            f"{notes}.",
            ["", "score"],
            [*rows],
        ),
        Table(
            "leakage",
            f"Which block tells which factor, {split} split",
            "Accuracy in percent of a linear probe of each factor (across) on each block alone "
            "(down); the last row is the share of the most frequent value.",
            ["", *chance],
            [*leakage, ["chance", *chance.values()]],
            best=True,
        ),
    ]
