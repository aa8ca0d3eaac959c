"""Edit groups: items one attribute apart are stored together, so batches contain edit targets.

Two items are *neighbours* if their labels differ in exactly one attribute that is known on both;
UNKNOWN equals only UNKNOWN. A training batch consists of a few groups, and the miner needs a
neighbour of each reference in the batch. So a group should hold a neighbour of each of its items.

Pairs of items are never listed. Items with equal labels form a *combination*. Combinations that are
equal except for attribute a form a *bucket* of a, with at most V_a members. N items have at most
A * N bucket entries, which sorting finds.

1. Grow. In random order, each unplaced item seeds a group. Until the group is full: pick a random
   member, search its buckets in random order for another combination with unplaced items, draw one
   with probability proportional to their number, and take an item. Groups thus keep the
   proportions of the catalogue, and each member is a neighbour of the one it grew from.
2. Join. An item alone in its group joins a group that holds a neighbour: the smallest of those
   examined, up to twice the size of a grown group.
3. Groups are shuffled.

An item that stays alone has no neighbour, or its few neighbours are in full groups.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from adde.schema import UNKNOWN, Labels, dense_labels

GROUP_SIZE = 8
"""Items of a grown group: a batch of 64 holds eight groups or more."""

MAX_EXAMINED = 64
"""Items of a neighbouring combination whose groups a joining item examines."""


def edit_groups(labels: Labels, seed: int, size: int = GROUP_SIZE) -> list[list[int]]:
    """Put every row into one group of at most `2 * size`; see the module.

    Args:
        labels: (N, A) int64.
        seed: Seed of the random choices.
        size: Items of a grown group, at least 2.

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
    """Return (N,) bool: whether a row of labels (N, A) int64 has a neighbour among the others."""
    return neighbour_in_group(labels, [range(len(labels))])


def neighbour_in_group(labels: Labels, groups: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: whether a row of labels (N, A) int64 has a neighbour in its group."""
    group_of = np.zeros(len(labels), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[np.asarray(group)] = number
    # The group acts as an attribute that neighbours must share; its own buckets do not count.
    combination, keys = _combinations_and_keys(np.column_stack([group_of, labels]))
    found = np.zeros(keys.shape[1], dtype=np.bool_)
    for row in keys[1:]:
        counts = np.bincount(row[row >= 0], minlength=1)
        found |= (row >= 0) & (counts[row] > 1)
    return found[combination]


class _Combinations:
    """The distinct label rows, their unplaced items, and their neighbours."""

    def __init__(self, labels: Labels, rng: random.Random) -> None:
        combination, self._keys = _combinations_and_keys(labels)
        self.of_item: list[int] = combination.tolist()
        self.seeds = list(range(len(labels)))
        rng.shuffle(self.seeds)
        # Items are taken from the end, so the last of a list is the next seed of its combination.
        self.left: list[list[int]] = [[] for _ in range(self._keys.shape[1])]
        for item in reversed(self.seeds):
            self.left[self.of_item[item]].append(item)
        self._members = [_members(row) for row in self._keys]

    def neighbours(self, combination: int, attribute: int) -> list[int]:
        """Return the combinations that differ from one in this attribute only."""
        key = self._keys[attribute, combination]
        if key < 0:
            return []
        order, starts = self._members[attribute]
        return [c for c in order[starts[key] : starts[key + 1]].tolist() if c != combination]

    def neighbour_lists(self, combination: int, rng: random.Random) -> Iterator[list[int]]:
        """Yield `neighbours` attribute by attribute, in random order."""
        attributes = list(range(len(self._keys)))
        rng.shuffle(attributes)
        return (self.neighbours(combination, attribute) for attribute in attributes)


def _combinations_and_keys(labels: Labels) -> tuple[Labels, Labels]:
    """Return the combination (N,) of each row and keys (A, C); equal keys mean the same bucket.

    The keys of an attribute count from 0 without gaps, and are -1 where it is UNKNOWN. They stay
    small and exact: a row without attribute a is a pair of prefix and suffix, and each of these is
    numbered from the number of the one that is an attribute shorter.
    """
    # Four bytes per label, because sorting the rows is what needs most memory in a build.
    unique = np.unique(dense_labels(labels).astype(np.int32), axis=0, return_inverse=True)
    rows: Labels = unique[0].astype(np.int64)
    # The shape is (N,) or (N, 1), depending on numpy's version.
    combination: Labels = unique[1].reshape(-1)
    keys = np.full(rows.shape[::-1], -1, dtype=np.int64)
    # Prefixes are generated lazily; prefixes and suffixes together take twice the labels' memory.
    *afters, _ = _numbered_prefixes(rows[:, ::-1])
    for attribute, before in zip(range(rows.shape[1]), _numbered_prefixes(rows)):
        known = rows[:, attribute] != UNKNOWN
        rest = before * len(rows) + afters.pop()
        keys[attribute, known] = _dense(rest[known])
    return combination, keys


def _numbered_prefixes(rows: Labels) -> Iterator[Labels]:
    """Yield A + 1 arrays (C,): equal numbers where rows (C, A) agree in the first 0..A columns."""
    numbers: Labels = np.zeros(len(rows), dtype=np.int64)
    yield numbers
    for attribute in range(rows.shape[1]):
        column: Labels = rows[:, attribute] + 1  # UNKNOWN is 0
        numbers = _dense(numbers * (int(column.max()) + 1) + column)
        yield numbers


def _dense(keys: Labels) -> Labels:
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)


def _members(keys: Labels) -> tuple[Labels, Labels]:
    """Return combinations sorted by key, without key -1, and the start of each key's run."""
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
    """Take an unplaced neighbour of a combination, or return None if there is none."""
    for neighbours in combinations.neighbour_lists(combination, rng):
        counts = [len(combinations.left[neighbour]) for neighbour in neighbours]
        if any(counts):
            return combinations.left[rng.choices(neighbours, counts)[0]].pop()
    return None


def _join(
    combinations: _Combinations, groups: list[list[int]], rng: random.Random, limit: int
) -> list[list[int]]:
    """Move single items into groups that hold a neighbour and have room."""
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
            for other in items_of[neighbour][:MAX_EXAMINED]
        }
        room = [group for group in candidates if len(groups[group]) < limit]
        if room:
            target = min(room, key=lambda group: (len(groups[group]), group))
            groups[target].append(item)
            groups[number] = []
            group_of[item] = target
    return [group for group in groups if group]
