"""Edit groups: items one attribute apart stand together, so that batches hold targets of edits.

Two items are *neighbours* when their labels differ in exactly one attribute that is known on
both; UNKNOWN equals only UNKNOWN. A training batch is a handful of groups, and the miner needs,
for a reference, a neighbour in the batch. So a group should hold a neighbour of each of its items.

Pairs of items are never listed. Items with equal labels form a *combination*; combinations that
are equal but for attribute a form a *bucket* of a, which has at most V_a of them. In N items there
are at most A * N bucket entries, found by sorting.

1. Grow. In random order, each item not yet placed seeds a group. Until the group is full: pick a
   random member, look through its buckets in random order for another combination with items
   left, drawn by how many it has left, and take one of its items. Groups so keep the proportions
   of the catalogue, and a member is by construction a neighbour of the one it grew from.
2. Join. An item that grew no group joins one that holds a neighbour of it, the smallest of those
   looked at, up to twice the size of a grown group.
3. Groups are put in random order.

What stays alone has no neighbour, or has so few for its kind that the groups around them are full.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from adde.schema import UNKNOWN, Labels

GROUP_SIZE = 8
"""Items of a grown group: a batch of 64 holds eight groups or more."""

LOOKED_AT = 64
"""Items of a neighbouring combination whose groups are looked at by one that wants to join."""


def edit_groups(labels: Labels, seed: int, size: int = GROUP_SIZE) -> list[list[int]]:
    """Puts every row into one group of at most `2 * size`; see the module.

    Args:
        labels: (N, A) int64.
        seed: of the random choices.
        size: items of a grown group, at least 2.

    Returns:
        Groups of row numbers 0..N-1, each row once.
    """
    rng = random.Random(seed)
    combinations = _Combinations(labels, rng)
    groups = _grow(combinations, rng, size)
    groups = _join(combinations, groups, rng, 2 * size)
    rng.shuffle(groups)
    return groups


def neighbour_shares(labels: Labels, sizes: Sequence[int]) -> dict[str, float]:
    """Return the share of N rows that have a neighbour among all rows, and in their group.

    Args:
        labels: (N, A) int64, group by group.
        sizes: Lengths of the groups.
    """
    groups = np.split(np.arange(len(labels)), np.cumsum(sizes)[:-1])
    return {
        "in_split": float(has_neighbour(labels).mean()),
        "in_group": float(neighbour_in_group(labels, [group.tolist() for group in groups]).mean()),
    }


def has_neighbour(labels: Labels) -> npt.NDArray[np.bool_]:
    """(N,) bool: whether a row of labels (N, A) int64 has a neighbour among the others."""
    return neighbour_in_group(labels, [range(len(labels))])


def neighbour_in_group(labels: Labels, groups: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
    """(N,) bool: whether a row of labels (N, A) int64 has a neighbour in its group."""
    group_of = np.zeros(len(labels), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[np.asarray(group)] = number
    # As an attribute that neighbours must share, but whose own buckets do not count.
    combination, keys = _combinations_and_keys(np.column_stack([group_of, labels]))
    found = np.zeros(keys.shape[1], dtype=np.bool_)
    for row in keys[1:]:
        counts = np.bincount(row[row >= 0], minlength=1)
        found |= (row >= 0) & (counts[row] > 1)
    return found[combination]


class _Combinations:
    """The distinct label rows, their items not yet placed, and which are neighbours."""

    def __init__(self, labels: Labels, rng: random.Random) -> None:
        combination, self._keys = _combinations_and_keys(labels)
        self.of_item: list[int] = combination.tolist()
        self.seeds = list(range(len(labels)))
        rng.shuffle(self.seeds)
        # The last of a list is the next seed of its combination: all are taken from the end.
        self.left: list[list[int]] = [[] for _ in range(self._keys.shape[1])]
        for item in reversed(self.seeds):
            self.left[self.of_item[item]].append(item)
        self._members = [_members(row) for row in self._keys]

    def neighbours(self, combination: int, attribute: int) -> list[int]:
        """Combinations that differ from one in this attribute only."""
        key = self._keys[attribute, combination]
        if key < 0:
            return []
        order, starts = self._members[attribute]
        return [c for c in order[starts[key] : starts[key + 1]].tolist() if c != combination]

    def neighbour_lists(self, combination: int, rng: random.Random) -> Iterator[list[int]]:
        """`neighbours` by attribute, in random order."""
        attributes = list(range(len(self._keys)))
        rng.shuffle(attributes)
        return (self.neighbours(combination, attribute) for attribute in attributes)


def _combinations_and_keys(labels: Labels) -> tuple[Labels, Labels]:
    """Combination (N,) of each row, and keys (A, C): combinations with one key are in one bucket.

    Keys of an attribute are dense from 0, and -1 where the combination has it UNKNOWN. Exact
    without wide keys: a row without attribute a is what stands before a and what stands after it,
    and each of these is numbered by what it was one attribute ago.
    """
    # In four bytes a label: sorting a million rows is what takes most memory of a build.
    unique = np.unique(labels.astype(np.int32), axis=0, return_inverse=True)
    rows: Labels = unique[0].astype(np.int64)
    # Its shape is (N,) or (N, 1), as numpy's version has it.
    combination: Labels = unique[1].reshape(-1)
    keys = np.full(rows.shape[::-1], -1, dtype=np.int64)
    # Made, and let go of, as they are needed: all at once are twice the labels.
    *afters, _ = _numbered_prefixes(rows[:, ::-1])
    for attribute, before in zip(range(rows.shape[1]), _numbered_prefixes(rows)):
        known = rows[:, attribute] != UNKNOWN
        rest = before * len(rows) + afters.pop()
        keys[attribute, known] = _dense(rest[known])
    return combination, keys


def _numbered_prefixes(rows: Labels) -> Iterator[Labels]:
    """A + 1 arrays (C,): equal numbers where rows (C, A) agree in their first 0..A attributes."""
    numbers: Labels = np.zeros(len(rows), dtype=np.int64)
    yield numbers
    for attribute in range(rows.shape[1]):
        column: Labels = rows[:, attribute] + 1  # UNKNOWN is 0
        numbers = _dense(numbers * (int(column.max()) + 1) + column)
        yield numbers


def _dense(keys: Labels) -> Labels:
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)


def _members(keys: Labels) -> tuple[Labels, Labels]:
    """Combinations sorted by key without those of key -1, and where each key's run starts."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys[keys >= 0], minlength=1)
    return order[len(keys) - counts.sum() :], np.concatenate([[0], np.cumsum(counts)])


