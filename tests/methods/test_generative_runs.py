"""Glow and DNA-GAN have all that a run has: watching, accumulation, exact resumption, ranks."""

import json
import runpy
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from adde.distributed import RankRows, world_size
from adde.loading.batch import Batch
from adde.methods.dna_gan.method import METHOD as DNA_GAN
from adde.methods.glow.config import GlowConfig
from adde.methods.glow.directions import read_directions
from adde.methods.glow.method import METHOD as GLOW
from adde.methods.glow.model import Glow
from adde.methods.glow.objective import GlowObjective
from adde.training.checkpoints.checkpoint import best_checkpoint
from adde.training.opening import load_model
from adde.training.strategies.batch_norm import synchronise
from adde.training.terms import global_mean
from tests.methods.dna_gan import dna_gan_cases
from tests.methods.ranks import on_ranks
from tests.methods.running import cut_off, figures, keys_without_a_panel, same_weights, train
from tests.programs import ROOT

SHARED = """
seed = 3
wandb = "off"
image_size = 16
schedule = {epochs = 2, learning_rate = 3e-3, kind = "constant", warmup = 0.0}
[data]
shards = "SHARDS"
batch_size = 12
accumulation = 2
workers = 0
[optimizer]
weight_decay = 0.0
ema = 0.9
[checkpoints]
every = 3
keep = 99
[evaluation]
rows = 3
"""
SETTINGS = {
    "glow": 'method = "glow"\nbits = 5\nlevels = 2\nsteps = 1\nwidth = 8\nstart_items = 40\n',
    "dna_gan": 'method = "dna_gan"\nwidth = 4\npiece = 3\nrest = 4\n'
    'recessive = {border = "plain"}\n',
}


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, tiny_shards, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp(request.param)
    content = SETTINGS[request.param] + SHARED.replace("SHARDS", str(tiny_shards))
    (folder / "recipe.toml").write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        train(patch, "--recipe", folder / "recipe.toml", "--run", folder / "run")
    return request.param, folder / "run"


def test_it_trains_and_is_watched(run, tiny_shards):
    name, folder = run
    method = {"glow": GLOW, "dna_gan": DNA_GAN}[name]
    assert not keys_without_a_panel(folder, method)
    page = (folder / "report.html").read_text()
    assert method.title in page
    model, _, checkpoint = load_model(folder)
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    if name == "glow":
        bits = figures(folder, "val/bits_per_dim")
        # Before the first step, then after each epoch.
        assert len(bits) == 3 and bits[2] < bits[1] < bits[0] < 6
        assert figures(folder, "glow/bits")[0] == pytest.approx(bits[0], abs=0.5)
        best = json.loads((folder / "checkpoints/best.json").read_text())
        assert best["log_likelihood"] == pytest.approx(-bits[2] * 768 * np.log(2))
        assert read_directions(checkpoint.path).shape == (7, 768)
        # Half of 12 channels, then all of 24.
        assert GLOW.codes(model, images)["codes"].shape == (2, 6 + 24)
        for shown in ("from latents", "temperature 0.7", "colour: red, green, blue"):
            assert shown in page
        # Ten items twice, ten samples four times, and one item with seven values.
        assert page.count("<i><img") == 2 * 10 + 4 * 10 + 7
    else:
        assert len(figures(folder, "val/exact")) == 2
        losses = figures(folder, "dna_gan/reconstruction")
        assert losses[-1] < losses[0]
        assert DNA_GAN.codes(model, images)["codes"].shape == (2, 3 * 3 + 4)
        assert "reconstructed" in page and "colour: red, green, blue" in page
        assert page.count("<i><img") == 3 * (1 + 7)


def test_a_resumed_run_ends_with_the_same_weights(run, tmp_path, monkeypatch, capsys):
    _, folder = run
    stopped = cut_off(folder, tmp_path / "stopped")
    train(monkeypatch, "--resume", "--run", stopped)
    assert "resuming at step 3" in capsys.readouterr().out
    same_weights(stopped, folder, "model", "ema", "optimizer")
    assert best_checkpoint(stopped).path.name == best_checkpoint(folder).path.name


