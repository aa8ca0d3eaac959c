"""A method outside the package can be trained, watched and resumed (tests/autoencoder.py)."""

import json
import time

import pytest

from adde.shards.catalogues.drawn.wardrobe import wardrobe
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.training.checkpoints.checkpoint import last_checkpoint
from adde.training.watching.tracking import read_log
from tests.autoencoder import METHOD
from tests.programs import finish, start

SETTINGS = """
method = "tests.autoencoder"
seed = 3
wandb = "off"
schedule = {epochs = 5, learning_rate = 1e-2}
[data]
shards = "SHARDS"
batch_size = 16
workers = 0
[checkpoints]
every = 4
keep = 99
[evaluation]
rows = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("method")
    pack(wardrobe(120, 0, 32), folder / "shards", PackOptions(), engine("processes", 1))
    (folder / "recipe.toml").write_text(SETTINGS.replace("SHARDS", str(folder / "shards")))
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def run(recipe):
    folder = recipe.parent / "run"
    finish(start("train/main.py", "--recipe", recipe, "--run", folder))
    return folder


def figures(run, name):
    return [line[name] for line in read_log(run / "log.jsonl") if name in line]


def test_it_trains_and_is_watched(run):
    errors, quality = figures(run, "autoencoder/error"), figures(run, "val/psnr")
    assert errors[-1] < 0.7 * errors[0]
    assert len(quality) == 5 and quality[-1] > quality[0]
    best = json.loads((run / "checkpoints/best.json").read_text())
    assert best["psnr"] == max(quality)
    page = (run / "report.html").read_text()
    for shown in (METHOD.title, "Reconstructions", "Squared error", "Images per second", "psnr"):
        assert shown in page
    assert page.count('class="query"') == 2
    assert "ADDE stage" not in page and "Prototypes" not in page


def test_a_killed_run_resumes_to_the_same_weights(recipe, run):
    folder = recipe.parent / "killed"
    process = start("train/main.py", "--recipe", recipe, "--run", folder)
    deadline = time.monotonic() + 120
    while last_checkpoint(folder) is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "resuming at step" in finish(start("train/main.py", "--resume", "--run", folder))
    for kind in ("model", "optimizer"):
        mine, theirs = (last_checkpoint(one).tensors(kind) for one in (folder, run))
        assert mine.keys() == theirs.keys() and mine
        assert all(mine[name].whole().equal(theirs[name].whole()) for name in mine)


def test_two_ranks_train_as_one(recipe, run):
    folder = recipe.parent / "two"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ranks = [*launcher, "--", "train/main.py"]
    finish(start(*ranks, "--recipe", recipe, "--run", folder))
    assert figures(folder, "autoencoder/error") == pytest.approx(
        figures(run, "autoencoder/error"), rel=1e-4
    )


def test_only_an_adde_is_exported(run):
    bundle = run.parent / "bundle"
    output = finish(start("export/to_onnx.py", "--run", run, "--out", bundle), status=1)
    assert "expected a run of the method 'adde'" in output
    assert "found one of 'tests.autoencoder'" in output
    assert not bundle.exists()


def test_a_method_without_evaluations_of_its_own_is_not_evaluated(run):
    output = finish(start("train/evaluate.py", "--run", run), status=1)
    assert "expected a run of a method with evaluations of its own" in output
    assert "found one of 'tests.autoencoder'" in output
