"""A decoder is trained on a tiny ADDE of rooms, watched, resumed, judged and refused."""

import json
import re
import runpy
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from adde.errors import UserError
from adde.exporting.drawing import load_decoder
from adde.files import read_json
from adde.methods.decoder import judge
from adde.methods.decoder.method import METHOD
from adde.shards.catalogues.drawn.rooms import rooms
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.training.checkpoints.checkpoint import best_checkpoint, last_checkpoint
from adde.training.method import find_method
from adde.training.opening import load_model
from adde.training.recipes import read_recipe
from adde.training.run import Run
from adde.training.watching.panels import NOT_SHOWN, PANELS
from adde.training.watching.tracking import read_log
from tests.programs import ROOT
from tests.tiny_recipe import RECIPE
from tests.training.test_method import figures

SETTINGS = """
method = "decoder"
run = "FOLDER/run"
encoder = "FOLDER/adde"
style = 4
width = 8
cycle = 100.0
seed = 3
wandb = "off"
schedule = {epochs = 4, learning_rate = 1e-2}
[data]
shards = "FOLDER/shards"
batch_size = 16
accumulation = 2
workers = 0
[optimizer]
ema = 0.9
[checkpoints]
every = 6
keep = 99
[evaluation]
rows = 2
every_epochs = 2
"""


def train(recipe, resume=False):
    """Run train/main.py in this process."""
    config = read_recipe(recipe)
    method = find_method(config.method)
    train_stage = runpy.run_path(str(ROOT / "train" / "main.py"))["train_stage"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Run(method, config, resume) as run:
            for stage in method.stages(config):
                train_stage(run, stage)
            run.finish()
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, a run of ADDE on them, and one of a decoder on it."""
    folder = tmp_path_factory.mktemp("decoder")
    pack(
        rooms(TableOptions(), 120, 0, 32), folder / "shards", PackOptions(), engine("processes", 1)
    )
    adde = f'run = "{folder}/adde"\n' + RECIPE.replace(
        "[data]", f'[data]\nshards = "{folder}/shards"'
    )
    (folder / "adde.toml").write_text(adde)
    train(folder / "adde.toml")
    (folder / "decoder.toml").write_text(SETTINGS.replace("FOLDER", str(folder)))
    train(folder / "decoder.toml")
    return folder


def test_it_trains_and_is_watched(folder):
    run = folder / "run"
    reconstruction = figures(run, "decoder/reconstruction")
    assert np.mean(reconstruction[-4:]) < 0.96 * np.mean(reconstruction[:4])
    assert figures(run, "decoder/edits") == [1.0] * len(reconstruction)
    assert all(0 < value < 1 for value in figures(run, "decoder/cycle"))
    assert len(figures(run, "val/psnr")) == 2
    assert best_checkpoint(run) is not None
    for line in read_log(run / "log.jsonl"):
        for key in line.keys() - {"step", "time", "alert"}:
            shown = any(panel.shows(key) for panel in (*METHOD.panels, *PANELS))
            assert shown or any(re.fullmatch(pattern, key) for pattern in NOT_SHOWN), key
    page = (run / "report.html").read_text()
    for shown in ("Decoder on a frozen encoder", "drawn as it is", "wall_hue: "):
        assert shown in page
    # The encoder stays out of the checkpoint, and as it was.
    assert not [name for name in last_checkpoint(run).tensors("model") if "backbone" in name]


@pytest.mark.slow
def test_a_flow_trains_and_draws(folder):
    """From the same recipe; an edit under the picture's own embedding gives the picture again."""
    recipe = (folder / "decoder.toml").read_text().replace(f"{folder}/run", f"{folder}/flow")
    settings = 'form = "flow"\nsteps = 4\n'
    (folder / "flow.toml").write_text(settings + recipe.replace("epochs = 4", "epochs = 1"))
    train(folder / "flow.toml")
    assert all(np.isfinite(figures(folder / "flow", "decoder/velocity")))
    assert figures(folder / "flow", "val/psnr")[-1] > 20
    with pytest.raises(UserError, match=r"form 'vae'.*found 'flow'"):
        load_decoder(folder / "flow", bytes(load_model(folder / "flow")[0].encoder.tolist()).hex())


def test_it_is_resumed_to_the_same_weights(folder):
    again = folder / "again"
    shutil.copytree(folder / "run", again)
    for checkpoint in again.glob("checkpoints/step-*"):
        if checkpoint.name > "step-00000012":
            shutil.rmtree(checkpoint)
    for name in ("checkpoints/best.json", "finished.json"):
        (again / name).unlink()
    recipe = (folder / "decoder.toml").read_text().replace(f"{folder}/run", str(again))
    (folder / "again.toml").write_text(recipe)
    train(folder / "again.toml", resume=True)
    mine, theirs = (last_checkpoint(folder / name) for name in ("again", "run"))
    assert mine.position == theirs.position
    for kind in ("model", "ema", "optimizer"):
        one, other = mine.tensors(kind), theirs.tensors(kind)
        assert one.keys() == other.keys() and one
        assert all(one[name].whole().equal(other[name].whole()) for name in one)


def test_an_independent_judge_sees_drawn_edits(folder, monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 3)
    program = runpy.run_path(str(ROOT / "train" / "evaluate.py"))
    run = folder / "run"
    program["evaluate"]((run,), split="val", queries=20)
    found = read_json(run / "drawing-val.json")
    one = found["edits"]["1"]
    assert one["queries"] == 20 and found["edits"]["2"]["queries"] == 20
    # No picture has both the old and the new value.
    assert one["unedited"]["wanted"] + one["true"]["wanted"] <= 1
    assert set(one["drawn"]) == {"wanted", "unchanged", "psnr", "ssim"}
    assert "psnr" not in one["true"]
    assert json.loads(json.dumps(found)) == found
    # It is trained once.
    monkeypatch.setattr(judge, "_train", None)
    program["evaluate"]((run,), split="val", queries=20)
    assert read_json(run / "drawing-val.json") == found


def test_another_encoder_is_refused(folder):
    weights = bytes(load_model(folder / "run")[0].encoder.tolist()).hex()
    assert load_decoder(folder / "run", weights).source["checkpoint"]
    with pytest.raises(UserError, match="found one of another"):
        load_decoder(folder / "run", "00" * 32)
    with pytest.raises(UserError, match="expected a run of the method 'decoder'"):
        load_decoder(folder / "adde", weights)


def test_settings_that_do_not_fit_are_refused(folder):
    recipe = (folder / "decoder.toml").read_text()
    for old, new, message in (
        ("width = 8", "shrink = 4", "multiple of 16, found 32 px of the encoder's pictures / 4"),
        ("/adde", "/run", "expected a run of the method 'adde', found .* one of 'decoder'"),
        ("/adde", "/none", "encoder: expected the folder of a run of 'adde', found none in"),
    ):
        (folder / "bad.toml").write_text(recipe.replace(old, new).replace('/run"', '/bad"', 1))
        with pytest.raises(UserError, match=message):
            train(folder / "bad.toml")
        AcceleratorState._reset_state(reset_partial_state=True)
