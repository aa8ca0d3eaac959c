"""A few damaged files of every kind; `python tests/fuzz/decoders.py` tries more."""

import pytest
from decoders import TARGETS, run

WHOLE = sorted(set(TARGETS) - {"weights"})  # a part of a network's is small, and refused
FEW = {"onnx": 15, "index": 15, "tar": 15, "arrow": 25, "features": 25, "weights": 8}


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_damaged_is_read_or_refused(kind):
    found = run(kind, 0, FEW.get(kind, 60), 60)
    assert set(found) <= {"read", "refused"}
    assert found["refused"]


@pytest.mark.parametrize(("kind", "number"), [("arrow", 432), ("arrow", 718), ("index", 38824)])
def test_what_was_found_once_is_refused(kind, number):
    assert run(kind, number, 1, 60) == {"refused": 1}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_whole_is_read(kind, tmp_path):
    """Otherwise the fuzzer would mutate files that are always refused."""
    samples, name, read = TARGETS[kind]
    for number, content in enumerate(samples()):
        path = tmp_path / f"{number}{name}"
        path.write_bytes(content)
        read(path)
