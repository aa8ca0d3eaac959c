"""Codes and labels that were checked, and draws of items that share factor values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.schema import UNKNOWN, Labels

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

TRAIN, TEST = 10_000, 5_000
"""Items that a metric learns from, and that it is scored on; the study's numbers."""

LEAST = 100
"""Items without which no metric is computed."""


@dataclass(frozen=True, eq=False)
class Coded:
    """N items: their codes, the values of their factors, and the block of each latent.

    `code` makes it from arrays of any origin.
    """

    codes: Floats
    """(N, L) finite."""
    labels: Labels
    """(N, K) values 0..V_k - 1 that are all there, UNKNOWN where missing."""
    factors: tuple[str, ...]
    """K names."""
    block_of: Rows
    """(L,) number of each latent's block."""
    blocks: tuple[str, ...]
    """B names."""
    train: Rows
    """Rows that metrics learn from: TRAIN, or two thirds of fewer."""
    test: Rows
    """Rows that metrics are scored on: TEST, or the other third."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """V_k of each factor, counting values that items have."""
        return tuple(int(size) for size in self.labels.max(axis=0) + 1)

    @property
    def is_scalar(self) -> bool:
        """Whether each block is a single latent."""
        return len(self.blocks) == self.codes.shape[1]

    def latents(self, block: int) -> Rows:
        """Latents of a block."""
        return np.flatnonzero(self.block_of == block)

    def known(self, rows: Rows, factor: int) -> tuple[Rows, Labels]:
        """Those of `rows` whose value of a factor is known, and the values.

        Raises:
            UserError: fewer than two values are among them.
        """
        rows = rows[self.labels[rows, factor] != UNKNOWN]
        values = self.labels[rows, factor]
        if len(np.unique(values)) < 2:
            raise UserError(
                f"factor {self.factors[factor]!r}: expected at least two values among the "
                f"{len(self.train):,} items to learn from and the {len(self.test):,} to score, "
                f"found {len(np.unique(values))} among {len(rows)}; give more labelled items"
            )
        return rows, values


def code(
    codes: npt.ArrayLike,
    labels: npt.ArrayLike,
    factors: Sequence[str] | None = None,
    blocks: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> Coded:
    """Checks codes and labels, and draws the items to learn from and to score.

    Args:
        codes: (N, L) numbers.
        labels: (N, K) whole numbers, UNKNOWN (-1) where a value is not known. Values may be any;
            those that no item has do not count.
        factors: K names; "factor 0" and so on if None.
        blocks: (L,) name or number of the block of each latent; each its own if None.
        seed: of the draw.

    Raises:
        UserError: a shape does not fit, a code is no finite number, all codes are constant, labels
            are continuous, a factor has fewer than two values, there is one factor only, or there
            are fewer than LEAST items.
    """
    values, labels = np.asarray(codes), np.asarray(labels)
    _check_shapes(values, labels, factors)
    names = tuple(factors or (f"factor {number}" for number in range(labels.shape[1])))
    values = _finite(values)
    order = np.random.default_rng(seed).permutation(len(values))
    train = min(TRAIN, 2 * len(order) // 3)
    if not np.ptp(values[order[:train]], axis=0).any():
        raise UserError(
            "codes: expected at least one latent that differs between items, found "
            f"{values.shape[1]} that are all constant; the encoder ignores its pictures"
        )
    dense = [_dense(column, name) for column, name in zip(labels.T, names)]
    block_names, block_of = _blocks(blocks, values.shape[1])
    test = order[train : train + TEST]
    stacked = np.stack(dense, axis=1)
    return Coded(values, stacked, names, block_of, block_names, order[:train], test)


def _check_shapes(
    codes: npt.NDArray[Any], labels: npt.NDArray[Any], factors: Sequence[str] | None
) -> None:
    if codes.ndim != 2 or not codes.shape[1] or codes.dtype.kind not in "fiu":
        raise UserError(
            f"codes: expected real numbers (items, latents), found {codes.dtype} {codes.shape}"
        )
    if labels.ndim != 2 or labels.dtype.kind not in "fiu" or len(labels) != len(codes):
        raise UserError(
            f"labels: expected whole numbers ({len(codes)} items as of the codes, factors), "
            f"found {labels.dtype} {labels.shape}"
        )
    if labels.shape[1] < 2:
        raise UserError(
            f"labels: expected at least two factors to tell apart, found {labels.shape[1]}"
        )
    if factors is not None and len(factors) != labels.shape[1]:
        raise UserError(
            f"factors: expected {labels.shape[1]} names as of the labels, found {len(factors)}"
        )
    if len(codes) < LEAST:
        raise UserError(f"codes: expected at least {LEAST} items, found {len(codes)}")


def _finite(codes: npt.NDArray[Any]) -> Floats:
    codes = codes.astype(np.float64)
    bad = np.argwhere(~np.isfinite(codes))
    if len(bad):
        item, latent = bad[0].tolist()
        raise UserError(
            f"codes: expected finite numbers, found {codes[item, latent]} at item {item}, latent "
            f"{latent}, and {len(bad) - 1} more"
        )
    return codes


def _dense(column: npt.NDArray[Any], name: str) -> Labels:
    """Labels of one factor as 0..V-1."""
    broken = np.flatnonzero(~np.isfinite(column) | (column != np.round(column)))
    if len(broken):
        raise UserError(
            f"factor {name!r}: expected whole numbers, found {column[broken[0]]} at item "
            f"{broken[0]}; put a continuous factor into bins first"
        )
    column = column.astype(np.int64)
    if column.min() < UNKNOWN:
        raise UserError(
            f"factor {name!r}: expected values from 0, or {UNKNOWN} where unknown, found "
            f"{column.min()} at item {column.argmin()}"
        )
    known = column != UNKNOWN
    values, dense = np.unique(column[known], return_inverse=True)
    if len(values) < 2:
        raise UserError(
            f"factor {name!r}: expected at least two values, found {values.tolist()} among "
            f"{known.sum()} labelled items; leave the factor out"
        )
    if 2 * len(values) > known.sum():
        raise UserError(
            f"factor {name!r}: expected values that items share, found {len(values)} values of "
            f"{known.sum()} labelled items; put a continuous factor into bins first"
        )
    column[known] = dense.reshape(-1)
    return column


def _blocks(
    blocks: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None, latents: int
) -> tuple[tuple[str, ...], Rows]:
    if blocks is None:
        return tuple(f"z{latent}" for latent in range(latents)), np.arange(latents)
    if len(blocks) != latents:
        raise UserError(
            f"blocks: expected the block of each of {latents} latents, found {len(blocks)}"
        )
    names = list(dict.fromkeys(str(block) for block in blocks))
    return tuple(names), np.array([names.index(str(block)) for block in blocks])


@dataclass(frozen=True, eq=False)
class Sharing:
    """Rows in order of a key, such that draws of rows with equal keys are look-ups."""

    order: Rows
    start: Rows
    """First place in `order` of each key."""
    count: Rows

    @classmethod
    def of(cls, keys: Rows, rows: Rows) -> "Sharing":
        """Group `rows` by their `keys`, which count from 0."""
        count = np.bincount(keys)
        return cls(rows[np.argsort(keys, kind="stable")], np.cumsum(count) - count, count)

    def draw(self, keys: Rows, rng: np.random.Generator) -> Rows:
        """A row for each of `keys`, of any shape; with replacement."""
        place = (rng.random(keys.shape) * self.count[keys]).astype(np.int64)
        return self.order[self.start[keys] + place]


def sharing_value(coded: Coded, factor: int) -> Sharing:
    """Rows by their value of a factor.

    Raises:
        UserError: a value has a single item, which shares it with none.
    """
    rows = np.flatnonzero(coded.labels[:, factor] != UNKNOWN)
    sharing = Sharing.of(coded.labels[rows, factor], rows)
    if sharing.count.min() < 2:
        raise UserError(
            f"factor {coded.factors[factor]!r}: expected at least two items of each value to draw "
            f"from, found one of value {sharing.count.argmin()}; give more items, or make the "
            "value unknown"
        )
    return sharing


def combinations(coded: Coded) -> Rows:
    """(N,) number of each item's combination of values; the last factor counts fastest.

    Raises:
        UserError: labels are unknown, or a combination has no item.
    """
    if unknown := int((coded.labels == UNKNOWN).any(axis=1).sum()):
        raise UserError(
            f"labels: expected a grid in which every value is known, found {unknown:,} items with "
            "unknown ones"
        )
    sizes = coded.sizes
    total = int(np.prod(np.array(sizes, dtype=object)))
    found = len(np.unique(coded.labels, axis=0)) if total <= len(coded.labels) else None
    if found != total:
        raise UserError(
            f"labels: expected an item of each of {' x '.join(map(str, sizes))} = {total:,} "
            f"combinations of {', '.join(coded.factors)}, found "
            f"{len(coded.labels) if found is None else found:,}"
            f"{' items' if found is None else ''}; an exact draw needs a grid without holes: take "
            "all items, or fewer values of each factor"
        )
    return np.asarray(np.ravel_multi_index(tuple(coded.labels.T), sizes), dtype=np.int64)
