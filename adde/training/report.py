"""A run as one page that opens anywhere: figures, curves, prototypes, and what it answers."""

import io
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from adde.files import read_json, write_text
from adde.training.config import CONFIG_NAME
from adde.training.tracking import LOG_NAME

PANELS = (
    ("Encoder losses", r"encoder/(?!active|loss)"),
    ("ADDE losses", r"adde/(?!active|exact|usable|loss)"),
    ("Validation", r"val/(hit@1|hit@10|hit@30|ndcg@30|accuracy)$"),
    ("Shares in the batch", r"(encoder|adde)/(active_local|active_global|exact_targets)$"),
    ("Learning rate", r"lr$"),
    ("Gradient norm", r"grad_norm$"),
    ("Images per second", r"images_per_second$"),
    ("Time waiting for data (share)", r"data_wait$"),
)
MEASURES = ("hit@1", "hit@10", "hit@30", "ndcg@30", "ndcg_target@30", "ndcg_others@30")
COLOURS = ("#2f6fde", "#d9822b", "#2a9d6f", "#b04acb", "#c23b4e", "#6b7785")
INK = "#7a828e"
"""Legible on the light and on the dark page, since a figure cannot know which it is on."""

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def write_report(run: Path) -> Path:
    """Writes `run`/report.html from whatever the run folder holds, and returns its path."""
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").exists() else None
    evaluation = run / "evaluation"
    rows = evaluation / "rows.json"
    prototypes = evaluation / "prototypes.json"
    template = jinja2.Environment(autoescape=True).from_string(
        (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        name=run.name,
        metrics=metrics,
        table=_table(metrics) if metrics else [],
        measures=MEASURES,
        attributes=_attributes(metrics) if metrics else [],
        rows=read_json(rows)["rows"] if rows.exists() else [],
        curves=_curves(_read_log(run / LOG_NAME)),
        heat_map=_svg(_heat_map(read_json(prototypes))) if prototypes.exists() else None,
        config=(run / CONFIG_NAME).read_text() if (run / CONFIG_NAME).exists() else "",
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def heat_map_png(prototypes: dict[str, Any]) -> bytes:
    """The prototype heat map as a PNG, on white."""
    buffer = io.BytesIO()
    _heat_map(prototypes).savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """ADDE and its baselines, each cell with its value and whether it is the column's best."""
    rows = {"ADDE": metrics["adde"], **metrics["baselines"]}
    best = {measure: max(row[measure] for row in rows.values()) for measure in MEASURES}
    return [
        {
            "name": name.replace("_", " "),
            "cells": [(f"{100 * row[m]:.2f}", row[m] == best[m]) for m in MEASURES],
        }
        for name, row in rows.items()
    ]


def _attributes(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    hits = metrics.get("by_attribute", {})
    return [
        {"name": name, "accuracy": accuracy, "hit": hits.get(name, {}).get("hit@10")}
        for name, accuracy in metrics["attribute_accuracy"].items()
        if name != "mean"
    ]


def _read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in ("step", "time"):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return series


def _curves(series: dict[str, tuple[list[int], list[float]]]) -> list[tuple[str, str]]:
    panels: list[tuple[str, str]] = []
    for title, pattern in PANELS:
        shown = {name: s for name, s in series.items() if re.match(pattern, name)}
        if shown:
            panels.append((title, _svg(_curve(shown))))
    return panels


def _curve(series: dict[str, tuple[list[int], list[float]]]) -> Figure:
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, (steps, values)), colour in zip(series.items(), COLOURS * 3):
        label = name.split("/")[-1] if len(series) > 1 else None
        dense = len(values) > 60
        axes.plot(steps, values, color=colour, lw=0.7, alpha=0.25 if dense else 0.0)
        smooth = _smooth(values) if dense else np.asarray(values)
        axes.plot(steps, smooth, color=colour, lw=1.5, label=label, marker=None if dense else ".")
    axes.grid(alpha=0.15)
    axes.set_xlabel("step")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _smooth(values: list[float]) -> np.ndarray:
    """Running mean over about a fiftieth of the curve, shorter at its ends."""
    width = max(1, len(values) // 50)
    window = np.ones(2 * width + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _heat_map(prototypes: dict[str, Any]) -> Figure:
    names, similarity = prototypes["names"], np.asarray(prototypes["similarity"])
    side = min(11.0, 2.2 + 0.13 * len(names))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    start = 0
    for size in prototypes["sizes"]:
        corner = (start - 0.5, start - 0.5)
        axes.add_patch(mpl.patches.Rectangle(corner, size, size, fill=False, ec=INK, lw=1.2))
        start += size
    if len(names) <= 90:
        axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.5, label="cosine")
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]
