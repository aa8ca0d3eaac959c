"""The session on a CUDA device; `make gpu-check` runs it."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adde.bundle import Bundle
from adde.serving.session import BUCKETS, Session

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def session(bundle):
    session = Session(bundle, "cuda")
    session.warm_up()
    return session


def test_it_runs_on_the_device_and_gives_the_golden_vectors(bundle, session):
    assert session.providers[0] == "CUDAExecutionProvider"
    golden = bundle.golden()
    embeddings, logits = session.encode(golden.images)
    np.testing.assert_allclose(embeddings, golden.embeddings, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-3, atol=1e-3)
    query = session.edit(embeddings, golden.indicator)
    np.testing.assert_allclose(query, golden.query, atol=1e-4)


def test_batches_of_all_sizes_from_several_threads_equal_the_cpu(bundle, session):
    images = np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    expected = Session(bundle).encode(images)[0]
    parts = [slice(at, at + size) for at in (0, 1, 7) for size in (*BUCKETS, 3, 33, 100)]
    with ThreadPoolExecutor(4) as pool:
        for part, (found, _) in zip(parts, pool.map(lambda p: session.encode(images[p]), parts)):
            np.testing.assert_allclose(found, expected[part], rtol=1e-3, atol=1e-3)


def test_batches_that_change_in_size_cost_little_more_than_those_that_do_not(session):
    """Convolutions plan anew at every change (onnxruntime 23006)."""
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
