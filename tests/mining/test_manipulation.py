"""Drawn edits and their negatives against the definition in plain Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adde.mining import draw_edits, semihard_negatives, tiled

SIZES = (3, 2, 3)
OFFSETS = torch.tensor([0, 3, 5])


def label_rows(items, seed, unknown=True):
    draws = torch.Generator().manual_seed(seed)
    low = -1 if unknown else 0
    return torch.stack([torch.randint(low, v, (items,), generator=draws) for v in SIZES], dim=1)


def draw(labels, seed, most=1):
    return draw_edits(labels, labels, torch.arange(len(labels)), 7919 * seed, OFFSETS, most)


def exact_targets(rows, i):
    """Items that differ from i in one attribute, known on both."""
    found = {}
    for j, row in enumerate(rows):
        differing = [a for a in range(len(row)) if row[a] != rows[i][a]]
        if len(differing) == 1 and -1 not in (row[differing[0]], rows[i][differing[0]]):
            found.setdefault((differing[0], row[differing[0]]), []).append(j)
    return found


@given(items=st.integers(1, 14), seed=st.integers(0, 999), unknown=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_exact_target_is_taken_wherever_there_is_one(items, seed, unknown):
    labels = label_rows(items, seed, unknown)
    edits, rows = draw(labels, seed), labels.tolist()
    for i, row in enumerate(rows):
        exact = exact_targets(rows, i)
        assert bool(edits.exact[i]) == bool(exact)
        if exact:
            positive = int(edits.positive[i])
            assert any(positive in items for items in exact.values())
            assert edits.targets[i].tolist() == rows[positive]
        elif edits.usable[i]:
            positive = rows[int(edits.positive[i])]
            target = [p if -1 not in (p, own) else own for p, own in zip(positive, row)]
            assert edits.targets[i].tolist() == target != row
            # No other usable item differs in fewer attributes.
            usable = [r for r in rows if any(x != y and -1 not in (x, y) for x, y in zip(r, row))]
            fewest = min(sum(x != y for x, y in zip(r, row)) for r in usable)
            assert sum(x != y for x, y in zip(positive, row)) == fewest
        else:
            assert edits.targets[i].tolist() == row


def test_edits_are_uniform_over_edits_and_not_over_items():
    # Item 0 can become value 1 (shown by three items) or value 2 (shown by one).
    labels = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [2, 0, 0]])
    drawn = [draw(labels, seed) for seed in range(400)]
    rare = sum(int(edits.targets[0, 0] == 2) for edits in drawn) / 400
    assert 0.4 < rare < 0.6
    shown = {int(edits.positive[0]) for edits in drawn}
    assert shown == {1, 2, 3, 4}


@given(items=st.integers(2, 12), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_negatives_are_the_hardest_semihard(items, seed):
    labels = label_rows(items, seed)
    edits = draw(labels, seed)
    draws = torch.Generator().manual_seed(seed)
    queries, refs = torch.nn.functional.normalize(
        torch.randn(2, items, 4, generator=draws, dtype=torch.float64), dim=-1
    )
    negative, found = semihard_negatives(queries, edits.targets, edits.positive, refs, labels)
    for i in range(items):
        target = edits.targets[i].tolist()
        far = [float((queries[i] - r).square().sum()) for r in refs]
        wrong = [
            j
            for j, row in enumerate(labels.tolist())
            if any(x != y and -1 not in (x, y) for x, y in zip(row, target))
        ]
        assert bool(found[i]) == bool(wrong)
        outside = [j for j in wrong if far[j] > far[int(edits.positive[i])]]
        if wrong:
            best = min(outside, key=far.__getitem__) if outside else max(wrong, key=far.__getitem__)
            assert int(negative[i]) == best


def test_tiles_change_nothing(monkeypatch):
    labels = label_rows(23, seed=5)
    queries, refs = torch.nn.functional.normalize(torch.randn(2, 23, 6), dim=-1)
    results = []
    for rows in (23, 7, 1):
        monkeypatch.setitem(tiled.TILE_ELEMENTS, "cpu", 4 * 23 * rows)
        edits = draw(labels, seed=5)
        negatives = semihard_negatives(queries, edits.targets, edits.positive, refs, labels)
        results.append((*edits, *negatives))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_nothing_is_read_back_from_the_device():
    # A value that the host looks at would break the graph.
    @torch.compile(fullgraph=True, backend="aot_eager")
    def mine_edits(labels, items, queries, refs):
        edits = draw_edits(labels, labels, items, 5, OFFSETS)
        negatives = semihard_negatives(queries, edits.targets, edits.positive, refs, labels)
        return edits.positive, edits.exact, negatives[0]

    labels = label_rows(9, seed=2)
    vectors = torch.nn.functional.normalize(torch.randn(2, 9, 5), dim=-1)
    positive, exact, negative = mine_edits(labels, torch.arange(9), *vectors)
    assert positive.shape == exact.shape == negative.shape == (9,)


def several_targets(rows, i, most):
    """Items that differ from i in 1 to `most` attributes, all known on both, by number and edit."""
    found = {}
    for j, row in enumerate(rows):
        edit = tuple((a, row[a]) for a in range(len(row)) if row[a] != rows[i][a])
        known = all(value != -1 and rows[i][a] != -1 for a, value in edit)
        if known and 1 <= len(edit) <= most:
            found.setdefault(len(edit), {}).setdefault(edit, set()).add(j)
    return found


@given(items=st.integers(1, 14), seed=st.integers(0, 999), most=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_edits_of_several_attributes_have_exact_targets(items, seed, most):
    labels = label_rows(items, seed)
    edits, rows = draw(labels, seed, most), labels.tolist()
    one = draw(labels, seed)
    for i in range(items):
        exact = several_targets(rows, i, most)
        assert bool(edits.exact[i]) == bool(exact)
        positive = int(edits.positive[i])
        if exact:
            assert any(positive in found for some in exact.values() for found in some.values())
            assert edits.targets[i].tolist() == rows[positive]
        else:  # as without several
            assert edits.targets[i].tolist() == one.targets[i].tolist()
            assert (positive, bool(edits.usable[i])) == (int(one.positive[i]), bool(one.usable[i]))


def test_numbers_of_edits_are_uniform_and_so_are_edits_of_a_number():
    # One edit of one attribute; four of two, shown by one or three items; one of three.
    rows = [[0, 0, 0], [1, 0, 0], [1, 1, 0], *[[2, 1, 0]] * 3, [1, 0, 1], [0, 1, 1], [2, 1, 2]]
    drawn = [draw(torch.tensor(rows), seed, 3).targets[0].tolist() for seed in range(900)]
    counts = [sum(drawn.count(row) for row in each) / 900 for each in ([[1, 0, 0]], [[2, 1, 2]])]
    assert all(0.28 < share < 0.39 for share in counts)
    two = {tuple(r): drawn.count(r) / 900 for r in drawn if r.count(0) == 1}
    assert len(two) == 4
    assert all(0.05 < share < 0.12 for share in two.values())
