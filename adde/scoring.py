"""The match score: the probability that an item has all requested values.

The logits become *beliefs*: for each attribute the probabilities of its V_a values and of its
absence, since an attribute that is not visible has no value. A query is a row `wanted` of the same
layout, and the probability that item g matches query q in attribute a is

    P_a(q, g) = sum_u wanted_a(u | q) beliefs_a(u | g),    u over the values and the absence.

For an unedited attribute, `wanted` holds the query's own beliefs; for an edit to value v, it is 1
at v and 0 elsewhere. Items rank by

    s(q, g) = sum_a w_a log(epsilon + P_a(q, g)).

Among the first FIRST answers an edited attribute has weight `edit_weight`, so that they obey the
edit. After them it has weight 1, like every other attribute.

With independent beliefs and epsilon 0, s is the log-probability that g matches in every attribute,
which is the optimal order for hit@k. A larger epsilon bounds the cost of a single mismatch.
`classifier_soft` is the special case of a one-hot query without absence.

A known set of values has the belief 1 in each of them, so an edit to red matches a red and white
item with P_a = 1. In a query the values of a set share 1 equally, and P_a is the share of them that
the item shows. Predicted beliefs add up to 1 also where several values are visible, so without a
label such an item matches each of its values by about their shares.

Symbols: Q queries, N items, A attributes, V columns; beliefs have V + A columns, each attribute's
values followed by its absence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.schema import (
    SEVERAL,
    UNKNOWN,
    Labels,
    Rows,
    Schema,
    Vector,
    labels_of,
    shows,
    value_bits,
)

FIRST = 10
"""Number of answers ranked with `edit_weight`: those that a shopper sees at once."""

DEFAULTS = {"epsilon": 0.03, "edit_weight": 2.0}
"""Settings of a `Calibration` where there are no queries to choose them by, or not yet."""


@dataclass(frozen=True)
class Calibration:
    """Settings that turn an encoder's outputs into beliefs and weigh them.

    They are chosen on the validation split.

    Attributes:
        temperatures: (A,) divisors of each attribute's logits.
        presence: (A,) divisors of the presence logits, 0 for an attribute that counts as always
            present; empty if all do, because the encoder has no presence output or it did not
            help.
        epsilon: bounds the cost of a mismatch; 0 to 1.
        edit_weight: w of an edited attribute among the first FIRST answers; otherwise w is 1.
    """

    temperatures: tuple[float, ...]
    presence: tuple[float, ...]
    epsilon: float
    edit_weight: float

    def beliefs(self, logits: Vector, presence: Vector | None, schema: Schema) -> Vector:
        """Compute beliefs (N, V + A) float32; those of each attribute add up to 1.

        Args:
            logits: (N, V) float32.
            presence: (N, A) float32 logits; None if the encoder has no such output.
            schema: of the columns.
        """
        if self.presence and presence is None:
            raise ValueError("expected presence logits, which this calibration uses, found none")
        found = np.empty((len(logits), schema.num_values + len(schema.sizes)), np.float32)
        for a, (part, logit) in enumerate(
            zip(parts(schema), np.split(logits, schema.offsets[1:], axis=1))
        ):
            scaled = (logit - logit.max(axis=1, keepdims=True)) / self.temperatures[a]
            powers = np.exp(scaled)
            there = np.ones(len(logits), np.float32)
            if self.presence and self.presence[a]:
                assert presence is not None
                there = _sigmoid(presence[:, a] / self.presence[a])
            found[:, part][:, :-1] = powers * (there / powers.sum(axis=1))[:, None]
            found[:, part][:, -1] = 1 - there
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the `calibration` entry of bundle.json."""
        return {**vars(self), "temperatures": [*self.temperatures], "presence": [*self.presence]}

    @classmethod
    def from_json(cls, value: Any, schema: Schema, source: str) -> "Calibration":
        """Read the output of `to_json`; `source` names the file in errors.

        Raises:
            UserError: a field is missing, is not a number, or has the wrong number of attributes.
        """
        try:
            found = cls(
                tuple(float(t) for t in value["temperatures"]),
                tuple(float(t) for t in value["presence"]),
                float(value["epsilon"]),
                float(value["edit_weight"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source}: expected a calibration, found: {type(error).__name__} {error}"
            ) from None
        count = len(schema.sizes)
        if len(found.temperatures) != count or len(found.presence) not in (0, count):
            raise UserError(
                f"{source}: expected a calibration of {count} attributes, found one of "
                f"{len(found.temperatures)}"
            )
        return found


def parts(schema: Schema) -> list[slice]:
    """Return each attribute's columns in beliefs: its values, then its absence."""
    return [
        slice(offset + a, offset + a + size + 1)
        for a, (offset, size) in enumerate(zip(schema.offsets, schema.sizes))
    ]


def with_known(beliefs: Vector, labels: Labels, schema: Schema) -> Vector:
    """Return beliefs (N, V + A) with probability 1 at the known labels (N, A) int64.

    It is 1 at each value of a set.
    """
    certain = beliefs.copy()
    for a, part in enumerate(parts(schema)):
        rows = np.flatnonzero((labels[:, a] != UNKNOWN) & (labels[:, a] < SEVERAL))
        certain[rows, part] = 0
        certain[rows, part.start + labels[rows, a]] = 1
    for a in schema.multiple:
        part, rows = parts(schema)[a], np.flatnonzero(labels[:, a] >= SEVERAL)
        masks = value_bits(labels[rows, a])[:, None]
        certain[rows, part] = masks >> np.arange(schema.sizes[a] + 1) & 1
    return certain


def as_query(beliefs: Vector, schema: Schema) -> Vector:
    """Return beliefs (N, V + A) of items in the form of wanted ones: a set's values share 1."""
    wanted = beliefs.copy()
    for a in schema.multiple:
        part = parts(schema)[a]
        rows = np.flatnonzero(_known_sets(beliefs[:, part]))
        wanted[rows, part] /= wanted[rows, part].sum(axis=1, keepdims=True)
    return wanted


def _known_sets(beliefs: Vector) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: which beliefs (N, V_a + 1) are those of a known set of values."""
    return beliefs.sum(axis=1) > 1.5  # others add up to 1, a set of n values to n


def likeliest(beliefs: Vector, schema: Schema) -> Labels:
    """Return (N, A) int64, the likeliest value of each attribute, UNKNOWN if absence is likelier.

    Applied to the output of `with_known`, known labels win, sets of values among them.
    """
    shown = [likeliest_of(beliefs, schema, a) for a in range(len(schema.sizes))]
    return np.stack(shown, axis=1)


def likeliest_of(beliefs: Vector, schema: Schema, attribute: int) -> Labels:
    """Return the column (N,) of `likeliest` of one attribute."""
    own = beliefs[:, parts(schema)[attribute]]
    found = own.argmax(axis=1)
    labels = np.where(found == schema.sizes[attribute], UNKNOWN, found).astype(np.int64)
    if attribute in schema.multiple:
        rows = np.flatnonzero(_known_sets(own))
        labels[rows] = labels_of(own[rows, :-1] > 0.5)
    return labels


def fits(labels: Labels, accepted: Labels) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: whether labels (N,) of an attribute show what an edit asks for.

    A single value must be among the `accepted` ones. A set must have the accepted value if there is
    one ("red"), and none but accepted ones if there are several ("not black").
    """
    if len(accepted) == 1:
        return shows(labels, accepted[0])
    found, sets = np.isin(labels, accepted), labels >= SEVERAL
    if sets.any():
        others = ~sum(1 << value for value in accepted.tolist())
        found[sets] = value_bits(labels[sets]) & others == 0
    return found


def ask_value(wanted: Vector, part: slice, value: npt.NDArray[np.int64] | int) -> None:
    """Request a value of the attribute with columns `part` in rows of `wanted` (Q, V + A)."""
    wanted[:, part] = 0
    wanted[np.arange(len(wanted)), part.start + np.asarray(value)] = 1


def ask_other(wanted: Vector, part: slice, values: list[int], multiple: bool = False) -> None:
    """Request any value except these, such as "not black"; changes `wanted` in place.

    Where an item may have several values, the excluded ones weigh -2, so that a known set of up to
    three values that has one of them does not match at all.
    """
    wanted[:, part] = 1
    wanted[:, part.stop - 1] = 0
    wanted[:, [part.start + value for value in values]] = -2 if multiple else 0


def ask_more(wanted: Vector, part: slice, value: int, amount: float) -> None:
    """Move `wanted` in place by the share `amount` towards a value, such as "redder"."""
    wanted[:, part] *= 1 - amount
    wanted[:, part.start + value] += amount


def probability(wanted: Vector, beliefs: Vector, part: slice) -> Vector:
    """Compute P_a (Q, N) float32 of the attribute with columns `part`."""
    # Rounding may leave a sum of probabilities just below 0 or above 1.
    return np.clip(wanted[:, part] @ beliefs[:, part].T, 0, 1)


def match_scores(
    wanted: Vector, weights: Vector, beliefs: Vector, schema: Schema, epsilon: float
) -> Vector:
    """Compute scores s (..., Q, N) float32; larger is better.

    Args:
        wanted: (Q, V + A) float32.
        weights: (..., Q, A) float32, one or several sets for the same queries; an attribute whose
            weights are all 0 is skipped.
        beliefs: (N, V + A) float32 of the gallery.
        schema: of the columns.
        epsilon: of the calibration.
    """
    scores = np.zeros((*weights.shape[:-1], len(beliefs)), np.float32)
    for a, part in enumerate(parts(schema)):
        if weights[..., a].any():
            scores += weights[..., a, None] * log_term(probability(wanted, beliefs, part), epsilon)
    return scores


def log_term(probability: Vector, epsilon: float) -> Vector:
    """Compute log(epsilon + P), with at least 1e-30 in the logarithm."""
    return np.log(np.maximum(epsilon + probability, 1e-30))


def first_then_rest(obeying: Rows, close: Rows, k: int) -> Rows:
    """Concatenate two rankings without repetition: (..., k).

    Args:
        obeying: (..., F) item numbers ranked with the `edit_weight`, best first.
        close: (..., C) item numbers ranked without it, best first; C at least k.
        k: number of answers.
    """
    again = (close[..., None] == obeying[..., None, :]).any(axis=-1)
    both = np.concatenate([obeying, close], axis=-1)
    last = np.concatenate([np.zeros(obeying.shape, np.bool_), again], axis=-1)
    return np.take_along_axis(both, np.argsort(last, axis=-1, kind="stable")[..., :k], axis=-1)


def tables(
    wanted: Vector, weights: Vector, centroids: Sequence[Vector], schema: Schema, epsilon: float
) -> list[Vector]:
    """Compute score tables for items stored as one code per attribute.

    The score is a sum over attributes of a function of the attribute's beliefs, so each item is
    scored by A look-ups, for any weights and edits.

    Args:
        wanted: (V + A,) float32 of one query.
        weights: (A,) float32.
        centroids: for each attribute (K, V_a + 1) float32 beliefs, one row per code.
        schema: of the columns.
        epsilon: of the calibration.
    """
    return [
        weights[a] * log_term(np.clip(centroids[a] @ wanted[part], 0, 1), epsilon)
        for a, part in enumerate(parts(schema))
    ]


def _sigmoid(x: Vector) -> Vector:
    return (1 / (1 + np.exp(-np.clip(x, -80, 80)))).astype(np.float32)
