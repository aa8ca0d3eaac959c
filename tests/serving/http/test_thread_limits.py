"""BLAS and OpenMP keep to the number of threads that the server allows."""

import pytest
from threadpoolctl import ThreadpoolController, threadpool_info

from adde.serving.http.health import limit_libraries

faiss = pytest.importorskip("faiss")


def blas_threads():
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_limit_libraries_lowers_blas_and_faiss_and_never_raises_them():
    with ThreadpoolController().limit(limits=3):
        for count, expected in ((9, 3), (2, 2), (1, 1), (2, 1)):
            limit_libraries(count)
            assert blas_threads() == {expected} and faiss.omp_get_max_threads() == expected
