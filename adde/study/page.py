"""Write study.html: what a study's scores say, as one self-contained page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adde.disentanglement.coded import Floats
from adde.files import read_text, write_text
from adde.pages import render
from adde.study.plots import violins_svg
from adde.study.results import Models, Row, models_of, title_of
from adde.study.settings import Study
from adde.study.statistics import (
    UNLABELLED,
    expected_by_chance,
    explained,
    explained_interval,
    numbered,
    rank_correlations,
    seed_spread,
    selection,
)
from adde.training import watching
from adde.training.watching.figures import Series, curves_svg, number

PAGE_NAME = "study.html"

STYLES = Path(watching.__file__).parent
"""Folder of the report's styles."""

SCORES = (
    *("beta_vae", "factor_vae", "rf_metric_2", "mig", "dci_lgbm_disentanglement"),
    *("dci_sklearn_disentanglement", "sap", "modularity", "irs", "mig_v"),
)
"""Scores of disentanglement, in the page's order."""

ALSO = (
    "dci_lgbm_informativeness",
    "explicitness",
    "downstream_lgbm@1000",
    "downstream_lgbm_efficiency",
)
"""Scores that are only correlated."""

COMPARED = ("factor_vae", "mig_v", "dci_lgbm_disentanglement", "leak")
"""Scores that supervised encoders have too."""

TARGETS = ("factor_vae", "mig", "dci_lgbm_disentanglement", "sap")
"""Scores for which methods and strengths are chosen."""


def write_page(study: Study, rows: Sequence[Row], notices: Sequence[str], out: Path) -> Path:
    """Write `out`/study.html from a study's scores; return its path."""
    sets = [(one.name, models_of(rows, one.name)) for one in study.sets]
    names = [method.name for method in study.methods]
    colours = {name: f"var(--series-{place % 6})" for place, name in enumerate(names)}
    versions = dict.fromkeys(row.versions for row in rows if row.versions)
    page = render(
        Path(__file__).with_name("page.html.j2"),
        study=study,
        notices=notices,
        versions=list(versions),
        sets=[_of_set(name, models, colours) for name, models in sets if len(models.unsupervised)],
        css="".join(read_text(STYLES / name) for name in ("page.css", "plots.css")),
    )
    write_text(out / PAGE_NAME, page)
    return out / PAGE_NAME


def _of_set(name: str, everyone: Models, colours: dict[str, str]) -> dict[str, Any]:
    models = everyone.unsupervised
    scores = [score for score in SCORES if _is_whole(models, score)]
    return {
        "name": name,
        "models": len(models),
        "failed": everyone.failed,
        "headline": _headline(everyone, scores),
        "violins": _violins(everyone, [*scores, "leak"], colours),
        "explained": _explained(models, scores),
        "medians": _medians(everyone, [*scores, "leak"]),
        "correlations": _correlations(models, [*scores, *ALSO]),
        "curves": _total_correlations(models),
        "strengths": _strengths(models, scores),
        "selection": _selection(models),
    }


def _is_whole(models: Models, score: str) -> bool:
    return score in models.scores and bool(np.isfinite(models.scores[score]).all())


def _headline(everyone: Models, scores: Sequence[str]) -> list[tuple[str, str]]:
    """Figures shown large."""
    models = everyone.unsupervised
    cells = numbered(models.cells)
    found: list[tuple[str, str]] = []
    if "mig" in scores:
        values = models.scores["mig"]
        for label, groups in (("method", numbered(models.method)), ("method and strength", cells)):
            found.append((f"{explained(values, groups):.2f}", f"R² of MIG on {label}"))
        spread = seed_spread(values, cells)
        found.append((f"{spread.max():.2f}", "MIG: widest range of the seeds of one setting"))
    taught = everyone.only(np.isnan(everyone.hp))
    for score in ("mig_v", "dci_lgbm_disentanglement") if len(taught) else ():
        worst, best = taught.scores[score].min(), models.scores[score].max()
        found.append(
            (f"{worst:.2f} / {best:.2f}", f"{title_of(score)}: worst supervised, best unsupervised")
        )
    return found


def _violins(
    everyone: Models, scores: Sequence[str], colours: dict[str, str]
) -> list[dict[str, Any]]:
    methods = dict.fromkeys(everyone.method)
    found: list[dict[str, Any]] = []
    for score in scores:
        if score not in everyone.scores:
            continue
        groups: list[tuple[str, Floats, str]] = []
        for method in methods:
            own = everyone.scores[score][np.array(everyone.method) == method]
            if np.isfinite(own).all():
                groups.append((method, own, colours.get(method, "var(--ink)")))
        found.append({"title": title_of(score), "svg": violins_svg(groups), "legend": []})
    return found


