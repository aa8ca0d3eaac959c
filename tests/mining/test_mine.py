"""`mine` against the definition in plain Python, and the implementations against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adde.mining import joint_labels, mine, tiled

MARGIN = 0.5


def by_hand(anchors, labels, refs, ref_labels, self_index, strategy):
    """One group, one loop per quantifier of the definition; distances as given."""
    losses = []
    for i in range(len(anchors)):
        to = [float((anchors[i] - r).square().sum()) for r in refs]
        known = labels[i] != -1
        negatives = [j for j in range(len(refs)) if known and ref_labels[j] not in (-1, labels[i])]
        for j in range(len(refs)):
            if not known or j == self_index[i] or ref_labels[j] != labels[i] or not negatives:
                continue
            outside = [n for n in negatives if to[n] > to[j]]
            if strategy == "hardest":
                n = min(negatives, key=lambda n: to[n])
            elif outside:
                n = min(outside, key=lambda n: to[n])
            else:
                n = max(negatives, key=lambda n: to[n])
            losses.append(MARGIN + to[j] - to[n])
    return sum(max(0.0, x) for x in losses), len(losses), sum(x > 0 for x in losses)


def batch(groups, items, width, values, seed, dtype=torch.float64):
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randn(groups, items, width, generator=draws, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).to(dtype)
    labels = torch.randint(-1, values, (groups, items), generator=draws)
    return vectors, labels


@pytest.mark.parametrize("impl", ["reference", "tiled"])
@pytest.mark.parametrize("strategy", ["semihard", "hardest"])
@given(items=st.integers(1, 9), values=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_equals_the_definition(impl, strategy, items, values, seed):
    vectors, labels = batch(2, items, 3, values, seed)
    mined = mine(vectors, labels, margin=MARGIN, strategy=strategy, impl=impl)
    for group in range(2):
        row = labels[group].tolist()
        expected = by_hand(vectors[group], row, vectors[group], row, range(items), strategy)
        found = [float(part[group]) for part in mined]
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("items", [1, 2, 3, 127, 257])
def test_tiled_equals_reference_with_gradients(items, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", 3 * items * 19)  # tiles of 19 rows
    vectors, labels = batch(3, items, 8, 5, seed=items)
    results = []
    for impl in ("reference", "tiled"):
        leaf = vectors.clone().requires_grad_()
        mined = mine(leaf, labels, margin=MARGIN, impl=impl)
        (mined.loss_sum * torch.tensor([1.0, 2.0, -0.5])).sum().backward()
        results.append((mined, leaf.grad))
    (one, one_grad), (two, two_grad) = results
    assert torch.equal(one.pairs, two.pairs)
    assert torch.equal(one.active, two.active)
    torch.testing.assert_close(one.loss_sum, two.loss_sum)
    torch.testing.assert_close(one_grad, two_grad)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, 2, 3], [0, 0, -1, -1]], ids=str
)
@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_without_pairs_the_loss_is_a_zero_with_a_gradient(labels, impl):
    vectors = torch.eye(4)[None].requires_grad_()
    mined = mine(vectors, torch.tensor([labels]), margin=MARGIN, impl=impl)
    assert (mined.loss_sum.item(), mined.pairs.item(), mined.active.item()) == (0, 0, 0)
    mined.loss_sum.sum().backward()
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))


@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_equal_distances_take_the_lowest_index(impl):
    # Negatives 2 and 3 coincide: only the first of them may receive a gradient.
    vectors = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]]).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 2]])
    mine(vectors, labels, margin=3.0, impl=impl).loss_sum.sum().backward()
    assert vectors.grad[0, 2].abs().sum() > 0
    assert vectors.grad[0, 3].abs().sum() == 0


def test_local_anchors_against_global_columns_add_up():
    vectors, labels = batch(2, 12, 4, 3, seed=7)
    whole = mine(vectors, labels, margin=MARGIN)
    parts = [
        mine(
            vectors[:, start : start + 4],
            labels[:, start : start + 4],
            refs=vectors,
            ref_labels=labels,
            self_index=torch.arange(start, start + 4),
            margin=MARGIN,
        )
        for start in (0, 4, 8)
    ]
    for name in ("loss_sum", "pairs", "active"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name))


def test_gradcheck():
    vectors, labels = batch(2, 7, 3, 3, seed=3)
    refs, ref_labels = batch(2, 9, 3, 3, seed=4)

    def loss(anchors, columns):
        return mine(
            anchors,
            labels,
            refs=columns,
            ref_labels=ref_labels,
            self_index=torch.arange(7),
            margin=MARGIN,
            impl="tiled",
        ).loss_sum

    assert torch.autograd.gradcheck(loss, (vectors.requires_grad_(), refs.requires_grad_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": 0.0}, "margin > 0, found 0.0"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"shape \(2, 4\), found \(2, 3\)"),
        ({"labels": torch.zeros(2, 4)}, "expected int64, found torch.float32"),
        ({"labels": torch.full((2, 4), -2)}, ">= -1, found -2"),
        ({"anchors": torch.zeros(4, 2)}, r"found \(4, 2\)"),
        ({"anchors": torch.zeros(2, 4, 3, dtype=torch.int64)}, "float dtype"),
        ({"refs": torch.zeros(2, 4, 3)}, "ref_labels and self_index"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "anchors": torch.zeros(2, 4, 3),
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "margin": MARGIN,
    }
    with pytest.raises(ValueError, match=message):
        mine(**{**good, **change})


def test_joint_labels_follow_the_rows():
    rows = torch.tensor([[0, 1], [1, 1], [0, 1], [-1, 1], [-1, -1]])
    ids = joint_labels(rows).tolist()
    assert ids[0] == ids[2]
    assert len({ids[0], ids[1], ids[3]}) == 3
    assert ids[4] == -1
