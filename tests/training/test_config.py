"""Recipes and overrides: values, and messages about wrong ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adde.errors import UserError
from adde.methods.adde.config import AddeConfig as Config
from adde.methods.adde.method import METHOD
from adde.training import startup
from adde.training.config import Optimizer
from adde.training.method import find_method
from adde.training.recipes import (
    config_of_run,
    first_difference,
    parse,
    read_recipe,
    write_config,
)
from adde.training.startup import choose_precision

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.toml"))


def recipe(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_survives_being_written(path, tmp_path):
    config = read_recipe(path)
    write_config(config, tmp_path)
    assert read_recipe(tmp_path / "config.toml") == config


def test_the_command_line_goes_over_the_recipe(tmp_path):
    path = recipe(tmp_path, "margin = 0.7\n[data]\nbatch_size = 32\n")
    words = ["--recipe", str(path), "--data.batch-size", "48", "--run", str(tmp_path), "--resume"]
    method, config, resume = parse(words)
    assert method is METHOD
    assert (config.margin, config.data.batch_size, config.run) == (0.7, 48, tmp_path)
    assert resume


def test_resuming_takes_the_runs_own_configuration(tmp_path):
    write_config(Config(margin=0.123), tmp_path)
    _, config, _ = parse(["--resume", "--run", str(tmp_path)])
    assert config.margin == 0.123


def test_a_run_of_before_crops_and_a_new_recipe_pads(tmp_path):
    assert read_recipe(recipe(tmp_path, "[model]\nwidth = 8\n")).model.fit == "pad"
    assert Config().model.fit == "pad"
    write_config(Config(), tmp_path)
    content = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(content.replace('fit = "pad"\n', ""))
    _, resumed, _ = parse(["--resume", "--run", str(tmp_path)])
    assert resumed.model.fit == "crop"
    state = Config().to_json()
    del state["model"]["fit"]
    assert config_of_run(METHOD, state).model.fit == "crop"
    assert config_of_run(METHOD, Config().to_json()) == Config()


def test_averages_of_a_run_of_before_have_no_warm_up(tmp_path):
    assert read_recipe(recipe(tmp_path, "[optimizer]\nema = 0.9\n")).optimizer.ema_warmup
    for method in (METHOD, find_method("vae")):
        state = method.Config().to_json()
        del state["optimizer"]["ema_warmup"]
        assert not config_of_run(method, state).optimizer.ema_warmup
        assert config_of_run(method, method.Config().to_json()) == method.Config()


def test_an_automatic_precision_is_the_devices_and_then_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "on_gpus", lambda: True)
    config = Config(run=tmp_path)
    assert config.precision == "auto"
    for bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bf16=bf16, **_: bf16)
        chosen = choose_precision(config, resume=True)
        assert chosen == replace(config, precision="bf16" if bf16 else "fp32")
    monkeypatch.setattr(startup, "on_gpus", lambda: False)
    assert choose_precision(config, resume=False).precision == "fp32"
    write_config(replace(config, precision="tf32"), tmp_path)
    assert choose_precision(config, resume=True).precision == "tf32"
    assert choose_precision(config, resume=False).precision == "fp32"
    assert choose_precision(replace(config, precision="bf16"), resume=True).precision == "bf16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nfit = 'stretch'\n", r"model.fit: .*found 'stretch'"),
        ("[data]\nbatchsize = 3\n", r"unknown key 'data.batchsize'; did you mean 'batch_size'"),
        ("[data]\nbatch_size = 'many'\n", r"data.batch_size: .*found 'many'"),
        ("[encoder.schedule]\nkind = 'linear'\n", r"encoder.schedule.kind: .*found 'linear'"),
        ("[model]\nwidth = 0\n", r"model: .*width: expected >= 1, found 0"),
        ("[optimizer]\nlayer_decay = 0\n", r"optimizer: .*layer_decay: expected above 0.*found 0"),
        ("[optimizer]\nfrozen = {backbone = -1}\n", r"frozen.backbone: expected >= 0, found -1"),
        ("[augmentation]\njpeg = 101\n", r"augmentation: .*jpeg: expected 1 to 100, found 101"),
        ("margin = \n", r"expected TOML"),
        ("method = 'ade'\n", r"method: expected a method.*found 'ade'; did you mean 'adde'"),
        ("method = 'my.own'\n", r"method: expected a method.*found 'my.own'; valid: 'adde'"),
        ("method = 'adde.errors'\n", r"module with METHOD, found 'adde.errors'"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_recipe(recipe(tmp_path, text))


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.toml: no such file"):
        parse(["--recipe", str(tmp_path / "none.toml")])


def test_differences_that_do_not_train_do_not_count():
    mine, theirs = Config(wandb="off").to_json(), Config(run=Path("b")).to_json()
    assert first_difference(mine, theirs) is None
    assert first_difference(Config(seed=1).to_json(), theirs) == "seed: 1 and 0"
    frozen = Config(optimizer=Optimizer(frozen={"heads": 1.0})).to_json()
    assert first_difference(frozen, theirs) == "optimizer.frozen.heads: 1.0 and None"
    assert first_difference(theirs, frozen) == "optimizer.frozen.heads: None and 1.0"