def _explained(models: Models, scores: Sequence[str]) -> list[list[str]]:
    """A row per score: R^2 on method, and on method and strength, with intervals."""
    method, cells = numbered(models.method), numbered(models.cells)
    rows: list[list[str]] = []
    for score in scores:
        values, row = models.scores[score], [title_of(score)]
        for groups in (method, cells):
            low, high = explained_interval(values, groups, cells)
            row += [f"{explained(values, groups):.2f}", f"{low:.2f} to {high:.2f}"]
        spread = seed_spread(values, cells)
        rows.append([*row, f"{np.median(spread):.3f}", f"{spread.max():.3f}"])
    chance = [f"{expected_by_chance(len(models), int(g.max()) + 1):.2f}" for g in (method, cells)]
    return [*rows, ["by chance", chance[0], "", chance[1], "", "", ""]]


def _medians(everyone: Models, scores: Sequence[str]) -> dict[str, Any]:
    """The median of each method and strength, shaded within each column."""
    cells = numbered([(method, str(hp)) for method, hp in everyone.cells])
    rows: list[dict[str, Any]] = []
    present = [score for score in scores if score in everyone.scores]
    medians = np.array(
        [
            [np.median(everyone.scores[score][cells == cell]) for score in present]
            for cell in range(cells.max() + 1)
        ]
    )
    low, high = np.nanmin(medians, axis=0), np.nanmax(medians, axis=0)
    shades = (medians - low) / np.where(high > low, high - low, 1)
    for cell in range(len(medians)):
        place = int(np.flatnonzero(cells == cell)[0])
        method, hp = everyone.cells[place]
        values = zip(medians[cell].tolist(), shades[cell].tolist())
        rows.append(
            {
                "method": method,
                "strength": "labels" if hp != hp else f"{hp:g}",
                "count": int((cells == cell).sum()),
                "cells": [_cell(value, shade) for value, shade in values],
            }
        )
    return {"columns": [title_of(score) for score in present], "rows": rows}


def _cell(value: float, shade: float) -> dict[str, Any]:
    """Text and shade of a table's cell; negative shades have another colour."""
    if not np.isfinite(value):
        return {"text": "-", "shade": 0, "negative": False}
    return {"text": f"{value:.2f}", "shade": round(60 * abs(shade)), "negative": shade < 0}


def _correlations(models: Models, scores: Sequence[str]) -> dict[str, Any]:
    labelled = [score for score in scores if _is_whole(models, score)]
    present = labelled + [score for score in UNLABELLED if _is_whole(models, score)]
    matrix = rank_correlations([models.scores[score] for score in present])
    rows = [
        {"method": title_of(score), "cells": [_cell(value, value) for value in row]}
        for score, row in zip(present, matrix[:, : len(labelled)].tolist())
    ]
    return {"columns": [title_of(score) for score in labelled], "rows": rows}


def _strengths(models: Models, scores: Sequence[str]) -> list[dict[str, Any]]:
    """Curves of each score's median against the place of the strength, a curve per method."""
    found: list[dict[str, Any]] = []
    for score in scores:
        series: list[Series] = []
        for method in dict.fromkeys(models.method):
            _, medians = _by_strength(models, method, score)
            series.append(Series(method, [*range(1, len(medians) + 1)], medians))
        found.append(
            {
                "title": title_of(score),
                "svg": curves_svg(series),
                "legend": [(one.name, number(one.values[-1])) for one in series],
            }
        )
    return found


def _total_correlations(models: Models) -> list[dict[str, Any]]:
    """A panel per method: Gaussian total correlation of means and of sampled codes by strength."""
    found: list[dict[str, Any]] = []
    for method in dict.fromkeys(models.method):
        series: list[Series] = []
        for label, score in (("means", "gaussian_tc"), ("samples", "gaussian_tc, sampled")):
            strengths, medians = _by_strength(models, method, score)
            series.append(Series(label, strengths, medians))  # pyright: ignore[reportArgumentType]
        if all(np.isfinite(one.values).all() for one in series):
            found.append(
                {
                    "title": method,
                    "svg": curves_svg(series),
                    "legend": [(one.name, number(one.values[-1])) for one in series],
                }
            )
    return found


def _by_strength(models: Models, method: str, score: str) -> tuple[list[float], list[float]]:
    """Strengths of a method, ascending, and the median score of each."""
    mine = np.array(models.method) == method
    strengths = np.unique(models.hp[mine]).tolist()
    values = models.scores[score]
    return strengths, [float(np.median(values[mine & (models.hp == hp)])) for hp in strengths]


def _selection(models: Models) -> dict[str, Any] | None:
    """How often a chosen model beats a random one; None if there is one seed alone."""
    targets = [score for score in TARGETS if _is_whole(models, score)]
    if len(set(models.seed)) < 2 or len(targets) < 2:
        return None
    unlabelled = [score for score in UNLABELLED if _is_whole(models, score)]
    rows = [
        {
            "method": title_of(way),
            "cells": [{**_cell(c, 2 * c - 1), "text": f"{100 * c:.0f} %"} for c in chances],
        }
        for way, chances in selection(models, targets, unlabelled)
    ]
    return {"columns": [title_of(score) for score in targets], "rows": rows}