def _grow(combinations: _Combinations, rng: random.Random, size: int) -> list[list[int]]:
    placed = [False] * len(combinations.of_item)
    groups: list[list[int]] = []
    for seed in combinations.seeds:
        if placed[seed]:
            continue
        combinations.left[combinations.of_item[seed]].pop()
        group, open_members = [seed], [seed]
        while open_members and len(group) < size:
            member = rng.randrange(len(open_members))
            item = _take_neighbour(combinations, combinations.of_item[open_members[member]], rng)
            if item is None:
                open_members.pop(member)
            else:
                group.append(item)
                open_members.append(item)
        for item in group:
            placed[item] = True
        groups.append(group)
    return groups


def _take_neighbour(
    combinations: _Combinations, combination: int, rng: random.Random
) -> int | None:
    """Takes an item one attribute from a combination, or None where none is left."""
    for neighbours in combinations.neighbour_lists(combination, rng):
        counts = [len(combinations.left[neighbour]) for neighbour in neighbours]
        if any(counts):
            return combinations.left[rng.choices(neighbours, counts)[0]].pop()
    return None


def _join(
    combinations: _Combinations, groups: list[list[int]], rng: random.Random, limit: int
) -> list[list[int]]:
    """Moves items that are alone into groups that hold a neighbour and have room."""
    items_of: list[list[int]] = [[] for _ in combinations.left]
    group_of = [0] * len(combinations.of_item)
    for number, group in enumerate(groups):
        for item in group:
            group_of[item] = number
            items_of[combinations.of_item[item]].append(item)
    for number in [number for number, group in enumerate(groups) if len(group) == 1]:
        (item,) = groups[number]
        candidates = {
            group_of[other]
            for neighbours in combinations.neighbour_lists(combinations.of_item[item], rng)
            for neighbour in neighbours
            for other in items_of[neighbour][:LOOKED_AT]
        }
        room = [group for group in candidates if len(groups[group]) < limit]
        if room:
            target = min(room, key=lambda group: (len(groups[group]), group))
            groups[target].append(item)
            groups[number] = []
            group_of[item] = target
    return [group for group in groups if group]
