"""Scores in long form: a row for each model, metric and factor, as Parquet."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adde.disentanglement import Scores
from adde.disentanglement.coded import Floats
from adde.errors import UserError, library, untrusted
from adde.files import atomic_path, read_json
from adde.study.settings import Study, Supervised
from adde.training.watching.encoder_scores import SCORES_NAME

RESULTS_NAME = "results.parquet"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score of one model."""

    study: str
    set: str
    method: str
    hp: float | None
    """The method's strength; None of supervised runs."""
    seed: int
    steps: int | None
    representation: str = "mean"
    """mean or sampled: which codes were scored."""
    metric: str = ""
    factor: str = ""
    """Of scores of one factor."""
    value: float = 0.0
    versions: str = ""

    def of(self, metric: str, value: float, factor: str = "") -> "Row":
        """Return the row of a metric, whose name may end with `_mean` or `_sampled`."""
        name, _, end = metric.rpartition("_")
        if end not in ("mean", "sampled"):
            name, end = metric, "mean"
        return dataclasses.replace(
            self, metric=name, representation=end, factor=factor, value=float(value)
        )

    def of_scores(self, scores: Scores) -> list["Row"]:
        """Return the rows of all metrics, and of the best block's accuracy for each factor."""
        best = zip(scores.factors, scores.probes.accuracy.max(axis=0).tolist())
        rows = [self.of(name, value) for name, value in scores.figures.items()]
        return rows + [self.of("best_block_accuracy", value, factor) for factor, value in best]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as Parquet, completely or not at all."""
    pyarrow = library("pyarrow", "study")
    parquet = library("pyarrow.parquet", "study")
    kinds = {
        "hp": pyarrow.float64(),
        "value": pyarrow.float64(),
        "seed": pyarrow.int64(),
        "steps": pyarrow.int64(),
    }
    columns = {
        field.name: pyarrow.array(
            [getattr(row, field.name) for row in rows], kinds.get(field.name, pyarrow.string())
        )
        for field in dataclasses.fields(Row)
    }
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def read_rows(path: Path) -> list[Row]:
    """Read rows. Raises UserError if the file holds something else."""
    parquet = library("pyarrow.parquet", "study")
    expected = "scores of models as Parquet"
    with untrusted(path, expected, "delete it to compute them anew"), path.open("rb") as file:
        return [Row(**row) for row in parquet.read_table(file).to_pylist()]


def supervised_rows(study: Study) -> tuple[list[Row], list[str]]:
    """Return the scores of the study's supervised runs, and notices of those that have none."""
    rows: list[Row] = []
    notices: list[str] = []
    for one in study.supervised:
        found = [_run_rows(study, one, seed, Path(run)) for seed, run in enumerate(one.runs)]
        rows += [row for of_run in found for row in of_run]
        missing = [run for run, of_run in zip(one.runs, found) if not of_run]
        if missing:
            notices.append(
                f"{one.name}: {len(missing)} of {len(found)} runs have no scores, such as "
                f"{Path(missing[0]) / SCORES_NAME}; run train/evaluate.py --disentanglement --run "
                f"{' '.join(missing)}, then this program again"
            )
    return rows, notices


def _run_rows(study: Study, one: Supervised, seed: int, run: Path) -> list[Row]:
    path = run / SCORES_NAME
    if not path.exists():
        return []
    content = read_json(path)
    if content["split"] != study.split:
        raise UserError(
            f"{path}: expected scores of the split {study.split!r} as of the study, found "
            f"{content['split']!r}; score the run with --split {study.split}"
        )
    row = Row(study=study.name, set=one.set, method=one.name, hp=None, seed=seed, steps=None)
    return [row.of(name, value) for name, value in content["figures"].items()]


@dataclass(frozen=True, eq=False)
class Models:
    """The models of one set, and their scores by name; NaN where a model has none."""

    method: tuple[str, ...]
    hp: Floats
    """NaN of supervised runs."""
    seed: tuple[int, ...]
    scores: Mapping[str, Floats]
    """Names of sampled codes' scores end with `, sampled`."""
    failed: int
    """Models without scores, which are left out."""

    def __len__(self) -> int:
        return len(self.method)

    @property
    def unsupervised(self) -> "Models":
        """Those of the study's own methods."""
        return self.only(~np.isnan(self.hp))

    def only(self, chosen: Floats) -> "Models":
        """Those of a mask (N,) bool."""
        places = np.flatnonzero(chosen)
        return Models(
            tuple(self.method[place] for place in places),
            self.hp[places],
            tuple(self.seed[place] for place in places),
            {name: values[places] for name, values in self.scores.items()},
            self.failed,
        )

    @property
    def cells(self) -> list[tuple[str, float]]:
        """Method and strength of each."""
        return list(zip(self.method, self.hp.tolist()))


def models_of(rows: Iterable[Row], name: str) -> Models:
    """Collect the models of a set; scores of single factors are left out."""
    found: dict[tuple[str, float, int], dict[str, float]] = {}
    for row in rows:
        if row.set == name and not row.factor:
            key = row.method, np.nan if row.hp is None else row.hp, row.seed
            score = row.metric + (", sampled" if row.representation == "sampled" else "")
            found.setdefault(_hashable(key), {})[score] = row.value
    scored = {key: scores for key, scores in found.items() if "failed" not in scores}
    names = list(dict.fromkeys(score for scores in scored.values() for score in scores))
    return Models(
        tuple(key[0] for key in scored),
        np.array([float(key[1]) for key in scored]),
        tuple(int(key[2]) for key in scored),
        {n: np.array([s.get(n, np.nan) for s in scored.values()]) for n in names},
        len(found) - len(scored),
    )


def _hashable(key: tuple[str, float, int]) -> tuple[str, float, int]:
    """NaN is one object, so that keys with it are equal."""
    return (key[0], np.nan, key[2]) if key[1] != key[1] else key


def title_of(score: str) -> str:
    """Return a score's name for people."""
    return TITLES.get(score, re.sub("_", " ", score))


TITLES = {
    "beta_vae": "BetaVAE",
    "factor_vae": "FactorVAE",
    "rf_metric_2": "RF metric II",
    "mig": "MIG",
    "mig_v": "MIG_V",
    "dci_lgbm_disentanglement": "DCI-D",
    "dci_lgbm_completeness": "DCI-C",
    "dci_lgbm_informativeness": "DCI-I",
    "sap": "SAP",
    "sap_v": "SAP_V",
    "modularity": "Modularity",
    "modularity_v": "Modularity_V",
    "explicitness": "Explicitness",
    "irs": "IRS",
    "leak": "Leak",
    "elbo": "ELBO",
    "reconstruction": "Reconstruction",
    "kl": "KL",
    "total_correlation": "TC of q(z)",
    "active": "Active latents",
    "gaussian_tc": "TC of means",
    "gaussian_tc, sampled": "TC of samples",
    "wasserstein": "Wasserstein of means",
    "wasserstein_relative": "Wasserstein of means, relative",
    "code_information": "Code MI of means",
}
