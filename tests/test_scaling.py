"""benchmarks/scaling.py: the model of a step on many ranks."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("scaling", FOLDER / "scaling.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["scaling"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("scaling", None)


@pytest.fixture
def work(scaling):
    return scaling.Work(
        items=100, weights=10**6, width=100, attributes=4, compute=0.1, backward=0.5, mining=0.0
    )


@pytest.fixture
def machine(scaling):
    """No latency, no jitter, nothing overlapped: what is left can be worked out by hand."""
    return scaling.Machine(8, 1e9, 1e8, 0.0, 0.0, overlap=0.0, jitter=0.0)


def test_a_step_is_what_its_bytes_take(scaling, work, machine):
    step = scaling.predict(work, machine, 4)
    assert step.gradients == pytest.approx(0.75 * 8 * 10**6 / 1e9)
    gathered = 400 * (2 * 4 * 100 + 8 * 4)
    assert step.gather == pytest.approx(0.75 * gathered / 1e9)
    assert (step.compute, step.mining) == (0.1, 0)
    assert step.stragglers == pytest.approx(0, abs=1e-12)
    assert scaling.predict(work, machine, 4, scaling.SENT["fsdp2"]).gradients == pytest.approx(
        1.5 * step.gradients
    )
    # Beyond a node the slower link counts.
    far = scaling.predict(work, machine, 16)
    assert far.gradients == pytest.approx(15 / 16 * 8 * 10**6 / 1e8)


def test_gradients_under_the_backward_pass_cost_nothing(scaling, work, machine):
    hidden = dataclasses.replace(machine, overlap=1.0)
    assert scaling.predict(work, hidden, 4).gradients == 0


def test_efficiency_falls_with_ranks_and_with_jitter(scaling, work, machine):
    sizes = [1, 2, 8, 64, 1024]
    even = [scaling.efficiency(work, machine, n) for n in sizes]
    assert even[0] == 1
    assert even == sorted(even, reverse=True)
    late = dataclasses.replace(machine, jitter=0.1)
    assert scaling.efficiency(work, late, 64) < even[3]


def test_the_limit_is_where_the_gather_takes_as_long_as_the_rest(scaling, work, machine):
    mined = dataclasses.replace(work, mining=1e-6)
    gather, mining = scaling.limits(mined, machine)
    for place, ranks in (("gather", gather), ("mining", mining)):
        assert getattr(scaling.predict(mined, machine, int(ranks)), place) > mined.compute
        assert getattr(scaling.predict(mined, machine, int(ranks) // 2), place) <= mined.compute


def test_every_recipe_that_is_assumed_has_its_predictions(scaling):
    machine, works = scaling.assumed(FOLDER / "scaling.toml")
    figures = scaling.modelled(machine, works)
    assert len(works) == 3
    for name in works:
        few, many = (figures[f"efficiency_{name}_{ranks}_gpus"] for ranks in (8, 1024))
        assert 0 < many < few < 1
        sent = figures[f"sent_mb_{name}_ddp"]
        assert figures[f"sent_mb_{name}_fsdp2"] == pytest.approx(1.5 * sent)
