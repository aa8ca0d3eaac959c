"""A study in its folder: units, their resumption, results in long form and the page."""

import json
import pickle
import re
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch

from adde.disentanglement import code, score
from adde.shards.catalogues.drawn.rooms import rooms
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.study import run as module_run
from adde.study import units as module
from adde.study.ensemble import Ensemble
from adde.study.pictures import read_pictures
from adde.study.results import models_of, read_rows
from adde.study.settings import read_study
from adde.study.units import UnitRunner, unit_path

ROOT = Path(__file__).parents[2]
STUDY = """
name = "tiny"
seeds = 2
seeds_per_unit = 1
steps = 8
checkpoint_steps = 3
[settings]
network = "small"
image_size = 16
latents = 3
discriminator = {layers = 1, width = 9}
data = {batch_size = 16}
schedule = {learning_rate = 1e-3, kind = "constant", warmup = 0.0}
[[sets]]
name = "rooms"
shards = "SHARDS"
[[methods]]
name = "beta_vae"
strengths = [2.0]
[[methods]]
name = "factor_vae"
strengths = [5.0]
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "shards"
    options = TableOptions(test_share=0.4)
    pack(rooms(options, 500, 0, 16), folder, PackOptions(), engine("processes", 1))
    return folder


@pytest.fixture
def toml(shards, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace("SHARDS", str(shards)))
    return path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words)])
    runpy.run_path(str(ROOT / "train/study.py"), run_name="__main__")


def test_a_study_from_its_file_to_its_page(monkeypatch, capsys, toml, shards, tmp_path):
    supervised = tmp_path / "adde"
    supervised.mkdir()
    content = {"split": "test", "figures": {"mig_v": 0.75, "dci_lgbm_disentanglement": 0.9}}
    (supervised / "disentanglement.json").write_text(json.dumps(content))
    with toml.open("a") as file:
        runs = [str(supervised), str(tmp_path / "none")]
        file.write(f'[[supervised]]\nname = "ADDE"\nset = "rooms"\nruns = {json.dumps(runs)}\n')
    out = tmp_path / "out"
    words = ("--study", toml, "--out", out, "--workers", "1")
    run(monkeypatch, *words)
    printed = capsys.readouterr().out
    assert len(re.findall(r"seeds . to .: \d+ s, of them \d+ s training", printed)) == 4
    missing = f"1 of 2 runs have no scores, such as {tmp_path / 'none' / 'disentanglement.json'}"
    assert missing in printed
    table = pyarrow.parquet.read_table(out / "results.parquet")
    assert table.column_names == [
        *("study", "set", "method", "hp", "seed", "steps", "representation", "metric"),
        *("factor", "value", "versions"),
    ]
    rows = read_rows(out / "results.parquet")
    models = models_of(rows, "rooms")
    assert sorted(zip(models.method, models.seed)) == [
        ("ADDE", 0),
        *((method, seed) for method in ("beta_vae", "factor_vae") for seed in range(2)),
    ]
    assert models.scores["mig_v"][list(models.method).index("ADDE")] == 0.75
    # By hand: the model of seed 1, trained alone and scored.
    study = read_study(toml)
    index = ShardIndex.read(shards)
    device = torch.device("cpu")
    unit = study.units[1]
    assert (unit.config.loss, unit.seeds) == ("beta_vae", (1,))
    alone = Ensemble(unit.config, (1,), index, read_pictures(index, "train", 16, device), 8)
    alone.train(8)
    test = read_pictures(index, "test", 16, device)
    with torch.no_grad():
        mean, spread = alone.model(0).encode(test.images)
    noise = np.random.default_rng(0).standard_normal(mean.shape)
    drawn = mean.numpy() + np.exp(spread.numpy() / 2) * noise
    wanted = score(code(mean.numpy(), test.labels, index.schema.names), sampled=drawn)
    mine = [row for row in rows if (row.method, row.seed) == ("beta_vae", 1)]
    found = {(row.metric, row.representation): row.value for row in mine if not row.factor}
    for name, value in wanted.figures.items():
        metric, _, end = name.rpartition("_")
        key = (metric, end) if end in ("mean", "sampled") else (name, "mean")
        assert found[key] == pytest.approx(value, abs=0.02), name
    assert {"elbo", "kl", "active"} <= {metric for metric, _ in found}
    factors = [row.factor for row in mine if row.metric == "best_block_accuracy"]
    assert factors == list(index.schema.names)
    page = (out / "study.html").read_text()
    for shown in (
        "R² of method and strength",
        "4 models on rooms",
        "DCI-D",
        "ADDE",
        missing,
    ):
        assert shown in page
    # Again: nothing is trained, and results and page are written anew.
    stamps = {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()}
    assert len(stamps) == 4
    (out / "results.parquet").unlink()
    run(monkeypatch, *words)
    assert {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()} == stamps
    assert (out / "results.parquet").exists()


def digest(self, unit, seed, model, index, scored):
    """Instead of scores, which take a second: the weights."""
    row = module.Row(study="", set="", method="", hp=0.0, seed=seed, steps=unit.steps)
    return [row.of(name, float(v.double().sum())) for name, v in model.state_dict().items()]


def test_a_killed_unit_continues_to_the_same_weights(monkeypatch, toml, tmp_path):
    monkeypatch.setattr(UnitRunner, "_score", digest)
    toml.write_text(toml.read_text().replace("unit = 1", "unit = 2"))
    unit = read_study(toml).units[1]
    assert (unit.config.loss, unit.seeds) == ("factor_vae", (0, 1))
    # Killed while the second model trains, and while both do.
    for ensemble, steps in ((1, 14), (2, 6)):
        whole, cut = tmp_path / f"whole-{ensemble}", tmp_path / f"cut-{ensemble}"
        UnitRunner(whole, 3, ensemble)((0, unit))
        train, trained = Ensemble.train, []

        def killed(self, steps, most=steps, train=train, trained=trained):
            if sum(trained) >= most:
                raise KeyboardInterrupt
            trained.append(steps)
            train(self, steps)

        with monkeypatch.context() as patch:
            patch.setattr(Ensemble, "train", killed)
            with pytest.raises(KeyboardInterrupt):
                UnitRunner(cut, 3, ensemble)((0, unit))
        assert [path.suffix for path in (cut / "units").iterdir()] == [".pt"]
        again = []

        def counted(self, steps, train=train, again=again):
            again.append(steps)
            train(self, steps)

        with monkeypatch.context() as patch:
            patch.setattr(Ensemble, "train", counted)
            # A resumed unit keeps the number of models that it trains as one.
            UnitRunner(cut, 3, None)((0, unit))
        assert sum(trained) + sum(again) == 8 * 2 // ensemble
        assert read_rows(unit_path(cut, unit)) == read_rows(unit_path(whole, unit))
        assert [path.suffix for path in (cut / "units").iterdir()] == [".parquet"]


def test_the_fastest_number_of_models_is_chosen(monkeypatch, toml, tmp_path):
    monkeypatch.setattr(UnitRunner, "_score", digest)
    text = toml.read_text().replace("seeds = 2", "seeds = 9").replace("unit = 1", "unit = 9")
    toml.write_text(text.replace("steps = 8", "steps = 1"))
    unit = read_study(toml).units[0]
    for best in (1, 8, 9):
        monkeypatch.setattr(module, "_fastest_sizes", {})
        timed = []

        def speed(unit, seeds, index, pictures, best=best, timed=timed):
            timed.append(len(seeds))
            return 2.0 if len(seeds) == best else 1.0

        monkeypatch.setattr(module, "models_per_second", speed)
        done = UnitRunner(tmp_path / str(best), 100)((0, unit))
        assert timed == [1, 8, 9]
        assert f"training {best} at a time" in done


def test_codes_that_say_nothing_are_no_scores(monkeypatch, capsys, toml, tmp_path):
    train = Ensemble.train

    def spoil(self, steps):
        train(self, steps)
        for name, value in self._parameters.items():
            if name.startswith("encoder"):
                value.data[0].zero_()

    monkeypatch.setattr(Ensemble, "train", spoil)
    toml.write_text(toml.read_text().replace("unit = 1", "unit = 2"))
    unit = read_study(toml).units[0]
    UnitRunner(tmp_path, 100, 2)((0, unit))
    assert "codes of seed 0 are constant or no numbers: no scores" in capsys.readouterr().out
    rows = read_rows(unit_path(tmp_path, unit))
    assert [row.metric for row in rows if row.seed == 0] == ["failed"]
    found = models_of(rows, "rooms")
    assert (found.seed, found.failed) == ((1,), 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"factor_vae"', '"factorvae"', "methods.1.name: expected a loss of the VAE family, found "
         "'factorvae'; did you mean 'factor_vae'"),
        ("steps = 8", "step = 8", "unknown key 'step'; did you mean 'steps'"),
        ("strengths = [2.0]", "strength = [2.0]", "unknown key 'methods.0.strength'"),
        ("strengths = [2.0]", "strengths = []", "methods.0.strengths"),
        ("latents = 3", "latent = 3", "unknown key 'latent'; did you mean 'latents'"),
        ("latents = 3", "seed = 3", "settings.seed: expected it in the study alone, found 3"),
        ("latents = 3", "optimizer = {ema = 0.9}", "settings.optimizer.ema: expected 0.0"),
        ("latents = 3", "optimizer.frozen = {encoder = 1}", "settings.optimizer.frozen: expected"),
        ("size = 16}", 'size = 16, balance = "shape"}', "settings.data.balance: expected ''"),
        ("latents = 3", "compile = true", "settings.compile: expected False"),
        ("latents = 3", "image_size_ = 3", "unknown key 'image_size_'"),
        ('"factor_vae"', '"beta_vae"', "methods: expected different names, found beta_vae, beta"),
        ("seeds = 2", "seeds = 0", "seeds: Input should be greater than or equal to 1, found 0"),
        ("seeds = 2", 'seeds = 2\nsplit = "tests"', "expected a split 'tests'"),
    ],
)  # fmt: skip
def test_a_study_that_is_wrong_names_the_key(
    monkeypatch, capsys, toml, tmp_path, old, new, message
):
    toml.write_text(toml.read_text().replace(old, new))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--study", toml, "--out", tmp_path / "out", "--workers", "1")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ray_runs_units_on_a_gpu_each_and_skips_those_that_are_done(
    monkeypatch, capsys, toml, tmp_path
):
    monkeypatch.setattr(UnitRunner, "_score", digest)
    out = tmp_path / "out"
    run(monkeypatch, "--study", toml, "--out", out, "--unit", "1")
    asked = []

    @contextmanager
    def cluster(option):
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": 2.0})

    def mapped(work, jobs, at_a_time, **options):
        asked.append(options)
        for job in jobs:
            yield pickle.loads(work({"job": pickle.dumps(job)})["result"])

    monkeypatch.setattr(module_run, "ray_cluster", cluster)
    monkeypatch.setattr(module_run, "map_jobs", mapped)
    read = read_study(toml)
    done = [*module_run.run_units(read, [*enumerate(read.units)], out, "ray", None)]
    assert asked == [{"num_gpus": 1}]
    assert [line.partition(":")[0] for line in done] == [
        unit.label for number, unit in enumerate(read.units) if number != 1
    ]
    assert len([*(out / "units").glob("*.parquet")]) == 4


def test_a_folder_of_other_units_is_refused(monkeypatch, capsys, toml, tmp_path):
    out = tmp_path / "out"
    monkeypatch.setattr(UnitRunner, "_score", digest)
    run(monkeypatch, "--study", toml, "--out", out, "--unit", "1")
    assert not (out / "results.parquet").exists()
    assert len([*(out / "units").iterdir()]) == 1
    before = toml.read_text()
    for old, new, message in (
        ("[5.0]", "[5.0, 6.0]", "2 that the folder lacks, such as 'rooms, factor_vae 6, seeds 0"),
        ("steps = 8", "steps = 9", "4 that the folder lacks"),
    ):
        toml.write_text(before.replace(old, new))
        with pytest.raises(SystemExit):
            run(monkeypatch, "--study", toml, "--out", out)
        printed = capsys.readouterr().err
        assert message in printed and "name another --out" in printed
    toml.write_text(before)
    path = out / "study.json"
    path.write_text(re.sub(r'("rooms, test": ")\w', r"\g<1>x", path.read_text()))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--study", toml, "--out", out)
    assert "the pictures of rooms, test are not those" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--study", toml, "--out", tmp_path / "new", "--unit", "4")
    assert "--unit: expected 0 to 3, found 4" in capsys.readouterr().err


def test_the_published_study_has_its_units():
    units = read_study(ROOT / "train/studies/locatello.toml").units
    assert len(units) == 504
    assert sum(len(unit.seeds) for unit in units) == 12_600
    assert len({unit.set for unit in units}) == 7
    assert len({(unit.config.loss, unit.config.strength) for unit in units}) == 36
    assert {unit.steps for unit in units} == {300_000}
    assert {unit.config.schedule.learning_rate for unit in units} == {1e-4}
    assert len({unit.key for unit in units}) == 504
