"""Write report.html: a run's metrics, pictures, curves and tables as one self-contained page.

It loads nothing from the network, and shows what the run's folder contains so far.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adde.files import read_json, write_text
from adde.pages import render
from adde.training.method import Method
from adde.training.recipes import CONFIG_NAME, method_of, read_settings
from adde.training.resilience.preflight import PACKAGES, PREFLIGHT_NAME
from adde.training.watching import encoder_scores
from adde.training.watching.displays import Cell, Summary, Table
from adde.training.watching.figures import Series, curves_svg, heat_map_svg, number
from adde.training.watching.panels import PANELS, Panel, sections
from adde.training.watching.tracking import DISPLAYS_NAME, LOG_NAME, read_log

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.json"

MOST_CURVES = 12
"""Curves per plot; if there are more, only the highest, the median and the lowest are drawn."""


def write_report(run: Path) -> Path:
    """Write `run`/report.html from what the run's folder contains; return its path.

    Raises:
        UserError: metrics.json, disentanglement.json or a file of evaluation/ is not JSON.
    """
    shown = _read(run / DISPLAYS_NAME) or {}
    config, log = run / CONFIG_NAME, read_log(run / LOG_NAME)
    method = method_of(read_settings(config) if config.exists() else {})
    metrics = _results(run, method)
    series = _series(log)
    summary = method.summary(metrics) if metrics else Summary(_newest(method, series))
    matrices = [summary.matrix and vars(summary.matrix), shown.get("matrix")]
    split = "test" if metrics else "validation"
    headline = [(f"{label}, {split}", value) for label, value in summary.headline]
    scores = _read(run / encoder_scores.SCORES_NAME)
    scored = encoder_scores.tables(scores) if scores else []
    page = render(
        Path(__file__).with_name("report.html.j2"),
        name=run.resolve().name,
        title=method.title,
        progress=_progress(log),
        alerts=[{"step": line["step"], **line["alert"]} for line in log if "alert" in line],
        headline=[*headline, *(encoder_scores.headline(scores) if scores else [])],
        pictures=shown.get("pictures"),
        results=[_table(table) for table in (*summary.tables, *scored)],
        sections=_sections((*method.panels, *PANELS), series),
        matrices=[_heat_map(matrix) for matrix in matrices if matrix],
        tables=[_table(Table(**table)) for table in shown.get("tables", [])],
        starts=_starts(run / PREFLIGHT_NAME),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )
    write_text(run / REPORT_NAME, page)
    return run / REPORT_NAME


def results_path(run: Path, task: str, split: str) -> Path:
    """Return the file of an evaluation; that of `manipulation` is metrics.json."""
    if task == "manipulation":
        return run / (METRICS_NAME if split == "test" else f"metrics-{split}.json")
    return run / f"{task}-{split}.json"


def _results(run: Path, method: Method) -> dict[str, Any]:
    """The test split's evaluations; see `Method.summary`."""
    metrics: dict[str, Any] = _read(run / METRICS_NAME) or {}
    files = {task: results_path(run, task, "test") for task in method.tasks}
    others = {task: path for task, path in files.items() if path.name != METRICS_NAME}
    return metrics | {task: _read(path) for task, path in others.items() if path.exists()}


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _progress(log: list[dict[str, Any]]) -> str:
    if not log:
        return "no step logged yet"
    # The run may have been interrupted: longer gaps between lines do not count.
    times = np.diff([line["time"] for line in log if "time" in line])
    minutes = float(times[times < 600].sum()) / 60
    took = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return f"{log[-1]['step']:,} steps in {took}"


def _newest(method: Method, series: dict[str, Series]) -> list[tuple[str, float | str]]:
    """Return the newest validation metrics, for a run without a final evaluation."""
    keys = {name: f"val/{name}" for name in method.terminal_metrics}
    found = [(name, series[key].values[-1]) for name, key in keys.items() if key in series]
    return [(name, value if method.metrics_are_shares else number(value)) for name, value in found]


def _table(table: Table) -> dict[str, Any]:
    """Prepare a table's cells for the template, as `share` and `text`."""
    columns = list(zip(*table.rows))
    best = [max((v for v in c if isinstance(v, float)), default=None) for c in columns]
    rows = [
        [
            {
                "share": cell if isinstance(cell, float) else None,
                "text": _text(cell),
                "best": table.best and isinstance(cell, float) and cell == best[at],
            }
            for at, cell in enumerate(row)
        ]
        for row in table.rows
    ]
    return {**vars(table), "rows": rows}


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{100 * cell:.1f}"
    return "-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def _series(log: list[dict[str, Any]]) -> dict[str, Series]:
    """Collect scalars by name, without values that were not finite."""
    series: dict[str, Series] = {}
    for line in log:
        for name, value in line.items():
            if name not in ("step", "time", "alert") and value is not None:
                curve = series.setdefault(name, Series(name, [], []))
                curve.steps.append(line["step"])
                curve.values.append(value)
    return series


def _sections(panels: Sequence[Panel], series: dict[str, Series]) -> list[dict[str, Any]]:
    """Draw the panels for which the run has scalars, by heading."""
    starts = sorted(s.steps[0] for name, s in series.items() if name.endswith("/loss"))
    boundary = starts[1] if len(starts) > 1 else None
    found: list[dict[str, Any]] = []
    for heading, under in sections(panels).items():
        drawn = [drawing for panel in under if (drawing := _panel(panel, series, boundary))]
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
    """Join a scalar's series of all stages into one curve, named by `Panel.label`."""
    joined: dict[str, Series] = {}
    for part in series:
        name = panel.label(part.name)
        whole = joined.setdefault(name, Series(name, [], []))
        whole.steps.extend(part.steps)
        whole.values.extend(part.values)
    return list(joined.values())


def _spread(series: list[Series]) -> list[Series]:
    """Reduce series to the highest, median and lowest value per step, named by the last step."""
    at: dict[int, list[float]] = {}
    for one in series:
        for step, value in zip(one.steps, one.values):
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    order = sorted(series, key=lambda s: s.values[-1])
    names = (f"highest: {order[-1].name}", f"median of {len(series)}", f"lowest: {order[0].name}")
    values = ([f(at[step]) for step in steps] for f in (max, np.median, min))
    return [Series(name, steps, [float(v) for v in found]) for name, found in zip(names, values)]


def _heat_map(matrix: dict[str, Any]) -> dict[str, str]:
    values = np.asarray(matrix["values"], dtype=np.float64)
    svg = heat_map_svg(values, matrix["names"], matrix["sizes"])
    return {"title": matrix["title"], "text": matrix["text"], "svg": svg}


def _starts(path: Path) -> list[dict[str, Any]]:
    """List the starts of the run, oldest first."""
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
