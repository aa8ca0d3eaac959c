"""A picture of which a VAE makes NaN: the step is void, and the picture named."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.methods.vae.objective import VAEObjective
from adde.training.bad_steps import BadSteps
from adde.training.strategies import DataParallel
from adde.training.terms import global_mean
from tests.methods.vae.vae_cases import config, draws, items, model


@pytest.fixture(autouse=True)
def no_accelerator_stays():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("loss", ["beta_tcvae", "factor_vae", "rf_vae"])
@pytest.mark.parametrize("place", [2, 13])  # in either half of the batch, of which one is permuted
def test_the_step_is_void_and_the_item_named(loss, place, tmp_path):
    settings = config(loss, run=tmp_path)
    vae, objective, stage = model(settings), VAEObjective(settings), settings.stage()
    images, labels = items(16)
    images[place] = 255

    def broken(module, inputs, output):
        white = inputs[0].flatten(1).min(1).values == 1
        return output.where(~white[:, None], torch.nan)

    vae.encoder.register_forward_hook(broken)
    strategy = DataParallel(Accelerator(cpu=True), vae, settings, stage.rates)
    bad = BadSteps(settings, objective, main=True)
    batch = Batch(images, labels, [f"item {number}" for number in range(16)])
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    strategy.begin_step(0.1)
    terms = objective.batch_terms(stage, strategy.model, batch, draws(), RankRows((16,)))
    loss_value, scalars, _ = global_mean(terms, stage.weights)
    strategy.backward(loss_value)
    bad.inspect(strategy, stage, scalars, batch, draws())
    bad.finish_step(strategy.step(), 1, None)
    assert bad.count == 1
    (line,) = map(json.loads, (tmp_path / "bad_steps.jsonl").read_text().splitlines())
    assert line["items"] == [f"item {place}"] and line["alone"]
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())
