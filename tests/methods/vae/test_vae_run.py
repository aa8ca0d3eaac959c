"""A VAE has all that a run has: watching, accumulation, resumption to the last bit, strategies."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from adde.methods.vae.method import METHOD
from adde.shards.catalogues.drawn.rooms import rooms
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.training.checkpoints.checkpoint import last_checkpoint
from adde.training.watching.panels import NOT_SHOWN, PANELS
from adde.training.watching.tracking import read_log
from tests.distributed.test_ranks import free_port
from tests.programs import ROOT, finish, start
from tests.training.test_method import figures

slow = pytest.mark.slow
SETTINGS = """
method = "vae"
loss = "rf_vae"
strength = 6.4
latents = 4
network = "small"
image_size = 16
seed = 3
wandb = "off"
schedule = {epochs = 4, learning_rate = 2e-3, kind = "constant", warmup = 0.0}
[data]
shards = "SHARDS"
batch_size = 16
accumulation = 2
workers = 0
[discriminator]
layers = 2
width = 32
rate = 0.5
[relevance]
entropy = 10.0
grow_from = 0.2
grow_until = 0.9
[optimizer]
weight_decay = 0.0
ema = 0.9
[checkpoints]
every = 4
keep = 99
[evaluation]
rows = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    items = rooms(TableOptions(), 160, 0, 16)
    pack(items, folder / "shards", PackOptions(), engine("processes", 1))
    (folder / "recipe.toml").write_text(SETTINGS.replace("SHARDS", str(folder / "shards")))
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def run(recipe):
    folder = recipe.parent / "run"
    finish(start("train/main.py", "--recipe", recipe, "--run", folder))
    return folder


def test_it_trains_and_is_watched(run):
    bounds = figures(run, "val/elbo")
    assert len(bounds) == 4 and bounds[-1] > bounds[0]
    assert json.loads((run / "checkpoints/best.json").read_text())["elbo"] == max(bounds)
    relevance = figures(run, "val/relevance/z0")
    assert len(relevance) == 4 and relevance[0] == pytest.approx(0.5, abs=0.05)
    assert len(figures(run, "vae/relevance/z3")) and len(figures(run, "vae/latent_kl/z3"))
    # The prices of sparsity and entropy come in later.
    entropies = figures(run, "vae/entropy")
    assert entropies[0] == 0 and entropies[-1] > 1
    for figure in ("vae/discriminator", "vae/total_correlation", "val/relevant", "val/active"):
        assert figures(run, figure), figure
    panels, left_out = (*METHOD.panels, *PANELS), NOT_SHOWN
    for line in read_log(run / "log.jsonl"):
        for key in line.keys() - {"step", "time", "alert"}:
            shown = any(panel.shows(key) for panel in panels)
            assert shown or any(re.fullmatch(pattern, key) for pattern in left_out), key
    page = (run / "report.html").read_text()
    for shown in ("Variational auto-encoder", "Relevance of each", "Latents moved", "from codes"):
        assert shown in page
    # Ten items twice; then one item with its four latents moved over ten places.
    assert page.count('class="query"') == 2 and page.count("<i><img") == 20 + 4 * 10


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
    same_weights(folder, run, ("model", "ema", "optimizer"), 0.0)


def same_weights(folder, run, kinds, bound):
    for kind in kinds:
        mine, theirs = (last_checkpoint(one).tensors(kind) for one in (folder, run))
        assert mine.keys() == theirs.keys() and mine
        for name, stored in mine.items():
            assert (stored.whole() - theirs[name].whole()).abs().max() <= bound, (kind, name)


def launch(file, ranks, recipe, run, *more, status=0):
    """The training program under one of launch/'s files, on CPU ranks."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += [f"--config_file=launch/{file}.yaml", f"--num_processes={ranks}"]
    if ranks > 1:
        command += [f"--main_process_port={free_port()}"]
    cpu = {"DS_ACCELERATOR": "cpu"} if file.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "train/main.py", f"--recipe={recipe}", f"--run={run}", *more],
        cwd=ROOT,
        env={**os.environ, **cpu, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


SGD = ("--optimizer.name=sgd", "--schedule.learning-rate=1e-6", "--data.accumulation=2")


@pytest.fixture(scope="module")
def plain(recipe):
    folder = recipe.parent / "sgd"
    launch("cpu", 1, recipe, folder, *SGD)
    return folder


@slow  # test_vae_ranks.py compares losses and gradients of two ranks in `make test`
@pytest.mark.parametrize("file", ["fsdp2", "ddp", "zero1", "zero2"])
def test_two_ranks_train_as_one(file, recipe, plain, tmp_path):
    launch(file, 2, recipe, tmp_path / "run", *SGD)
    names = ("vae/loss", "vae/kl", "vae/discriminator", "vae/total_correlation", "val/elbo")
    same_run(tmp_path / "run", plain, names)


def same_run(folder, expected, names):
    for name in names:
        found, wanted = figures(folder, name), figures(expected, name)
        assert wanted and found == pytest.approx(wanted, rel=2e-5), name
    same_weights(folder, expected, ("model", "ema"), 1e-5)


@slow
def test_zero3_cuts_weights_that_a_discriminator_needs_whole(recipe, tmp_path):
    output = launch("zero3", 2, recipe, tmp_path / "refused", *SGD, status=1)
    assert "found them cut by ZeRO-3; launch with launch/zero2.yaml" in output
    other = (*SGD, "--loss=beta_tcvae")
    launch("cpu", 1, recipe, tmp_path / "one", *other)
    launch("zero3", 2, recipe, tmp_path / "two", *other)
    same_run(tmp_path / "two", tmp_path / "one", ("vae/loss", "vae/kl", "val/elbo"))