def glow_step(counts, rank):
    """Weights after the start, scalars and gradients of a Glow."""
    torch.manual_seed(0)
    settings = GlowConfig(image_size=8, levels=2, steps=2, width=6)
    glow, ranks = Glow(settings), RankRows(counts)
    images = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    glow.flow.start(glow.scaled(ranks.local(images)))
    started = [p.detach().numpy().copy() for p in glow.parameters()]
    wrapped = nn.parallel.DistributedDataParallel(glow) if world_size() > 1 else glow
    objective, stage = GlowObjective(settings), settings.stage()
    batch = Batch(ranks.local(images), torch.zeros(counts[rank], 2, dtype=torch.int64), [])
    draws = torch.Generator().manual_seed(3)
    terms = objective.batch_terms(stage, wrapped, batch, draws, ranks)
    loss, scalars, _ = global_mean(terms, stage.weights)
    loss.backward()
    return scalars, [*started, *(p.grad.numpy() for p in glow.parameters())]


def dna_gan_step(counts, rank, gan):
    """Scalars, gradients and running statistics of a DNA-GAN."""
    settings = dna_gan_cases.config(gan, batch_norm="sync")
    model = dna_gan_cases.model(settings)
    synchronise(model, settings, torch.device("cpu"))
    wrapped = nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model
    loss, scalars = dna_gan_cases.one_step(settings, wrapped, RankRows(counts))
    loss.backward()
    statistics = [b.float().numpy() for b in model.buffers()]
    return scalars, [*(p.grad.numpy() for p in model.parameters()), *statistics]


def steps_of(counts, rank):
    return {
        "glow": glow_step(counts["glow"], rank),
        "hinge": dna_gan_step(counts["dna_gan"], rank, "hinge"),
        "published": dna_gan_step(counts["dna_gan"], rank, "published"),
    }


class Counts(dict):
    """Rows of each rank, by method; as many ranks as any has."""

    def __len__(self):
        return len(self["glow"])


@pytest.fixture(scope="module")
def two():
    return on_ranks(steps_of, Counts(glow=(11, 5), dna_gan=(5, 7)))


@pytest.mark.parametrize("name", ["glow", "hinge", "published"])
def test_two_ranks_start_and_train_as_one(name, two):
    expected, wanted = steps_of({"glow": (16,), "dna_gan": (12,)}, 0)[name]
    scalars, found = two[name]
    assert scalars == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted):
        assert abs(mine - other).max() <= 2e-5 * abs(other).max() + 1e-7


@pytest.mark.slow  # tracing both graphs takes seconds
def test_a_glow_is_exported_with_its_inverse(run, tmp_path, monkeypatch, capsys):
    name, folder = run
    words = ["flow.py", "--run", str(folder), "--out", str(tmp_path / "flow")]
    monkeypatch.setattr(sys, "argv", words)
    if name != "glow":
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "export/flow.py"), run_name="__main__")
        assert (
            "expected a run of the method 'glow', found one of 'dna_gan'" in capsys.readouterr().err
        )
        return
    runpy.run_path(str(ROOT / "export/flow.py"), run_name="__main__")
    model, _, checkpoint = load_model(folder)
    latents = np.random.default_rng(0).normal(0, 0.5, (3, 768)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "flow/decode.onnx")
    (found,) = session.run(None, {"latents": latents})
    with torch.no_grad():
        expected = 255 * model.decode(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    # A colour at the edge of its bin may fall to either side.
    assert (found == expected.round()).mean() > 0.999
    directions = np.load(tmp_path / "flow/directions.npy")
    np.testing.assert_array_equal(directions, read_directions(checkpoint.path))
    details = json.loads((tmp_path / "flow/flow.json").read_text())
    assert details["levels"] == [[6, 8, 8], [24, 4, 4]] and details["bits"] == 5
