"""Libraries that would start a thread for every core of the machine."""

import pytest

from adde.serving.cores import blas_threads, limit_libraries

faiss = pytest.importorskip("faiss")


@pytest.fixture
def as_before():
    (before,), openmp = blas_threads(), faiss.omp_get_max_threads()
    yield before
    limit_libraries(before)
    faiss.omp_set_num_threads(openmp)


def test_blas_and_faiss_are_told(as_before):
    for count in (3, 1, 2):
        limit_libraries(count)
        assert blas_threads() == {count} and faiss.omp_get_max_threads() == count
