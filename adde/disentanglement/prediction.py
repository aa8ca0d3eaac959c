"""How well codes predict factors, and which codes: DCI, SAP, explicitness, downstream tasks."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from adde.disentanglement.coded import Coded, Floats, Rows
from adde.disentanglement.information import gap
from adde.errors import UserError, library
from adde.schema import Labels

Trees = Literal["lgbm", "sklearn"]
"""Boosted trees of LightGBM, or of scikit-learn as published and 50 times slower. Their figures
differ, so names of figures say which."""

TREES, DEPTH = 100, 3
COMPONENTS = 4
"""Principal components of a larger block that trees see."""

DOWNSTREAM = (10, 100, 1000, 10_000)
"""Items that a downstream task learns from."""
CHOSEN_ON = 1000
"""Most items on which the strength of a downstream task's penalty is chosen."""


def dci(coded: Coded, trees: Trees = "lgbm") -> dict[str, float]:
    """Disentanglement, completeness and informativeness by importances of boosted trees.

    Importances are summed over a block and divided by their sum for the factor. Informativeness is
    the mean test accuracy, as in the study (the paper has the error). Source: Eastwood and Williams
    2018.

    Returns:
        dci_<trees>_disentanglement, _completeness, _informativeness.
    """
    seen, block_of = _tree_inputs(coded)
    table = np.zeros((len(coded.blocks), len(coded.factors)))
    accuracies: list[float] = []
    for factor in range(len(coded.factors)):
        train, values = coded.known(coded.train, factor)
        test, expected = coded.known(coded.test, factor)
        grown = _grow(trees, seen[train], values, coded.sizes[factor])
        np.add.at(table[:, factor], block_of, grown[0])
        accuracies.append(float((grown[1](seen[test]) == expected).mean()))
    disentanglement, completeness = dci_of(table)
    return {
        f"dci_{trees}_disentanglement": disentanglement,
        f"dci_{trees}_completeness": completeness,
        f"dci_{trees}_informativeness": float(np.mean(accuracies)),
    }


def dci_of(table: Floats) -> tuple[float, float]:
    """Disentanglement and completeness of importances (B, K); a factor without any counts 0."""
    total = table.sum(axis=0)
    table = table / np.where(total > 0, total, 1)
    if not table.any():
        return 0.0, 0.0
    weight = table.sum(axis=1)
    one_factor = 1 - _row_entropy(table) / np.log(table.shape[1])
    one_block = np.where(total > 0, 1 - _row_entropy(table.T) / np.log(max(2, len(table))), 0)
    return float((weight * one_factor).sum() / weight.sum()), float(one_block.mean())


def _row_entropy(rows: Floats) -> Floats:
    """(R,) entropy in nats of each row's shares; 0 for a row of zeros."""
    total = rows.sum(axis=1, keepdims=True)
    shares = rows / np.where(total > 0, total, 1)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)


def _tree_inputs(coded: Coded) -> tuple[Floats, Rows]:
    """Codes that trees see (N, F), and the block of each: a block's own, or COMPONENTS of more."""
    parts: list[Floats] = []
    for block in range(len(coded.blocks)):
        own = coded.codes[:, coded.latents(block)]
        if own.shape[1] > COMPONENTS:
            own = own - own[coded.train].mean(axis=0)
            axes = np.linalg.svd(own[coded.train], full_matrices=False)[2][:COMPONENTS]
            own = own @ axes.T
        parts.append(own)
    widths = [part.shape[1] for part in parts]
    return np.concatenate(parts, axis=1), np.repeat(np.arange(len(parts)), widths)


def _grow(
    trees: Trees, codes: Floats, values: Labels, size: int
) -> tuple[Floats, Callable[[Floats], Labels]]:
    """Importances (F,) of boosted trees, and what predicts values from codes."""
    if trees == "sklearn":
        ensemble = library("sklearn.ensemble", "study")
        model = ensemble.GradientBoostingClassifier(
            n_estimators=TREES, max_depth=DEPTH, random_state=0
        ).fit(codes, values)
        return model.feature_importances_, model.predict
    lightgbm = library("lightgbm", "study")
    settings = {
        "objective": "multiclass",
        "num_class": size,
        "max_depth": DEPTH,
        "num_leaves": 2**DEPTH,
        "min_data_in_leaf": 1,
        "max_bin": 63,
        "num_threads": 1,
        "force_row_wise": True,
        "deterministic": True,
        "seed": 0,
        "verbose": -1,
    }
    data = lightgbm.Dataset(codes, values, params=settings)
    booster = lightgbm.train(settings, data, TREES)
    importances = booster.feature_importance("gain").astype(np.float64)

    def predict(others: Floats) -> Labels:
        return booster.predict(others).argmax(axis=1)

    return importances, predict


def sap(coded: Coded) -> float:
    """Separated attribute predictability: mean over factors of best minus second latent's accuracy.

    A linear support vector machine for each latent and factor (C = 0.01, balanced classes). Latents
    are standardised, so that the score does not depend on their scale as the study's does.
    Source: Kumar et al. 2018.
    """
    machine = library("sklearn.svm", "study").LinearSVC
    codes = standardised(coded.codes, coded.train)
    table = np.zeros((codes.shape[1], len(coded.factors)))
    for factor in range(len(coded.factors)):
        train, values = coded.known(coded.train, factor)
        test, expected = coded.known(coded.test, factor)
        for latent in range(len(table)):
            model = machine(C=0.01, class_weight="balanced", dual=False)
            model.fit(codes[train, latent, None], values)
            table[latent, factor] = model.score(codes[test, latent, None], expected)
    return gap(table, np.ones(len(coded.factors)))


