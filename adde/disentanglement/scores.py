"""All metrics of one encoder's codes, as figures and as a table; codes of somebody else's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.disentanglement.coded import Coded, Floats, code
from adde.disentanglement.distributions import irs, unsupervised
from adde.disentanglement.information import mig, modularity
from adde.disentanglement.prediction import DOWNSTREAM, Trees, dci, downstream, explicitness, sap
from adde.disentanglement.probes import Probes, probe
from adde.disentanglement.votes import beta_vae, factor_vae, rf_metric_2
from adde.errors import UserError, did_you_mean, untrusted

ARRAYS = ("codes", "labels", "factors", "blocks", "sampled")
"""Arrays of an .npz of codes; the first two are required."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The metrics of one encoder."""

    figures: Mapping[str, float]
    probes: Probes
    factors: tuple[str, ...]
    blocks: tuple[str, ...]
    notes: tuple[str, ...]
    """Scores that were left out and why, and caveats for comparing figures."""

    def to_json(self) -> dict[str, Any]:
        """Figures, leakage matrix (block -> factor -> accuracy), chance of each factor, notes."""
        rows = zip(self.blocks, self.probes.accuracy.tolist())
        return {
            "figures": dict(self.figures),
            "leakage": {block: dict(zip(self.factors, row)) for block, row in rows},
            "chance": dict(zip(self.factors, self.probes.chance.tolist())),
            "notes": list(self.notes),
        }


def score(
    coded: Coded,
    *,
    sampled: npt.ArrayLike | None = None,
    trees: Trees = "lgbm",
    tasks: bool = False,
    seed: int = 0,
) -> Scores:
    """Computes every metric that the codes allow.

    Of blocks of several latents, those metrics that judge single latents (BetaVAE, MIG, SAP,
    modularity, IRS, scores without labels) are left out: any rotation within a subspace, which
    changes nothing of what it separates, would change them.

    Args:
        coded: N items.
        sampled: (N, L) codes drawn from the encoder's posterior, whose scores without labels are
            told beside those of the mean codes.
        trees: which trees DCI grows.
        tasks: also the accuracy of downstream tasks, which takes longer than all the rest.
        seed: of what is drawn.

    Raises:
        UserError: as of the metrics, and of `sampled` that is not like the codes.
    """
    drawn = None if sampled is None else _like(coded, sampled)
    notes: list[str] = []
    figures = {"factor_vae": factor_vae(coded, seed)}
    try:
        figures["rf_metric_2"] = rf_metric_2(coded, seed)
    except UserError as error:
        notes.append(f"rf_metric_2 left out: {error}")
    figures |= dci(coded, trees)
    probes = probe(coded)
    figures |= probes.figures()
    figures["explicitness"] = explicitness(coded)
    if coded.is_scalar:
        figures |= _of_latents(coded, drawn, seed)
    else:
        notes.append(
            "beta_vae, mig, sap, modularity, irs and the scores without labels left out: they "
            "judge single latents, and these codes have blocks of several"
        )
    if tasks:
        few = min(coded.known(coded.train, factor)[0].size for factor in range(len(coded.factors)))
        sizes = [size for size in DOWNSTREAM if size <= few]
        if len(sizes) < len(DOWNSTREAM):
            notes.append(f"downstream tasks learn from {sizes} items, as {few:,} are labelled")
        for model in ("linear", trees):
            figures |= downstream(coded, sizes, model, seed)
    return Scores(figures, probes, coded.factors, coded.blocks, tuple(notes))


def _of_latents(coded: Coded, sampled: Floats | None, seed: int) -> dict[str, float]:
    figures = {
        "beta_vae": beta_vae(coded, seed),
        "mig": mig(coded),
        "sap": sap(coded),
        "modularity": modularity(coded),
        "irs": irs(coded),
    }
    of_mean = unsupervised(coded.codes[coded.train])
    figures |= {f"{name}_mean": value for name, value in of_mean.items()}
    if sampled is not None:
        of_drawn = unsupervised(sampled[coded.train])
        figures |= {f"{name}_sampled": value for name, value in of_drawn.items()}
    return figures


def _like(coded: Coded, sampled: npt.ArrayLike) -> Floats:
    drawn = np.asarray(sampled)
    if drawn.shape != coded.codes.shape or drawn.dtype.kind not in "fiu":
        raise UserError(
            f"sampled: expected numbers {coded.codes.shape} as of the codes, found {drawn.dtype} "
            f"{drawn.shape}"
        )
    drawn = drawn.astype(np.float64)
    if not np.isfinite(drawn).all():
        raise UserError("sampled: expected finite numbers, found others")
    return drawn


def as_text(scores: Mapping[str, Scores]) -> str:
    """A table of figures, a column for each encoder, and each encoder's leakage matrix and notes.

    Args:
        scores: by name of the encoder.
    """
    names = list(dict.fromkeys(name for found in scores.values() for name in found.figures))
    lines = _table(
        ["", *scores],
        [[name, *(_cell(found.figures.get(name)) for found in scores.values())] for name in names],
    )
    for encoder, found in scores.items():
        chance = ["(chance)", *map(_cell, found.probes.chance.tolist())]
        rows = zip(found.blocks, found.probes.accuracy.tolist())
        cells = [[block, *map(_cell, row)] for block, row in rows]
        lines += ["", f"{encoder}: accuracy of each factor (across) from each block alone (down)"]
        lines += _table(["", *found.factors], [*cells, chance])
        lines += [f"  {note}" for note in found.notes]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    ]


def read_codes(path: Path, seed: int = 0) -> tuple[Coded, Floats | None]:
    """Codes from an .npz of `codes` (N, L) and `labels` (N, K), and if there `factors` (K names),
    `blocks` (L,) and `sampled` (N, L); see `code`.

    Returns:
        The codes, and those sampled.

    Raises:
        UserError: the file is none, lacks an array, has one of another name, or as of `code`.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected an .npz of codes and labels, found no file")
    with untrusted(path, "an .npz of codes and labels"), np.load(path, allow_pickle=False) as file:
        # An array alone is no archive.
        arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in file.files}
    for name in arrays:
        if name not in ARRAYS:
            raise UserError(f"{path}: unknown array {name!r}; {did_you_mean(name, ARRAYS)}")
    if missing := [name for name in ARRAYS[:2] if name not in arrays]:
        raise UserError(f"{path}: expected an array {missing[0]!r}, found {sorted(arrays)}")
    factors = [str(name) for name in arrays["factors"]] if "factors" in arrays else None
    try:
        coded = code(arrays["codes"], arrays["labels"], factors, arrays.get("blocks"), seed)
        sampled = _like(coded, arrays["sampled"]) if "sampled" in arrays else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return coded, sampled
