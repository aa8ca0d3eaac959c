"""A run as one page that opens anywhere: figures, answers, curves and prototypes.

report.html asks nothing of the network, and shows whatever the run folder holds so far.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from adde.files import read_json, write_text
from adde.metrics import BASELINES
from adde.training.config import CONFIG_NAME
from adde.training.figures import Series, curves_svg, heat_map_svg
from adde.training.tracking import (
    LOG_NAME,
    PROTOTYPES_NAME,
    ROWS_NAME,
    read_log,
)

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.json"

# Title, the scalars that share its panel by full match, whether they may lie far apart.
PANELS = (
    ("Encoder stage: loss terms", r"encoder/(?!active_|loss$).*", True),
    ("ADDE stage: loss terms", r"adde/(?!active_|exact_|usable_|loss$).*", True),
    ("Validation", r"val/(hit@1|hit@10|hit@30|ndcg@30|accuracy)", False),
    ("Share of active triplets", r"(encoder|adde)/active_\w+", False),
    ("Share of references with a target in the batch", r"adde/(exact_targets|usable_edits)", False),
    ("Learning rate", r"lr", False),
    ("Gradient norm", r"grad_norm", True),
    ("Images per second", r"images_per_second", False),
    ("Share of time waiting for data", r"data_wait", False),
    ("Peak memory, GB", r"memory_gb", False),
)
MEASURES = {
    "hit@1": "hit@1",
    "hit@10": "hit@10",
    "hit@30": "hit@30",
    "ndcg@30": "NDCG@30",
    "ndcg_target@30": "NDCG@30 target",
    "ndcg_others@30": "NDCG@30 others",
}


def write_report(run: Path) -> Path:
    """Writes `run`/report.html from whatever the run folder holds, and returns its path.

    Raises:
        UserError: metrics.json or a file of evaluation/ is not JSON.
    """
    metrics, rows = _read(run / METRICS_NAME), _read(run / ROWS_NAME)
    prototypes, config = _read(run / PROTOTYPES_NAME), run / CONFIG_NAME
    log = read_log(run / LOG_NAME)
    series = _series(log)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        progress=_progress(log),
        split=metrics["split"] if metrics else "validation",
        headline=_headline(metrics, series),
        measures=list(MEASURES.values()),
        table=_table(metrics) if metrics else [],
        queries=metrics["adde"]["queries"] if metrics else 0,
        rows=rows["rows"] if rows else [],
        attributes=_attributes(metrics) if metrics else [],
        panels=_panels(series),
        heat_map=_heat_map(prototypes) if prototypes else "",
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )
    write_text(run / REPORT_NAME, page)
    return run / REPORT_NAME


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _progress(log: list[dict[str, Any]]) -> str:
    if not log:
        return "no step logged yet"
    # A run may have rested between two lines: only the time between near ones was work.
    times = np.diff([line["time"] for line in log if "time" in line])
    minutes = float(times[times < 600].sum()) / 60
    took = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return f"{log[-1]['step']:,} steps in {took}"


def _headline(metrics: dict[str, Any] | None, series: dict[str, Series]) -> list[tuple[str, float]]:
    """Figures shown large: those of metrics.json, else the newest of validation."""
    if metrics:
        found = {**metrics["adde"], "accuracy": metrics["attribute_accuracy"]["mean"]}
    else:
        found = {
            name.removeprefix("val/"): line.values[-1]
            for name, line in series.items()
            if name.startswith("val/")
        }
    shown = {**MEASURES, "accuracy": "attribute accuracy"}
    keys = ("hit@1", "hit@10", "hit@30", "ndcg@30", "accuracy")
    return [(shown[key], found[key]) for key in keys if key in found]


def _table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """ADDE and its baselines; each cell is its share, and whether it is the column's best."""
    found = {"ADDE": metrics["adde"], **metrics["baselines"]}
    order = ["ADDE", *(name for name in reversed(BASELINES) if name in found)]
    best = {m: max(found[name][m] for name in order) for m in MEASURES}
    return [
        {
            "name": name.replace("_", " "),
            "cells": [(found[name][m], found[name][m] == best[m]) for m in MEASURES],
        }
        for name in order
    ]


def _attributes(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each attribute and hit@10 of its edits; None where there is none."""
    accuracy = {k: v for k, v in metrics["attribute_accuracy"].items() if k != "mean"}
    hits = metrics.get("by_attribute", {})
    return [
        {
            "name": name,
            "accuracy": accuracy.get(name),
            "hit": hits.get(name, {}).get("hit@10"),
            "queries": hits.get(name, {}).get("queries", 0),
        }
        for name in dict.fromkeys([*accuracy, *hits])
    ]


def _series(log: list[dict[str, Any]]) -> dict[str, Series]:
    """Every scalar by name; values that were not finite are left out."""
    series: dict[str, Series] = {}
    for line in log:
        for name, value in line.items():
            if name not in ("step", "time") and value is not None:
                curve = series.setdefault(name, Series(name, [], []))
                curve.steps.append(line["step"])
                curve.values.append(value)
    return series


def _panels(series: dict[str, Series]) -> list[dict[str, Any]]:
    adde = [s.steps[0] for name, s in series.items() if name.startswith("adde/")]
    panels: list[dict[str, Any]] = []
    for title, pattern, wide_range in PANELS:
        shown = _joined([s for name, s in series.items() if re.fullmatch(pattern, name)])
        if shown:
            legend = [(s.name, s.values[-1]) for s in shown]
            drawing = curves_svg(shown, min(adde, default=None), wide_range)
            panels.append({"title": title, "svg": drawing, "legend": legend})
    return panels


def _joined(series: list[Series]) -> list[Series]:
    """Scalars of one name in both stages as one curve, named without the stage."""
    joined: dict[str, Series] = {}
    for part in series:
        name = part.name.rpartition("/")[2]
        whole = joined.setdefault(name, Series(name, [], []))
        whole.steps.extend(part.steps)
        whole.values.extend(part.values)
    return list(joined.values())


def _heat_map(prototypes: dict[str, Any]) -> str:
    similarity = np.asarray(prototypes["similarity"], dtype=np.float64)
    return heat_map_svg(similarity, prototypes["names"], prototypes["sizes"])
