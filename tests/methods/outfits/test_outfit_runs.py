"""An outfit head has what every run has; it is trained, resumed and evaluated on tiny garments."""

import json
import shutil

import numpy as np
import pytest

from adde.bundle import Bundle
from adde.errors import UserError
from adde.exporting.outfits import load_head
from adde.files import sha256_of_file
from adde.serving.onnx.session import Session
from adde.shards.benchmark_lists import write_benchmark
from adde.shards.catalogues.drawn.wardrobe_outfits import wardrobe_outfits
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.training.checkpoints.checkpoint import STATE_NAME, best_checkpoint, last_checkpoint
from adde.training.opening import load_model
from adde.training.watching.tracking import read_log
from tests.programs import finish, start
from tests.tiny_recipe import RECIPE

SETTINGS = """
method = "outfits"
wandb = "off"
encoder = "ENCODER"
schedule = {epochs = 4, learning_rate = 1e-2}
[data]
shards = "SHARDS"
batch_size = 32
workers = 0
[checkpoints]
every = 5
keep = 99
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, an ADDE run on them, and a recipe of a head."""
    folder = tmp_path_factory.mktemp("outfits")
    garments = wardrobe_outfits(500, 0, 32)
    pack(garments, folder / "shards", PackOptions(), engine("processes", 1))
    write_benchmark(folder / "shards", garments.benchmark, garments.schema)
    (folder / "adde.toml").write_text(RECIPE)
    words = ["--data.shards", folder / "shards", "--adde.schedule.epochs", 0]
    finish(
        start("train/main.py", "--recipe", folder / "adde.toml", "--run", folder / "adde", *words)
    )
    settings = SETTINGS.replace("SHARDS", str(folder / "shards"))
    (folder / "recipe.toml").write_text(settings.replace("ENCODER", str(folder / "adde")))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    finish(start("train/main.py", "--recipe", folder / "recipe.toml", "--run", folder / "run"))
    return folder / "run"


def figures(run, name):
    return [line[name] for line in read_log(run / "log.jsonl") if name in line]


def test_it_learns_from_cooccurrence_on(run):
    ranking = figures(run, "outfits/ranking")
    assert np.mean(ranking[-10:]) < np.mean(ranking[:10])
    # The first validation is of the table that was counted, before any step.
    assert read_log(run / "log.jsonl")[0]["step"] == 0
    assert all(0 <= value <= 1 for value in figures(run, "val/fitb"))
    assert figures(run, "outfits/questions") == [1.0] * len(ranking)
    assert best_checkpoint(run) is not None
    assert "Outfit head" in (run / "report.html").read_text()


def test_it_is_resumed_to_the_same_weights(folder, run):
    """From a copy of the run as it was after step 10."""
    again = folder / "again"
    shutil.copytree(run, again)
    for checkpoint in again.glob("checkpoints/step-*"):
        if checkpoint.name > "step-00000010":
            shutil.rmtree(checkpoint)
    for name in ("checkpoints/best.json", "finished.json"):
        (again / name).unlink()
    assert "resuming at step 10" in finish(start("train/main.py", "--resume", "--run", again))
    assert last_checkpoint(again).position.step == last_checkpoint(run).position.step == 48
    mine, theirs = (last_checkpoint(one).tensors("model") for one in (again, run))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].whole().equal(theirs[name].whole()) for name in mine)


@pytest.mark.slow
def test_the_papers_form_trains(folder):
    run = folder / "distance"
    words = [
        "--form",
        "distance",
        "--schedule.epochs",
        1,
        "--category-projections",
        "--loss",
        "min",
    ]
    finish(start("train/main.py", "--recipe", folder / "recipe.toml", "--run", run, *words))
    assert figures(run, "val/fitb") and all(np.isfinite(figures(run, "outfits/ranking")))
    _, _, encoder = load_model(folder / "adde")
    with pytest.raises(UserError, match=r"form 'bilinear'.*found 'distance'"):
        load_head(run, sha256_of_file(encoder.path / STATE_NAME))
    model, _, _ = load_model(run)
    assert model.projections.shape == (5, 3, 8, 32)


def test_it_is_evaluated_beside_the_oracle(folder, run):
    printed = finish(start("train/evaluate.py", "--run", run))
    found = json.loads((run / "outfits-test.json").read_text())
    assert list(found["scorers"]) == ["head", "pmi", "similar", "random", "oracle"]
    assert found["questions"]["fitb"] == len(
        json.loads((folder / "shards/outfits.json").read_text())["outfits"]["test"]
    )
    assert "oracle" in printed
    assert "co-occurrence (PMI)" in (run / "report.html").read_text()


def test_another_encoder_is_refused(folder, run):
    other = folder / "other"
    shutil.copytree(folder / "adde", other)
    best = best_checkpoint(other).path
    content = json.loads((best / "state.json").read_text())
    (best / "state.json").write_text(json.dumps(content, indent=7))
    text = (run / "config.toml").read_text()
    copy = folder / "copy"
    shutil.copytree(run, copy)
    (copy / "config.toml").write_text(text.replace(str(folder / "adde"), str(other)))
    for state in copy.glob("checkpoints/*/state.json"):
        state.write_text(state.read_text().replace(str(folder / "adde"), str(other)))
    printed = finish(start("train/evaluate.py", "--run", copy), status=1)
    assert "expected the checkpoint that the head was trained on, found another" in printed


def test_the_head_is_exported_with_its_encoder(folder, run):
    out = folder / "bundle"
    words = ["--run", folder / "adde", "--out", out, "--outfits", run]
    finish(start("export/to_onnx.py", *words))
    bundle, (head, _, _) = Bundle.read(out), load_model(run)
    assert bundle.details["outfits"]["category"] == "category"
    weights = bundle.details["source"]["weights"]
    assert bytes(head.encoder.tolist()).hex() == weights
    # What onnxruntime gives for one item is its row of the tables.
    outfit = np.zeros((1, 5, bundle.schema.num_values), np.float32)
    outfit[0, 2, 7] = 1
    queries = Session(bundle).complete(outfit)[0]
    np.testing.assert_allclose(queries, head.table[2, :, 7].detach().numpy(), atol=1e-5)
    assert "nothing to do" in finish(start("export/to_onnx.py", *words))
    with pytest.raises(UserError, match="found one of another"):
        load_head(run, "00" * 32)
    with pytest.raises(UserError, match="expected a run of the method 'outfits'"):
        load_head(folder / "adde", weights)


def test_shards_without_outfits_are_refused(folder):
    bare = folder / "bare"
    shutil.copytree(folder / "shards", bare)
    (bare / "outfits.json").unlink()
    words = ["--data.shards", bare, "--run", folder / "none"]
    printed = finish(start("train/main.py", "--recipe", folder / "recipe.toml", *words), status=1)
    assert "expected outfits.json beside the shards, found none" in printed
    assert ShardIndex.read(bare).count("train")
