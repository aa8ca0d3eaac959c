"""Ensembles: the models of several seeds, trained as one, are those of separate runs."""

import runpy
from pathlib import Path

import pytest
import torch

from adde.methods.vae.config import LOSSES, Discriminator, Relevance, VAEConfig
from adde.methods.vae.method import METHOD
from adde.shards.index import ShardIndex
from adde.study.ensemble import Ensemble
from adde.study.pictures import read_pictures
from adde.training.checkpoints.checkpoint import last_checkpoint
from adde.training.config import Data, Evaluation, Optimizer, Schedule
from adde.training.run import Run

ROOT = Path(__file__).parents[2]
STEPS, LATENTS = 5, 3


RATES = {"sgd": 1e-4, "adamw": 2e-4}
STRAYED = {"sgd": 0.0, "adamw": 0.01}
"""Share of weights that may differ by more: AdamW takes a full step where a gradient is nothing but
rounding."""


def config(shards, loss, optimizer="sgd", **settings):
    """A tiny VAE's, of 16 px; the tiny shards have 60 items to train on."""
    given = (1.0, 0.25, 0.0) if loss == "rf_vae_0" else ()
    return VAEConfig(
        method="vae",
        loss=loss,
        strength=5.0,
        latents=LATENTS,
        network="small",
        image_size=16,
        capacity_steps=4,
        capacity_weight=10.0,
        wandb="off",
        discriminator=Discriminator(layers=2, width=9, rate=0.5),
        relevance=Relevance(given=given, entropy=1.0, grow_until=0.8),
        schedule=Schedule(
            epochs=STEPS / 3, learning_rate=RATES[optimizer], kind="cosine", warmup=0.3
        ),
        data=Data(shards=str(shards), batch_size=20, workers=0),
        optimizer=Optimizer(name=optimizer, weight_decay=0.02),
        evaluation=Evaluation(rows=0),
        **settings,
    )


def ensemble(settings, seeds, steps=STEPS):
    index = ShardIndex.read(settings.data.shards)
    pictures = read_pictures(index, "train", settings.image_size, torch.device("cpu"))
    return Ensemble(settings, seeds, index, pictures, steps)


def weights(found, number=0):
    return {name: value.clone() for name, value in found.model(number).state_dict().items()}


def require_close(mine, theirs, tolerance, optimizer):
    assert set(mine) == set(theirs)
    apart = torch.cat([(value - theirs[name]).abs().flatten() for name, value in mine.items()])
    assert (apart > tolerance).float().mean() <= STRAYED[optimizer]
    assert apart.max() <= (tolerance if optimizer == "sgd" else STEPS * RATES[optimizer])


@pytest.mark.parametrize(
    ("loss", "optimizer"), [("factor_vae", "sgd"), ("factor_vae", "adamw"), ("rf_vae", "sgd")]
)
def test_a_unit_of_one_seed_is_the_run_of_the_trainer(tiny_shards, tmp_path, loss, optimizer):
    settings = config(tiny_shards, loss, optimizer, seed=3, run=tmp_path / "run")
    train_stage = runpy.run_path(str(ROOT / "train/main.py"))["train_stage"]
    with Run(METHOD, settings, resume=False) as run:
        for stage in METHOD.stages(settings):
            train_stage(run, stage)
        run.finish()
    checkpoint = last_checkpoint(settings.run)
    assert checkpoint.position.step == STEPS
    found = ensemble(settings, [3])
    before = weights(found)
    found.train(STEPS)
    require_close(weights(found), checkpoint.load("model"), 1e-5, optimizer)
    moved = {name: float((v - before[name]).abs().max()) for name, v in weights(found).items()}
    assert min(moved.values()) > 5e-6 and max(moved.values()) > 2e-4, moved


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [*((loss, "sgd") for loss in LOSSES), ("beta_vae", "adamw"), ("factor_vae", "adamw")],
)
def test_models_trained_as_one_are_those_trained_alone(tiny_shards, loss, optimizer):
    settings = config(tiny_shards, loss, optimizer)
    together = ensemble(settings, [1, 2])
    together.train(STEPS)
    for number, seed in enumerate([1, 2]):
        alone = ensemble(settings, [seed])
        alone.train(STEPS)
        require_close(weights(together, number), weights(alone), 1e-6, optimizer)
    apart = [weights(together, number)["encoder.1.weight"] for number in range(2)]
    assert (apart[0] - apart[1]).abs().max() > 0.01  # of other initial weights


def test_a_model_that_diverges_leaves_the_others_alone(tiny_shards):
    settings = config(tiny_shards, "factor_vae")
    together, alone = ensemble(settings, [1, 2]), ensemble(settings, [2])
    state = together.state()
    for value in state["parameters"].values():
        value[0] = torch.nan
    together.restore(state)
    together.train(STEPS)
    alone.train(STEPS)
    assert weights(together, 0)["encoder.1.weight"].isnan().all()
    require_close(weights(together, 1), weights(alone), 1e-6, "sgd")
