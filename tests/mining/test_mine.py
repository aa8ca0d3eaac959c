"""`mine` against the definition in plain Python, and the implementations against each other."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_cases import DEVICE, KINDS, batch, hard_case
from torch.utils._python_dispatch import TorchDispatchMode

from adde.mining import LabelGrouping, joint_labels, mine, tiled, triplets
from adde.mining.distances import allow_tf32, full_precision

MARGIN = 0.5
FAST = ["tiled", "triton"]


def loss_and_gradients(impl, vectors, labels, strategy="semihard"):
    leaf = vectors.clone().requires_grad_()
    mined = mine(leaf, labels, margin=MARGIN, strategy=strategy, impl=impl)
    (mined.loss_sum * torch.arange(1.0, len(labels) + 1, device=DEVICE)).sum().backward()
    return mined, leaf.grad


def choices(impl, vectors, labels, strategy):
    """(16, M): how many pairs of each anchor chose each column as positive (+) or negative (-).

    One group an anchor, and a margin that makes every pair count: what a column receives is its
    coefficient times twice its difference to the anchor. Vectors get a direction of their own, so
    that even duplicates receive something.
    """
    items, ids = len(labels), torch.arange(len(labels), device=DEVICE)
    rows = ids[:: items // 16 + 1]
    vectors = torch.cat([vectors, torch.eye(items, device=DEVICE)], dim=1)
    columns = vectors.expand(len(rows), -1, -1).clone().requires_grad_()
    mine(
        vectors[rows][:, None],
        labels[rows][:, None],
        refs=columns,
        ref_labels=labels.expand(len(rows), -1).contiguous(),
        margin=100.0,
        strategy=strategy,
        impl=impl,
    ).loss_sum.sum().backward()
    return columns.grad[:, ids, vectors.shape[1] - items + ids] / 2


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


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("items", [1, 2, 3, 127, 257])
def test_equals_reference_with_gradients(impl, items, monkeypatch):
    monkeypatch.setitem(tiled.TILE_ELEMENTS, DEVICE, items * 101)  # tiles of 101 rows
    vectors, labels = batch(3, items, 37, 5, seed=items, dtype=torch.float32)
    vectors = (64 * vectors).round() / 64  # exact distances: no rounding chooses a negative
    expected, expected_gradient = loss_and_gradients("reference", vectors, labels)
    found, gradient = loss_and_gradients(impl, vectors, labels)
    assert torch.equal(expected.pairs, found.pairs)
    assert torch.equal(expected.active, found.active)
    torch.testing.assert_close(found.loss_sum, expected.loss_sum, rtol=1e-6, atol=1e-6)
    scale = float(expected_gradient.abs().max()) if items > 3 else 1.0
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("strategy", ["semihard", "hardest"])
@pytest.mark.parametrize("items", [1, 2, 3, 127])
@pytest.mark.parametrize("kind", KINDS)
def test_chooses_what_the_reference_chooses(impl, strategy, items, kind):
    vectors, labels = hard_case(kind, items, seed=items)
    expected = choices("reference", vectors[0], labels[0], strategy)
    assert torch.equal(choices(impl, vectors[0], labels[0], strategy), expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_every_case_has_the_reference_s_loss(impl, kind):
    vectors, labels = hard_case(kind, 257, seed=5)
    expected, expected_gradient = loss_and_gradients("reference", vectors, labels)
    found, gradient = loss_and_gradients(impl, vectors, labels)
    for name in ("loss_sum", "pairs", "active"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6
        )
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, 2, 3], [0, 0, -1, -1]], ids=str
)
@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_without_pairs_the_loss_is_a_zero_with_a_gradient(labels, impl):
    vectors = torch.eye(4, device=DEVICE)[None].requires_grad_()
    mined = mine(vectors, torch.tensor([labels], device=DEVICE), margin=MARGIN, impl=impl)
    assert (mined.loss_sum.item(), mined.pairs.item(), mined.active.item()) == (0, 0, 0)
    mined.loss_sum.sum().backward()
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_equal_distances_take_the_lowest_index(impl):
    # Negatives 2 and 3 coincide: only the first of them may receive a gradient.
    vectors = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]], device=DEVICE).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 2]], device=DEVICE)
    mine(vectors, labels, margin=3.0, impl=impl).loss_sum.sum().backward()
    assert vectors.grad[0, 2].abs().sum() > 0
    assert vectors.grad[0, 3].abs().sum() == 0


@pytest.mark.parametrize("impl", FAST)
def test_local_anchors_against_global_columns_add_up(impl):
    vectors, labels = batch(2, 12, 4, 3, seed=7, dtype=torch.float32)
    whole = mine(vectors, labels, margin=MARGIN, impl=impl)
    parts = [
        mine(
            vectors[:, start : start + 4],
            labels[:, start : start + 4],
            refs=vectors,
            ref_labels=labels,
            self_index=torch.arange(start, start + 4, device=DEVICE),
            margin=MARGIN,
            impl=impl,
        )
        for start in (0, 4, 8)
    ]
    for name in ("loss_sum", "pairs", "active"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name))


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("strategy", ["semihard", "hardest"])
def test_more_columns_than_the_batch_equal_the_definition(impl, strategy):
    """As a queue of past items gives: no anchor is among them."""
    vectors, labels = batch(2, 11, 5, 3, seed=8, dtype=torch.float32)
    past, past_labels = batch(2, 30, 5, 4, seed=9, dtype=torch.float32)
    past_labels[:, 20:] = -1
    anchors = vectors.clone().requires_grad_()
    refs, ref_labels = torch.cat([anchors, past], 1), torch.cat([labels, past_labels], 1)
    mined = mine(
        anchors,
        labels,
        refs=refs,
        ref_labels=ref_labels,
        self_index=torch.arange(11, device=DEVICE),
        margin=MARGIN,
        strategy=strategy,
        impl=impl,
    )
    for group in range(2):
        rows = (vectors[group].double(), labels[group].tolist())
        columns = (refs[group].detach().double(), ref_labels[group].tolist())
        expected = by_hand(*rows, *columns, range(11), strategy)
        found = [float(part[group].detach()) for part in mined]
        assert found == pytest.approx(expected, rel=1e-5)
        assert expected[1] > by_hand(*rows, *rows, range(11), strategy)[1] > 0
    mined.loss_sum.sum().backward()
    assert anchors.grad.any()


def test_gradcheck():
    vectors, labels = batch(2, 7, 3, 3, seed=3)
    refs, ref_labels = batch(2, 9, 3, 3, seed=4)

    def loss(anchors, columns):  # no anchor is among the columns
        return mine(
            anchors,
            labels,
            refs=columns,
            ref_labels=ref_labels,
            margin=MARGIN,
            impl="tiled",
        ).loss_sum

    assert torch.autograd.gradcheck(loss, (vectors.requires_grad_(), refs.requires_grad_()))


@pytest.fixture
def tf32():
    """TF32 as Accelerate or a container switches it on."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield matmul
    matmul.fp32_precision = before


