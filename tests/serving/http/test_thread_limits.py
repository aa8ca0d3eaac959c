"""BLAS and OpenMP keep to the number of threads that the server allows."""

import subprocess
import sys

import pytest

PROGRAM = """
import faiss
from threadpoolctl import ThreadpoolController, threadpool_info
from adde.serving.http.health import limit_libraries

ThreadpoolController().limit(limits=3)
for count in (9, 2, 1, 2):
    limit_libraries(count)
    numbers = {library["num_threads"] for library in threadpool_info()}
    print(count, *numbers, faiss.omp_get_max_threads())
"""


def test_limit_libraries_lowers_blas_and_faiss_and_never_raises_them():
    pytest.importorskip("faiss")
    command = [sys.executable, "-c", PROGRAM]  # other libraries of this process have own limits
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["9 3 3", "2 2 2", "1 1 1", "2 1 1"]
