"""Metrics of obedience: how often the answers have the values that an edit asks for.

The published protocol is limited to edits with an exact target in the gallery. Here any edit of
known labels is a query, one, two or three attributes at once, and answers are judged by the edited
attributes alone.

Symbols: N gallery items, Q queries, A attributes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.metrics import EditQueries, Figures, blocks_of, summary
from adde.schema import SEVERAL, UNKNOWN, Labels, Rows, Schema, shows, values_of
from adde.scoring import FIRST

MAX_QUERIES = 20_000
"""For each number of edits at once."""

EDITS_AT_ONCE = (1, 2, 3)

Rank = Callable[[EditQueries], Rows]
"""Maps queries to their answers, (Q, FIRST + 1) int64 gallery rows or more, best first."""


@dataclass(frozen=True)
class LabelEdits:
    """Edits of known labels: queries "this item, but with these values", one per row."""

    reference: Rows
    """(Q,) int64 row of the item in the gallery."""
    values: Labels
    """(Q, A) int64 requested values, UNKNOWN where an attribute is not edited."""

    def __len__(self) -> int:
        return len(self.reference)

    def __getitem__(self, rows: slice | Rows) -> "LabelEdits":
        return LabelEdits(self.reference[rows], self.values[rows])


def all_edits(labels: Labels, count: int, most: int = MAX_QUERIES) -> LabelEdits:
    """Make edits of `count` known labels at once to other values that some item has together.

    Single edits are all that exist, or `most` of them, evenly spaced. Edits of several labels are
    drawn at random with a fixed seed. An edit asks for one value that the item does not have; an
    item with several values has each of them.

    Args:
        labels: (N, A) int64 of the gallery, whose items are also the references.
        count: edits at once, 1 or more.
        most: maximum number of queries.
    """
    found = _every_edit(labels) if count == 1 else _drawn_edits(labels, count, most)
    if len(found) <= most:
        return found
    return found[np.linspace(0, len(found) - 1, most).astype(np.int64)]


def _every_edit(labels: Labels) -> LabelEdits:
    rows: list[Rows] = []
    for a in range(labels.shape[1]):
        shown = _distinct_values(labels[:, a])
        known = np.flatnonzero(labels[:, a] != UNKNOWN)
        item, value = (grid.ravel() for grid in np.meshgrid(known, shown, indexing="ij"))
        other = ~shows(labels[item, a], value)
        attribute = np.full(int(other.sum()), a)
        rows.append(np.stack([item[other], attribute, value[other]], axis=1))
    table = np.concatenate(rows)
    table = table[np.lexsort(table.T[::-1])]
    return _edits(table[:, 0], table[:, 1:2], table[:, 2:3], labels.shape[1])


def _drawn_edits(labels: Labels, count: int, most: int) -> LabelEdits:
    """Draw references, each with another item that differs in `count` or more known labels."""
    draws = np.random.default_rng(count)
    item, other = draws.integers(len(labels), size=(2, 2 * most))
    given = _one_value_each(labels)[other]
    can = (labels[item] != UNKNOWN) & (given != UNKNOWN) & ~shows(labels[item], given)
    enough = np.flatnonzero(can.sum(axis=1) >= count)[:most]
    item, given, can = item[enough], given[enough], can[enough]
    # Edit the attributes with the largest random numbers among those that can be edited.
    attributes = np.argsort(-(draws.random(can.shape) * can.astype(np.float64)), axis=1)[:, :count]
    values = np.take_along_axis(given, attributes, axis=1)
    return _edits(item, attributes, values, labels.shape[1])


def _distinct_values(column: Labels) -> Labels:
    """Return the values that the labels (N,) of an attribute show, ascending."""
    found = np.unique(column[column != UNKNOWN])
    if len(found) and found[-1] >= SEVERAL:
        return np.unique([value for label in found.tolist() for value in values_of(label)])
    return found


def _one_value_each(labels: Labels) -> Labels:
    """Replace each set in labels (N, A) by one of its values, drawn with a fixed seed."""
    rows, columns = np.nonzero(labels >= SEVERAL)
    if not len(rows):
        return labels
    draws, single = np.random.default_rng(0), labels.copy()
    for row, column in zip(rows.tolist(), columns.tolist()):
        single[row, column] = draws.choice(values_of(int(labels[row, column])))
    return single


def _edits(item: Rows, attributes: Rows, values: Labels, width: int) -> LabelEdits:
    table = np.full((len(item), width), UNKNOWN)
    np.put_along_axis(table, attributes, values, axis=1)
    return LabelEdits(item, table)


def wanted_metrics(ranked: Rows, labels: Labels, edits: LabelEdits) -> dict[str, Figures]:
    """Compute `first_wanted` and `wanted@10` of every query, (Q,) float64 each.

    The reference is removed from the answers, as in a search. `first_wanted`: whether the first
    answer has all requested values. `wanted@10`: the share of the first min(10, n) answers that
    have them, where n items of the gallery do.

    Args:
        ranked: (Q, K) int64 gallery rows, best first; the first FIRST + 1 are used.
        labels: (N, A) int64 of the gallery; an UNKNOWN label never matches.
        edits: the Q queries; some item has the requested values of each.
    """
    found = {name: np.zeros(len(edits)) for name in ("first_wanted", "wanted@10")}
    for block in blocks_of(len(edits), labels.size):
        values = edits[block].values
        matching = _has_values(values, labels).sum(axis=1)
        answers = _without(ranked[block, : FIRST + 1], edits.reference[block])
        good = shows(labels[answers], values[:, None]) | (values[:, None] == UNKNOWN)
        good = good.all(axis=2)
        within = np.arange(good.shape[1]) < matching[:, None]
        found["first_wanted"][block] = good[:, 0]
        found["wanted@10"][block] = (good & within).sum(axis=1) / np.minimum(matching, FIRST)
    return found


def _without(ranked: Rows, references: Rows) -> Rows:
    """Remove each reference from its ranking (Q, K), or the last answer if it is not among them."""
    own = ranked == references[:, None]
    own[:, -1] |= ~own.any(axis=1)
    return ranked[~own].reshape(len(ranked), -1)


def _has_values(values: Labels, labels: Labels) -> npt.NDArray[np.bool_]:
    """Return (Q, N) bool: whether the item has all requested values."""
    shown = np.ones((len(values), len(labels)), np.bool_)
    for a in range(labels.shape[1]):
        asked = np.flatnonzero(values[:, a] != UNKNOWN)
        shown[asked] &= shows(labels[:, a], values[asked, a, None])
    return shown


def judge(
    rankings: dict[str, Rank], labels: Labels, schema: Schema, most: int = MAX_QUERIES
) -> Any:
    """Judge rankings by the edits of known labels.

    Returns:
        By ranking and number of edits at once: `first_wanted` and `wanted@10` as `metrics.summary`
        gives them. Single edits also have them `by_attribute`, with `macro`, the mean over
        attributes.
    """
    result: dict[str, dict[str, Any]] = {name: {} for name in rankings}
    for count in EDITS_AT_ONCE[: len(schema.names)]:
        edits = all_edits(labels, count, most)
        for name, rank in rankings.items():
            found = wanted_metrics(rank(edits), labels, edits)
            row = summary(found, edits.reference)
            if count == 1:
                row["by_attribute"] = _by_attribute(found, edits, schema)
            result[name][str(count)] = row
    return result


def _by_attribute(
    found: dict[str, Figures], edits: LabelEdits, schema: Schema
) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for a, name in enumerate(schema.names):
        rows = edits.values[:, a] != UNKNOWN
        if rows.any():
            result[name] = {figure: float(values[rows].mean()) for figure, values in found.items()}
    macro = {f: float(np.mean([row[f] for row in result.values()])) for f in found if result}
    return {**result, "macro": macro} if result else {}