def test_autocast_and_tf32_are_kept_out_and_put_back(tf32, monkeypatch):
    """Products in fewer bits would choose other negatives."""
    vectors = torch.nn.functional.normalize(torch.randn(1, 40, 16), dim=-1)
    labels = torch.arange(40)[None] % 5
    seen = []
    choose = tiled.choose_by_sorting

    def look(*arguments):
        seen.append((tf32.fp32_precision, (vectors[0] @ vectors[0].T).dtype))
        return choose(*arguments)

    monkeypatch.setattr(tiled, "choose_by_sorting", look)
    with torch.autocast("cpu", torch.bfloat16):
        mine(vectors, labels, margin=0.5, impl="tiled")
        assert (vectors[0] @ vectors[0].T).dtype == torch.bfloat16
    assert set(seen) == {("ieee", torch.float32)}
    assert tf32.fp32_precision == "tf32"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_what_was_asked_for_and_never_inside(allowed):
    """torch's default lets convolutions have it and products not."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    try:
        allow_tf32(allowed)
        # Under both of torch's names for it: mixed up, the older ones cannot be read.
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
        before = (matmul.fp32_precision, convolution.fp32_precision)
        assert [switch == "tf32" for switch in before] == [allowed, allowed]
        with full_precision(torch.zeros(1)):
            assert matmul.fp32_precision == convolution.fp32_precision == "ieee"
        assert (matmul.fp32_precision, convolution.fp32_precision) == before
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        allow_tf32(False)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at it
def test_is_one_operator_that_compiles_whole():
    vectors, labels = batch(2, 9, 5, 3, seed=1, dtype=torch.float32)

    def loss(x):
        return mine((x * 2).tanh(), labels, margin=MARGIN, impl="tiled").loss_sum.sum() * 3

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        leaf = vectors.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])
    self_index = torch.arange(9, device=DEVICE)
    arguments = (vectors.requires_grad_(), labels, vectors.detach() + 0, labels, self_index)
    rest = (None, None, MARGIN, "semihard", "tiled", True)
    torch.library.opcheck(triplets._mine_op, (*arguments, *rest))


def test_half_precision_gives_a_gradient_of_its_own_dtype():
    vectors, labels = batch(2, 20, 16, 3, seed=2, dtype=torch.bfloat16)
    mined, gradient = loss_and_gradients("tiled", vectors, labels)
    assert mined.loss_sum.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16


def test_auto_says_once_what_it_took(caplog):
    triplets._choose_impl.cache_clear()
    vectors, labels = batch(1, 4, 3, 2, seed=0, dtype=torch.float32)
    with caplog.at_level(logging.INFO, "adde.mining"):
        for _ in range(2):
            mine(vectors, labels, margin=MARGIN)
    assert len(caplog.records) == 1
    impl = "triton" if DEVICE == "cuda" else "tiled"
    assert caplog.messages[0].endswith(f"on {DEVICE} with impl={impl}")


def test_where_triton_does_not_compile_tiles_mine_with_one_warning(caplog, monkeypatch):
    """Slim images have no C compiler, which shows at the first launch only."""

    def fail(device, dtype):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment.")

    monkeypatch.setattr(triplets, "_try_kernels", fail)
    triplets._choose_impl.cache_clear()
    with caplog.at_level(logging.WARNING, "adde.mining"):
        found = [triplets._choose_impl(torch.device("cuda", 0), torch.float32) for _ in range(3)]
    triplets._choose_impl.cache_clear()
    assert found == ["tiled"] * 3
    (message,) = caplog.messages
    assert "Please specify via CC" in message and "header files" in message


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter stands in for a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_runs_the_kernels(dtype, monkeypatch):
    triplets._try_kernels(torch.device("cpu"), dtype)
    from adde.mining import kernels

    monkeypatch.setattr(kernels, "_negatives_kernel", None)
    with pytest.raises(TypeError):
        triplets._try_kernels(torch.device("cpu"), dtype)


class Operators(TorchDispatchMode):
    """Names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


