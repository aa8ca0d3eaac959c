"""The session on a CUDA device; `make gpu-check` runs these tests."""

import copy
import functools
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from adde.bundle import Bundle
from adde.errors import UserError
from adde.exporting.check import check_bundle
from adde.exporting.export import export_bundle
from adde.exporting.parity import relative_error
from adde.methods.adde.model import ADDE
from adde.serving.onnx.providers import missing
from adde.serving.onnx.session import BUCKETS, Session
from adde.shards.index import ShardIndex

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def provider():
    if lacking := missing("cuda"):
        pytest.skip(f"onnxruntime on CUDA: {'; '.join(lacking)}")


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def session(bundle):
    session = Session(bundle, "cuda")
    session.warm_up()
    return session


@pytest.fixture(scope="module")
def index(tiny_shards):
    return ShardIndex.read(tiny_shards)


@pytest.fixture(scope="module")
def larger(tiny_model, index, tmp_path_factory):
    """Makes bundles of a precision, of 64 px: with 32 the backbone has nothing left to pool."""
    model = ADDE(replace(tiny_model.settings, image_size=64), tiny_model.schema)
    model.load_state_dict(tiny_model.state_dict())

    @functools.cache
    def make(precision):
        out = tmp_path_factory.mktemp("bundles") / precision
        return export_bundle(model, index, out, None, {}, None, precision, allow_drop=100.0)

    return make


def test_it_runs_on_the_device_and_gives_the_golden_vectors(bundle, session):
    assert session.providers[0] == "CUDAExecutionProvider"
    golden = bundle.golden()
    embeddings, logits, _ = session.encode(golden.images)
    np.testing.assert_allclose(embeddings, golden.embeddings, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-3, atol=1e-3)
    query = session.edit(embeddings, golden.indicator)
    np.testing.assert_allclose(query, golden.query, atol=1e-4)


def test_batches_of_all_sizes_from_several_threads_equal_the_cpu(bundle, session):
    images = np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    expected = Session(bundle).encode(images)[0]
    parts = [slice(at, at + size) for at in (0, 1, 7) for size in (*BUCKETS, 3, 33, 100)]
    with ThreadPoolExecutor(4) as pool:
        for part, (found, *_) in zip(parts, pool.map(lambda p: session.encode(images[p]), parts)):
            np.testing.assert_allclose(found, expected[part], rtol=1e-3, atol=1e-3)


def test_batches_that_change_in_size_cost_little_more_than_those_that_do_not(session):
    """onnxruntime re-plans convolutions at every change of the batch (onnxruntime 23006)."""
    images = np.zeros((32, 32, 32, 3), np.uint8)

    def milliseconds(*sizes):
        times = []
        for _ in range(30):
            start = time.perf_counter()
            for size in sizes:
                session.encode(images[:size])
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    alike = milliseconds(8, 8) / 2 + milliseconds(32, 32) / 2
    changing = milliseconds(8, 32)
    print(f"batches of 8 and 32: {alike:.2f} ms alike, {changing:.2f} ms in turns")
    assert changing < 3 * alike


def test_fp16_is_gated_on_the_device_and_keeps_to_its_golden_vectors(larger):
    bundle = larger("fp16")
    assert bundle.details["parity"]["device"] == "cuda"
    _, rows = check_bundle(bundle.path, ("cpu", "cuda"))
    assert [row["device"] for row in rows] == ["cpu"] * 4 + ["cuda"] * 4, rows
    # Other arithmetic than the CPU's, which golden vectors are made with.
    assert 1e-6 < rows[-1]["max_error"] < 0.02


def test_fp16_whose_numbers_leave_its_range_is_refused(tiny_model, index, tmp_path):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():  # no weight leaves it, embeddings do
        model.heads.first.weight.mul_(1e4)
        model.heads.second.weight.mul_(1e3)
    with pytest.raises(UserError, match="expected finite embeddings"):
        export_bundle(model, index, tmp_path / "b", None, {}, None, "fp16", allow_drop=100.0)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-3), ("fp16", 0.02)])
def test_tensorrt_takes_the_bundle_and_gives_the_golden_vectors(
    larger, precision, allowed, tmp_path, monkeypatch
):
    if lacking := missing("tensorrt", precision):
        pytest.skip("; ".join(lacking))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # engines are built here
    bundle = larger(precision)
    session = Session(bundle, ("tensorrt", "cuda", "cpu"))
    assert session.providers[0] == "TensorrtExecutionProvider"
    golden = bundle.golden()
    for size in (1, 3, 65):
        rows = np.arange(size) % len(golden.images)
        embeddings, logits, _ = session.encode(golden.images[rows])
        assert relative_error(golden.embeddings[rows], embeddings) < allowed
        assert relative_error(golden.logits[rows], logits) < allowed
        query = session.edit(embeddings, golden.indicator[rows])
        assert relative_error(golden.query[rows], query) < allowed
