"""Runs of several methods, and codes of somebody else, scored in one table."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adde.disentanglement import code, probe, score
from adde.exporting.export import export_bundle
from adde.files import this_process
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.method import METHOD as ADDE
from adde.methods.vae.config import VAEConfig
from adde.methods.vae.method import METHOD as VAE
from adde.model import ModelSettings
from adde.preprocess import Preprocess
from adde.scoring import Calibration
from adde.shards.catalogues.drawn.rooms import SCHEMA, rooms
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import ShardReader
from adde.training.checkpoints.checkpoint import Position
from adde.training.checkpoints.flat_shards import partition_replicated
from adde.training.checkpoints.saving import Saver
from adde.training.config import Data
from adde.training.opening import load_model
from adde.training.recipes import write_config

ROOT = Path(__file__).parents[2]
HELD_OUT = ("object_hue", "shape")


def save_run(method, config, index):
    """A run folder with an untrained model as its best checkpoint."""
    torch.manual_seed(0)
    model = method.build(config, index.schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    write_config(config, config.run)
    saver = Saver(config, index, this_process())
    pieces = partition_replicated(
        {f"model/{name}": value for name, value in model.state_dict().items()}
    )
    saver.save(Position(method.stages(config)[0].name, 1, 1), lambda: pieces, best={"any": 1.0})
    saver.wait()
    saver.close()
    return model.eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    options = TableOptions(test_share=0.3, hold_out=HELD_OUT)
    pack(rooms(options, 1200, 0, 16), folder / "shards", PackOptions(), engine("processes", 1))
    return folder


@pytest.fixture(scope="module")
def runs(home):
    index, data = ShardIndex.read(home / "shards"), Data(shards=str(home / "shards"), workers=0)
    vae = VAEConfig(run=home / "vae", method="vae", network="small", image_size=16, data=data)
    settings = ModelSettings(backbone="test_resnet", image_size=16, width=3, hidden=4)
    adde = AddeConfig(run=home / "adde", model=settings, data=data)
    return {"vae": save_run(VAE, vae, index), "adde": save_run(ADDE, adde, index)}


def evaluate(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--disentanglement", *map(str, words)])
    runpy.run_path(str(ROOT / "train/evaluate.py"), run_name="__main__")


def stored(home, split):
    """Pictures and labels of a split, one after the other."""
    index = ShardIndex.read(home / "shards")
    reader = ShardReader(index)
    samples = [reader.read(s, p) for s in index.split(split) for p in range(s.samples)]
    reader.close()
    return [sample.picture for sample in samples], np.stack([s.labels for s in samples])


def test_runs_and_codes_stand_in_one_table(monkeypatch, capsys, home, runs):
    pictures, labels = stored(home, "test")
    codes = np.random.default_rng(0).normal(labels, 0.01)
    np.savez(home / "theirs.npz", codes=codes, labels=labels)
    evaluate(monkeypatch, "--run", home / "vae", home / "adde", "--codes", home / "theirs.npz")
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if "theirs" in line)
    assert first.split() == ["vae", "adde", "theirs"]
    for words in (
        "vae: taught by pictures alone, no labels",
        "adde: taught by the labels that are scored here",
        "what these codes were taught by, and which items the encoder has seen, is not known",
        f"{len(labels)} items of the test split of rooms, which training has not seen",
        "held out: pairs of values that no training item has, of object_hue with shape (100%",
    ):
        assert words in printed, words
    assert printed.count("object_hue with shape") == 2  # of each run
    # By hand: decode, encode, score.
    batch = torch.from_numpy(np.stack([Preprocess(16).load(picture) for picture in pictures]))
    with torch.no_grad():
        mean, spread = runs["vae"].encode(batch)
        embeddings = runs["adde"].encode(batch).embeddings
    names = ShardIndex.read(home / "shards").schema.names
    noise = np.random.default_rng(0).standard_normal(mean.shape)
    drawn = mean.numpy() + np.exp(spread.numpy() / 2) * noise
    blocks = np.repeat(names, 3)
    wanted = {
        "vae": score(code(mean.numpy(), labels, names), sampled=drawn),
        "adde": score(code(embeddings.flatten(1).numpy(), labels, names, blocks)),
    }
    for name, scores in wanted.items():
        content = json.loads((home / name / "disentanglement.json").read_text())
        assert content["split"] == "test" and content["checkpoint"] == "step-00000001"
        assert content["figures"] == pytest.approx(dict(scores.figures), abs=0.02)
        assert set(content["leakage"]) == set(scores.blocks)
        page = (home / name / "report.html").read_text()
        for shown in ("Which block tells which factor, test split", "FactorVAE score", "chance"):
            assert shown in page
    assert set(wanted["adde"].blocks) == set(names)


def columns(printed):
    """The figures of the table that was printed, and its heads."""
    head, *lines = printed.splitlines()
    rows = [line.split() for line in lines[: lines.index("")]]
    return head.split(), {name: [*map(float, cells)] for name, *cells in rows}


def test_a_model_before_training_stands_beside_its_run(monkeypatch, capsys, home, runs):
    evaluate(monkeypatch, "--run", home / "adde", "--untrained")
    printed = capsys.readouterr().out
    head, table = columns(printed)
    assert head == ["adde", "adde", "untrained"]
    assert "adde: its weights before the first step" in printed
    pictures, labels = stored(home, "test")
    batch = torch.from_numpy(np.stack([Preprocess(16).load(picture) for picture in pictures]))
    _, config, _ = load_model(home / "adde")
    index = ShardIndex.read(home / "shards")
    torch.manual_seed(config.seed)
    with torch.no_grad():
        embeddings = ADDE.build(config, index.schema).eval().encode(batch).embeddings
    names = index.schema.names
    wanted = probe(code(embeddings.flatten(1).numpy(), labels, names, np.repeat(names, 3)))
    trained, untrained = table["mig_v"]
    assert wanted.figures()["mig_v"] == pytest.approx(untrained, abs=0.01)
    assert abs(trained - untrained) > 1e-3
    # The scores of the untrained model are not taken for those of the run.
    content = json.loads((home / "adde" / "disentanglement.json").read_text())
    assert content["figures"]["mig_v"] == pytest.approx(trained, abs=1e-3)


@pytest.mark.slow
def test_a_bundle_scores_as_the_run_it_came_from(monkeypatch, capsys, home, runs):
    retrieval, count = {"split": "test", "adde": {"hit@1": 0.5}}, len(SCHEMA.names)
    calibration = Calibration((1.0,) * count, (1.0,) * count, 0.01, 2.0)
    index = ShardIndex.read(home / "shards")
    folder = home / "bundle"
    export_bundle(runs["adde"], index, folder, retrieval, {"run": "adde"}, calibration)
    capsys.readouterr()
    words = ("--run", home / "adde", "--bundle", folder, "--shards", home / "shards")
    evaluate(monkeypatch, *words)
    printed = capsys.readouterr().out
    head, table = columns(printed)
    assert head == ["adde", "bundle"]
    for name, (run, bundle) in table.items():
        assert bundle == pytest.approx(run, abs=0.02), name
    assert "a bundle of ADDE: taught by labels of these attributes" in printed
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, "--bundle", folder)
    assert "expected --shards with the pictures for a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bundle", "exported"), "expected a bundle with bundle.json, found none"),
        ((), "expected --run with the folder of a run, found none"),
        (("--run", "vae", "other/vae"), "expected encoders of different names, found vae, vae"),
        (("--run", "nothing"), "expected a run folder with config.toml, found none"),
        (("--run", "plain"), "Autoencoder: expected a method that gives codes, found one without"),
        (("--codes", "none.npz"), "expected an .npz of codes and labels, found no file"),
    ],
)
def test_what_cannot_be_scored_is_refused(monkeypatch, capsys, home, runs, words, message):
    from tests.autoencoder import METHOD, AutoencoderConfig

    if "plain" in words and not (home / "plain").exists():
        data = Data(shards=str(home / "shards"), workers=0)
        plain = AutoencoderConfig(run=home / "plain", method="tests.autoencoder", data=data)
        save_run(METHOD, plain, ShardIndex.read(home / "shards"))
    paths = [word if word.startswith("--") else home / word for word in words]
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, *paths)
    assert message in capsys.readouterr().err


def test_edits_are_not_asked_of_a_vae(monkeypatch, capsys, home, runs):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(home / "vae")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "train/evaluate.py"), run_name="__main__")
    assert "train/evaluate.py --disentanglement scores the codes of any" in capsys.readouterr().err