def explicitness(coded: Coded) -> float:
    """Mean over factors and their values of the ROC area of a linear classifier of all codes.

    Source: Ridgeway and Mozer 2018.
    """
    codes = standardised(coded.codes, coded.train)
    found: list[float] = []
    for factor in range(len(coded.factors)):
        train, values = coded.known(coded.train, factor)
        test, expected = coded.known(coded.test, factor)
        model = linear(codes[train], values)
        chances = model.predict_proba(codes[test])
        areas = [
            _roc_area(chance, expected == value)
            for chance, value in zip(chances.T, model.classes_)
            if 0 < (expected == value).sum() < len(expected)
        ]
        found.append(float(np.mean(areas)))
    return float(np.mean(found))


def _roc_area(scores: Floats, positive: Any) -> float:
    """Share of (positive, negative) pairs in order; a tie counts half."""
    ranks = library("scipy.stats", "study").rankdata(scores)
    count = positive.sum()
    above = ranks[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def downstream(
    coded: Coded,
    sizes: Sequence[int] = DOWNSTREAM,
    model: Literal["linear"] | Trees = "linear",
    seed: int = 0,
) -> dict[str, float]:
    """Mean accuracy over factors of classifiers that learn from few items, and their efficiency.

    The linear model is logistic regression whose penalty (10 strengths, 5 folds) is chosen on at
    most CHOSEN_ON of the items.

    Args:
        coded: N items.
        sizes: numbers of items to learn from, ascending.
        model: which classifier.
        seed: of the folds.

    Returns:
        downstream_<model>@<size> for each size, and downstream_<model>_efficiency: the accuracy at
        100 items over that at the most, where both are among the sizes.

    Raises:
        UserError: a factor has fewer known items to learn from than the largest size.
    """
    codes = standardised(coded.codes, coded.train)
    accuracy = np.zeros((len(sizes), len(coded.factors)))
    for factor, name in enumerate(coded.factors):
        train, values = coded.known(coded.train, factor)
        test, expected = coded.known(coded.test, factor)
        if len(train) < max(sizes):
            raise UserError(
                f"downstream task {name!r}: expected {max(sizes):,} labelled items to learn from, "
                f"found {len(train):,}; ask for fewer, or give {-(-3 * max(sizes) // 2):,} items"
            )
        for place, size in enumerate(sizes):
            few = codes[train[:size]], values[:size]
            if len(np.unique(few[1])) < 2:  # nothing to tell apart
                accuracy[place, factor] = (expected == few[1][0]).mean()
            elif model == "linear":
                fitted = _chosen_linear(*few, seed)
                accuracy[place, factor] = fitted.score(codes[test], expected)
            else:
                # Classes that the few items lack are left out, as trees have to have numbers 0..V.
                present, dense = np.unique(few[1], return_inverse=True)
                predict = _grow(model, few[0], dense.reshape(-1), len(present))[1]
                accuracy[place, factor] = (present[predict(codes[test])] == expected).mean()
    means = dict(zip(sizes, accuracy.mean(axis=1).tolist()))
    figures = {f"downstream_{model}@{size}": mean for size, mean in means.items()}
    if 100 in means and max(sizes) > 100:
        figures[f"downstream_{model}_efficiency"] = means[100] / means[max(sizes)]
    return figures


def _chosen_linear(codes: Floats, values: Labels, seed: int) -> Any:
    selection = library("sklearn.model_selection", "study")
    first = slice(CHOSEN_ON)
    search = selection.GridSearchCV(
        library("sklearn.linear_model", "study").LogisticRegression(),
        {"C": np.logspace(-4, 4, 10)},
        cv=selection.KFold(5, shuffle=True, random_state=seed),
        error_score=0.0,  # of a fold that has one class alone
        refit=False,
    )
    with ignore_unconverged():
        search.fit(codes[first], values[first])
    return linear(codes, values, search.best_params_["C"])


def linear(codes: Floats, values: Labels, strength: float = 1.0) -> Any:
    """A fitted LogisticRegression of scikit-learn, of inverse penalty `strength`."""
    model = library("sklearn.linear_model", "study").LogisticRegression(C=strength)
    with ignore_unconverged():
        return model.fit(codes, values)


@contextmanager
def ignore_unconverged() -> Generator[None]:
    """Ignore warnings that a model has not converged; it is scored as it is."""
    errors = library("sklearn.exceptions", "study")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.ConvergenceWarning)
        warnings.simplefilter("ignore", errors.FitFailedWarning)
        yield


def standardised(codes: Floats, rows: Rows) -> Floats:
    """Codes of mean 0 and deviation 1 over `rows`; constant ones are 0."""
    scale = codes[rows].std(axis=0)
    moved = codes - codes[rows].mean(axis=0)
    return moved / np.where(scale > 0, scale, np.inf)
