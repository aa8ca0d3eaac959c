"""benchmarks/scaling.py: the model of a step on many ranks."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


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


def test_a_step_that_waits_for_its_loader_takes_as_long_as_that(scaling, work, machine):
    step = scaling.predict(dataclasses.replace(work, loading=0.25), machine, 4)
    assert step.total == pytest.approx(0.25)
    quick = scaling.predict(dataclasses.replace(work, loading=0.05), machine, 4)
    assert quick == scaling.predict(work, machine, 4)


# NVIDIA's own training in TF32 on one A100 80GB (DeepLearningExamples,
# PyTorch/Classification/ConvNets), whose figures for a GPU are 156 TFLOP/s and 2.04 TB/s.
@pytest.mark.parametrize(
    ("network", "side", "batch", "published"),
    [
        ("resnet50", 224, 256, 938),
        ("efficientnet_b0", 224, 256, 1078),
        ("efficientnet_b4", 380, 64, 157),
    ],
)
def test_kernels_take_what_others_measured(network, side, batch, published, scaling):
    assumed = scaling.tomllib.loads((FOLDER / "scaling.toml").read_text())["machine"]
    shares = {key: assumed[key] for key in ("utilisation", "memory_utilisation", "kernel")}
    gpu = scaling.Gpu(flops=156e12, memory=2.04e12, **shares)
    with torch.device("meta"):
        model, images = timm.create_model(network), torch.zeros(batch, 3, side, side)
    assert batch / scaling.step_seconds(model, images, gpu) == pytest.approx(published, rel=0.25)


@pytest.mark.parametrize("groups", [1, 6])
def test_operations_and_bytes_are_those_of_plain_counts(groups, scaling):
    with torch.device("meta"):
        layers = [torch.nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=False) for _ in "ab"]
        model, images = torch.nn.Sequential(*layers), torch.zeros(5, 6, 8, 8)
    picture, weight = 4 * 5 * 6 * 8 * 8, 4 * 6 * (6 // groups) * 9
    products = 2 * (picture // 4) * (6 // groups) * 9
    whole = {"utilisation": 1.0, "memory_utilisation": 1.0, "kernel": 0.0}
    slow = scaling.Gpu(flops=1.0, memory=1e30, **whole)
    # Outputs, the gradients of weights, and that of what lies between the layers.
    assert scaling.step_seconds(model, images, slow) == pytest.approx(5 * products)
    narrow = scaling.Gpu(flops=1e30, memory=1.0, **whole)
    forward, ones = 2 * (2 * picture + weight), 2 * picture
    backward = (3 * picture + 2 * weight) + (2 * picture + 2 * weight)
    step = scaling.step_seconds(model, images, narrow)
    assert step == pytest.approx(forward + ones + backward + 7 * 2 * weight)


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
        for strategy in ("fsdp2", "zero1", "zero2", "zero3"):
            assert figures[f"sent_mb_{name}_{strategy}"] == pytest.approx(1.5 * sent)


def test_predictions_are_made_anew_beside_what_was_measured(scaling, tmp_path):
    own, path = tmp_path / "own.toml", tmp_path / "scaling.json"
    text = (FOLDER / "scaling.toml").read_text()
    text = text[: text.index("[recipes.paper_resnet18]")]
    own.write_text(f"{text}\nseconds_per_item = 1e-3\n")
    before = {"efficiency_2_ranks": 0.5, "efficiency_photos_4_gpus": 1.0, "sent_mb_photos_ddp": 1.0}
    about = {"machine": "another", "versions": {"torch": "1.0"}}
    path.write_text(json.dumps({**before, **about}))
    scaling.scale(assumptions=own, json=path, only_model=True)
    found = json.loads(path.read_text())
    assert found["efficiency_2_ranks"] == 0.5
    assert found["compute_ms_photos"] == pytest.approx(512)
    assert found["sent_mb_photos_ddp"] > 50
    assert "efficiency_photos_4_gpus" not in found
    assert {key: found[key] for key in about} == about


def test_a_run_that_ends_before_enough_steps_is_no_endless_wait(scaling, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "lr": 0.5}\n' * 3)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    scaling._wait([ended], [tmp_path], 3, [])
    with pytest.raises(RuntimeError, match=r"expected 4 steps, found \[3\] and exit status 0"):
        scaling._wait([ended], [tmp_path], 4, ["--data.workers=1"])


def test_gloo_is_measured_at_a_free_port(scaling, monkeypatch):
    monkeypatch.setattr(scaling.mp, "spawn", lambda rank, given, nprocs: given[1].put(given[0]))
    with socket.socket() as taken:
        port = scaling.measure_gloo()
        taken.bind(("127.0.0.1", port))
        assert scaling.measure_gloo() != port