WAITS = {"_local_scalar_dense", "item", "nonzero", "unique_dim", "_unique2", "is_nonzero", "equal"}


@pytest.mark.parametrize("groups", [2, 40])
def test_with_a_grouping_nothing_waits_and_groups_go_together(groups, monkeypatch):
    """What a training step does: 104 operations and 3 waits for each attribute before."""
    vectors, labels = batch(groups, 64, 8, 5, seed=6, dtype=torch.float32)
    labels[-1] = -1  # a group without any pair
    own = torch.arange(64, device=DEVICE)
    run, inside = tiled.mine_in_tiles, Operators()

    def look(*arguments):  # a mode does not see into an operator
        with inside:
            return run(*arguments)

    monkeypatch.setattr(tiled, "mine_in_tiles", look)
    monkeypatch.setitem(tiled.JOINED_ELEMENTS, DEVICE, tiled.JOINED_ELEMENTS["cuda"])
    expected, expected_gradient = loss_and_gradients("reference", vectors, labels)
    leaf = vectors.clone().requires_grad_()
    with Operators() as seen:
        grouping = LabelGrouping(labels, labels, own)
        joint_labels(labels.T)
        mined = mine(
            leaf,
            labels,
            refs=leaf,
            ref_labels=labels,
            self_index=own,
            margin=MARGIN,
            grouping=grouping,
            impl="tiled",
        )
    assert not WAITS & {*seen.names, *inside.names}
    assert 40 < len(inside.names) < 140
    assert len(seen.names) < 120 + 4 * groups  # of which joint labels take a few a group
    (mined.loss_sum * torch.arange(1.0, groups + 1, device=DEVICE)).sum().backward()
    assert torch.equal(mined.pairs, expected.pairs)
    torch.testing.assert_close(mined.loss_sum, expected.loss_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_label_that_most_items_have_takes_no_more_memory(monkeypatch):
    """Its positives are as many as the columns, and a dozen tensors hold them."""
    rows = []
    choose = tiled.choose_by_sorting

    def look(*arguments):
        found = choose(*arguments)
        rows.append(found.pair.numel())
        return found

    monkeypatch.setattr(tiled, "choose_by_sorting", look)
    monkeypatch.setitem(tiled.TILE_ELEMENTS, DEVICE, 1 << 14)
    vectors, labels = batch(2, 300, 4, 3, seed=1, dtype=torch.float32)
    labels = torch.zeros_like(labels)
    labels[:, ::50] = 1
    mine(vectors, labels, margin=MARGIN, impl="tiled")
    assert max(rows) * tiled.SLOT_COST <= 1 << 14
    assert sum(rows) >= 2 * 294 * 294


def vectors_with(value, row):
    vectors = torch.zeros(2, 4, 3, device=DEVICE)
    vectors[1, row, 2] = value
    return vectors


LABELS = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("impl", ["reference", "tiled"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": 0.0}, "margin > 0, found 0.0"),
        ({"labels": LABELS[:, :3]}, r"shape \(2, 4\), found \(2, 3\)"),
        ({"labels": LABELS.float()}, "expected int64, found torch.float32"),
        ({"labels": LABELS - 2}, ">= -1, found -2"),
        ({"anchors": torch.zeros(4, 2)}, r"found \(4, 2\)"),
        ({"anchors": torch.zeros(2, 4, 3, dtype=torch.int64, device=DEVICE)}, "float dtype"),
        ({"refs": torch.zeros(2, 4, 3)}, "ref_labels with refs"),
        ({"labels": LABELS.to("meta")}, "labels: expected on .*, found meta"),
        ({"anchors": vectors_with(torch.nan, 3)}, "anchors: expected finite .* row 3 of group 1"),
        ({"anchors": vectors_with(-torch.inf, 0)}, "in 1 rows, first in row 0 of group 1"),
        (
            {"refs": vectors_with(torch.nan, 2), "ref_labels": LABELS},
            "refs: expected finite .* row 2 of group 1",
        ),
        (
            {
                "refs": vectors_with(0.0, 0),
                "ref_labels": LABELS + 1,
                "self_index": torch.arange(4, device=DEVICE),
            },
            "self_index: expected the anchor's own column, found column 0 with label 1 for row 0",
        ),
        ({"strategy": "easy"}, "expected semihard or hardest, found 'easy'"),
        ({"impl": "fast"}, "found 'fast'"),
    ],
    ids=str,
)
def test_bad_input_is_named(change, message, impl):
    good = {
        "anchors": torch.zeros(2, 4, 3, device=DEVICE),
        "labels": LABELS,
        "margin": MARGIN,
        "impl": impl,
    }
    with pytest.raises(ValueError, match=message):
        mine(**{**good, **change})


def test_joint_labels_follow_the_rows():
    rows = torch.tensor([[0, 1], [1, 1], [0, 1], [-1, 1], [-1, -1]])
    ids = joint_labels(rows).tolist()
    assert ids[0] == ids[2]
    assert len({ids[0], ids[1], ids[3]}) == 3
    assert ids[4] == -1


@given(items=st.integers(1, 40), attributes=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_joint_labels_are_equal_where_rows_are(items, attributes, seed):
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, 3, (items, attributes), generator=draws)
    for sizes in (None, (3,) * attributes, (2**20,) * attributes):
        ids = joint_labels(rows, sizes).tolist()
        groups = {}
        for row, found in zip(rows.tolist(), ids):
            assert groups.setdefault(tuple(row), found) == found >= -1
        assert len(set(groups.values())) == len(groups)
        assert groups.get((-1,) * attributes, -1) == -1
