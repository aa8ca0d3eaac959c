"""A run as one page that opens anywhere: figures, answers, curves and prototypes.

report.html asks nothing of the network, and shows whatever the run folder holds so far.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from adde.files import read_json, write_text
from adde.metrics import BASELINES
from adde.pages import render
from adde.training.config import CONFIG_NAME
from adde.training.prototypes import nearest
from adde.training.resilience.preflight import PACKAGES, PREFLIGHT_NAME
from adde.training.watching.figures import Series, curves_svg, heat_map_svg, number
from adde.training.watching.panels import Panel, sections
from adde.training.watching.tracking import (
    LOG_NAME,
    PROTOTYPES_NAME,
    ROWS_NAME,
    read_log,
)

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.json"

MOST_CURVES = 12
"""Curves that one plot holds; of more, the highest, the median and the lowest are drawn."""

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
    page = render(
        Path(__file__).with_name("report.html.j2"),
        name=run.resolve().name,
        progress=_progress(log),
        alerts=[{"step": line["step"], **line["alert"]} for line in log if "alert" in line],
        split=metrics["split"] if metrics else "validation",
        headline=_headline(metrics, series),
        measures=list(MEASURES.values()),
        table=_table(metrics) if metrics else [],
        queries=metrics["adde"]["queries"] if metrics else 0,
        edits=_edits(metrics) if metrics else [],
        rows=rows["rows"] if rows else [],
        attributes=_attributes(metrics) if metrics else [],
        sections=_sections(series),
        heat_map=_heat_map(prototypes) if prototypes else "",
        prototypes=_prototypes(prototypes) if prototypes else [],
        starts=_starts(run / PREFLIGHT_NAME),
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
        # Of a run from before the match score, the published ranking.
        found = metrics.get("match", metrics["adde"])
        found = {**found, "accuracy": metrics["attribute_accuracy"]["mean"]}
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
    """The match score, ADDE's distance and the baselines; each cell is its share, and whether it is
    the column's best.
    """
    found = {"match score": metrics.get("match"), "ADDE": metrics["adde"], **metrics["baselines"]}
    order = [n for n in ("match score", "ADDE", *reversed(BASELINES)) if found.get(n)]
    best = {m: max(found[name][m] for name in order) for m in MEASURES}
    return [
        {
            "name": name.replace("_", " "),
            "cells": [(found[name][m], found[name][m] == best[m]) for m in MEASURES],
        }
        for name in order
    ]


def _edits(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """`first_wanted` and `wanted@10` of every ranking and number of edits at once."""
    return [
        {"name": name.replace("_", " "), "count": count, **row, "wanted": row["wanted@10"]}
        for name, rows in metrics.get("edits", {}).items()
        for count, row in rows.items()
    ]


def _attributes(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each attribute and hit@10 of its edits; None where there is none."""
    accuracy = {k: v for k, v in metrics["attribute_accuracy"].items() if k != "mean"}
    hits = {k: v for k, v in metrics.get("by_attribute", {}).items() if k != "macro"}
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
            if name not in ("step", "time", "alert") and value is not None:
                curve = series.setdefault(name, Series(name, [], []))
                curve.steps.append(line["step"])
                curve.values.append(value)
    return series


def _sections(series: dict[str, Series]) -> list[dict[str, Any]]:
    """The headings under which a run has anything, with their panels."""
    adde = min((s.steps[0] for name, s in series.items() if name.startswith("adde/")), default=None)
    found: list[dict[str, Any]] = []
    for heading, panels in sections().items():
        drawn = [drawing for panel in panels if (drawing := _panel(panel, series, adde))]
        if drawn:
            found.append({"heading": heading, "panels": drawn})
    return found


def _panel(panel: Panel, series: dict[str, Series], boundary: int | None) -> dict[str, Any] | None:
    shown = _joined(panel, [s for name, s in series.items() if panel.shows(name)])
    if not shown:
        return None
    if len(shown) > MOST_CURVES:
        shown = _spread(shown)
    return {
        "title": panel.title,
        "svg": curves_svg(shown, boundary, panel.wide_range),
        "legend": [(s.name, number(s.values[-1])) for s in shown],
    }


def _joined(panel: Panel, series: list[Series]) -> list[Series]:
    """Scalars of one name in both stages as one curve, named without what they have in common."""
    joined: dict[str, Series] = {}
    for part in series:
        name = panel.label(part.name)
        whole = joined.setdefault(name, Series(name, [], []))
        whole.steps.extend(part.steps)
        whole.values.extend(part.values)
    return list(joined.values())


def _spread(series: list[Series]) -> list[Series]:
    """The highest, the median and the lowest of many at each step; outer ones named at the end."""
    at: dict[int, list[float]] = {}
    for one in series:
        for step, value in zip(one.steps, one.values):
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    order = sorted(series, key=lambda s: s.values[-1])
    names = (f"highest: {order[-1].name}", f"median of {len(series)}", f"lowest: {order[0].name}")
    values = ([f(at[step]) for step in steps] for f in (max, np.median, min))
    return [Series(name, steps, [float(v) for v in found]) for name, found in zip(names, values)]


def _heat_map(prototypes: dict[str, Any]) -> str:
    similarity = np.asarray(prototypes["similarity"], dtype=np.float64)
    return heat_map_svg(similarity, prototypes["names"], prototypes["sizes"])


def _prototypes(prototypes: dict[str, Any]) -> list[dict[str, Any]]:
    """Every value: its block energy, and the values whose prototypes are nearest to its own."""
    similarity = np.asarray(prototypes["similarity"], dtype=np.float32)
    found = nearest(similarity, prototypes["names"])
    return [
        {"name": name, "energy": energy, "nearest": others}
        for name, energy, others in zip(prototypes["names"], prototypes["block_energy"], found)
    ]


def _starts(path: Path) -> list[dict[str, Any]]:
    """Start and resumptions of the run, oldest first."""
    return [
        {
            "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(start["time"])),
            "step": start["step"],
            "ranks": start["ranks"],
            "device": start["facts"]["device"],
            "code": _code(start),
            "versions": ", ".join(
                f"{name} {start['facts'][name]}" for name in PACKAGES if name in start["facts"]
            ),
        }
        for start in read_log(path)
    ]


def _code(start: dict[str, Any]) -> str:
    if start["commit"] is None:
        return "no checkout"
    return start["commit"][:10] + (" and changes" if start["dirty"] else "")
