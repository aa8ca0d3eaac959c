"""Libraries that would start a thread for every core of the machine."""

import pytest

from adde.serving.onnx.cores import _blas, blas_threads, limit_libraries

faiss = pytest.importorskip("faiss")


def put(blas, openmp):
    for function in _blas("set"):
        function(blas)
    faiss.omp_set_num_threads(openmp)


@pytest.fixture
def as_before():
    (before,), openmp = blas_threads(), faiss.omp_get_max_threads()
    yield
    put(before, openmp)


def test_blas_and_faiss_take_no_more_threads_than_are_said(as_before):
    put(3, 3)
    for count, expected in ((9, 3), (2, 2), (1, 1), (2, 1)):
        limit_libraries(count)
        assert blas_threads() == {expected} and faiss.omp_get_max_threads() == expected
