"""What a study's scores say together: variance explained, rank correlations, choices of models.

Symbols: N models of one set, a cell is a method with a strength. Scores are (N,) float64.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from adde.disentanglement.coded import Floats
from adde.errors import library
from adde.schema import Labels
from adde.study.results import Models

RESAMPLED = 1000
"""Bootstrap samples."""

INTERVAL = (2.5, 97.5)
"""Percentiles of an interval."""

HIGHER_IS_BETTER = ("elbo",)
"""Scores without labels that are large in good models; of all others the smallest is chosen."""


def numbered(groups: Sequence[Hashable]) -> Labels:
    """Return the number of each model's group (N,), from 0."""
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return np.array([places[group] for group in groups])


def explained(values: Floats, groups: Labels) -> Floats:
    """Return R^2 (...) of scores (..., N) on groups (N,).

    It is the share of variance that lies between the groups' means; NaN if all scores are equal.
    """
    member = np.eye(int(groups.max()) + 1)[groups]
    means = values @ member / member.sum(axis=0)
    total = values.var(axis=-1)
    within = ((values - means[..., groups]) ** 2).mean(axis=-1)
    return 1 - within / np.where(total > 0, total, np.nan)


def explained_interval(
    values: Floats, groups: Labels, cells: Labels, seed: int = 0
) -> tuple[float, float]:
    """Return a bootstrap interval of `explained`.

    A sample is the mean of each cell plus residuals drawn from that cell, times sqrt(n / (n - 1)),
    without which the variance between seeds would be too small by that factor squared.

    Args:
        values: (N,) scores.
        groups: (N,) that explain; unions of cells.
        cells: (N,) method and strength; seeds of a cell are exchangeable.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(cells)
    means = np.bincount(cells, values) / counts
    scale = np.sqrt(counts / np.maximum(counts - 1, 1))[cells]
    by_cell = np.argsort(cells, kind="stable")
    residuals = ((values - means[cells]) * scale)[by_cell]
    first = (np.cumsum(counts) - counts)[cells]
    drawn = first + (rng.random((RESAMPLED, len(values))) * counts[cells]).astype(np.int64)
    found = explained(means[cells] + residuals[drawn], groups)
    low, high = np.nanpercentile(found, INTERVAL)
    return float(low), float(high)


def expected_by_chance(models: int, groups: int) -> float:
    """Return the mean R^2 of scores that do not depend on the groups."""
    return (groups - 1) / (models - 1)


def rank_correlations(columns: Sequence[Floats]) -> Floats:
    """Return Spearman's correlations (S, S) of scores; NaN where one is constant."""
    ranks = np.array([library("scipy.stats", "study").rankdata(column) for column in columns])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    centred /= np.where(lengths > 0, lengths, np.nan)[:, None]
    return centred @ centred.T


def seed_spread(values: Floats, cells: Labels) -> Floats:
    """Return the largest minus the smallest score of each cell."""
    return np.array([np.ptp(values[cells == cell]) for cell in range(cells.max() + 1)])


def chance_to_beat(chosen_by: Callable[[Labels], Labels], values: Floats, seed: Labels) -> float:
    """Return how often a model with a chosen method and strength beats a random model.

    For each seed s, cells are chosen by what the other seeds say, and the model of seed s is
    compared with all models; a tie counts half, and so does the model with itself.

    Args:
        chosen_by: maps models' rows, those of other seeds, to the rows of the chosen cell.
        values: (N,) scores that decide.
        seed: (N,).
    """
    found: list[float] = []
    for one in np.unique(seed):
        chosen = chosen_by(np.flatnonzero(seed != one))
        own = chosen[seed[chosen] == one]
        for value in values[own]:
            found.append(float((value > values).mean() + (value == values).mean() / 2))
    return float(np.mean(found)) if found else np.nan


def best_cell(criterion: Floats, cells: Labels) -> Callable[[Labels], Labels]:
    """Choose the cell with the largest mean of a criterion (N,) over some rows."""

    def chosen_by(rows: Labels) -> Labels:
        present = np.unique(cells[rows])
        means = [np.nanmean(criterion[rows][cells[rows] == cell]) for cell in present]
        return np.flatnonzero(cells == present[int(np.argmax(means))])

    return chosen_by


def selection(
    models: Models, targets: Sequence[str], unlabelled: Sequence[str]
) -> list[tuple[str, list[float]]]:
    """Return the chance of beating a random model for each way to choose method and strength.

    Ways: the target score itself, the mean over all other targets, and each score without labels.
    """
    cells, seed = numbered(models.cells), np.array(models.seed)

    def chances(criterion: Callable[[str], Sequence[str]]) -> list[float]:
        found: list[float] = []
        for target in targets:
            values = models.scores[target]
            each = [
                chance_to_beat(best_cell(_signed(models, name), cells), values, seed)
                for name in criterion(target)
            ]
            found.append(float(np.nanmean(each)))
        return found

    ways = [
        ("the same score", chances(lambda target: [target])),
        ("another score, mean", chances(lambda target: [t for t in targets if t != target])),
    ]
    for name in unlabelled:
        ways.append((name, chances(lambda target, name=name: [name])))
    return ways


def _signed(models: Models, name: str) -> Floats:
    """A score such that larger is better."""
    values = models.scores[name]
    labelled = name not in UNLABELLED
    return values if labelled or name in HIGHER_IS_BETTER else -values


UNLABELLED = (
    "elbo",
    "reconstruction",
    "kl",
    "total_correlation",
    "gaussian_tc",
    "gaussian_tc, sampled",
    "wasserstein_relative",
    "code_information",
)
"""Scores that need no labels."""
