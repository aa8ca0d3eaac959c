"""The session on a CUDA device; `make gpu-check` runs it."""

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
