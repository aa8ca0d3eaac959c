"""Training under every file of launch/ gives the same losses, weights and metrics on 2 ranks.

20 steps of both stages, with all triplet losses, a memory of past batches, batch norms, clipping
and averaged weights. SGD is held to 1e-5; hinges, L1 terms and the choice of a negative have kinks,
at which rounding decides, and seed and rate are such that these 20 steps meet none. AdamW takes a
whole step in the direction of a gradient near zero, whose sign is rounding: there, few weights may
be another step apart.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_ranks import free_port
from tiny_recipe import RECIPE

from adde.errors import UserError
from adde.files import read_json
from adde.methods.adde.method import METHOD
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import read_checkpoint
from adde.training.config import Config
from adde.training.recipes import read_recipe
from adde.training.strategies import open_accelerator

ROOT = Path(__file__).parents[2]
RATE = 3e-5
ADAM = (
    "--optimizer.name=adamw",
    f"--encoder.schedule.learning-rate={RATE}",
    f"--adde.schedule.learning-rate={RATE}",
)
slow = pytest.mark.slow
SHARDED = ["zero1", "zero2", "zero3", "zero3_offload"]


def start(file, ranks, recipe, run, *more, options=(), program="train/main.py"):
    """Start a training program with one of launch/'s files, on CPU ranks."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += [f"--config_file=launch/{file}.yaml", f"--num_processes={ranks}"]
    if (ranks > 1 or file.startswith("zero")) and not options:
        command += [f"--main_process_port={free_port()}"]
    cpu = {"DS_ACCELERATOR": "cpu"} if file.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
    cpu["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [*command, *options, program, f"--recipe={recipe}", f"--run={run}", *more],
        cwd=ROOT,
        env={**os.environ, **cpu, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(*arguments, status=0, **options):
    process = start(*arguments, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tensors(run, kind):
    found = read_checkpoint(run / "checkpoints" / "step-00000020").tensors(kind)
    assert found
    return {name: stored.whole() for name, stored in found.items()}


def same(run, expected, adam=False):
    """Compare every scalar of every step, and every tensor of the last checkpoint."""
    lines, wanted = log(run), log(expected)
    assert len(wanted) > 20
    assert [line["step"] for line in lines] == [line["step"] for line in wanted]
    for line, want in zip(lines, wanted):
        for name, value in want.items():
            if name.count("/") == 2 and name not in line:
                continue  # single attributes: means over ten steps since a start
            if name.startswith(("encoder/", "adde/", "data/", "val/", "lr", "grad_norm")):
                near = pytest.approx(value, rel=1e-3 if "grad_norm" in name else 1e-5, abs=1e-5)
                assert line[name] == near, (name, line["step"])
    for file in ("model", "ema", "optimizer"):
        found, want = tensors(run, file), tensors(expected, file)
        assert found.keys() == want.keys()
        apart = {name: (found[name] - value).abs() for name, value in want.items()}
        # Momentum and running statistics have larger values than weights.
        bounds = {n: 1e-4 if file == "optimizer" or "running" in n else 1e-5 for n in want}
        far = {n: a > bounds[n] * (1 + want[n].abs()) for n, a in apart.items()}
        if adam:
            assert sum(f.sum() for f in far.values()) < 1e-3 * sum(f.numel() for f in far.values())
            weights = [a.max() for n, a in apart.items() if bounds[n] == 1e-5]
            assert max(weights, default=0) < 4 * RATE
        else:
            worst = {n: apart[n].max().item() for n, f in far.items() if f.any()}
            assert not worst, (file, worst)


@pytest.fixture(scope="module")
def recipe(tiny_shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    text = RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"')
    path.write_text(text.replace("seed = 5", "seed = 7"))  # meets no kink, see above
    return path


@pytest.fixture(scope="module")
def one(recipe, tmp_path_factory):
    """The run of one process, with its checkpoints of steps 7 and 17."""
    run = tmp_path_factory.mktemp("runs") / "one"
    launch("cpu", 1, recipe, run)
    return run


@pytest.mark.parametrize(
    "file",
    ["fsdp2", "zero3", *(pytest.param(f, marks=slow) for f in ("ddp", *SHARDED) if f != "zero3")],
)
def test_two_ranks_train_as_one(file, recipe, one, tmp_path):
    launch(file, 2, recipe, tmp_path / "run")
    same(tmp_path / "run", one)


def test_a_frozen_part_learns_from_its_epoch_on(recipe, one):
    config = read_recipe(recipe)
    path = one / "checkpoints" / "step-00000003"  # three fifths of an epoch
    found = read_checkpoint(path).load("model")
    torch.manual_seed(config.seed)
    start = METHOD.build(config, Schema.from_json(read_json(path / "state.json")["schema"]))
    moved = {name for name, p in start.named_parameters() if not torch.equal(found[name], p)}
    for learning in ("backbone.conv1", "backbone.layer2", "heads"):
        assert any(name.startswith(f"{learning}.") for name in moved), learning
    assert not any(name.startswith(("backbone.layer1", "memory")) for name in moved)
    later = read_checkpoint(one / "checkpoints" / "step-00000007").load("model")
    names = [f"backbone.layer1.{name}" for name, _ in start.backbone.layer1.named_parameters()]
    assert any(not torch.equal(later[name], found[name]) for name in names)


@slow
@pytest.mark.parametrize("file", ["ddp", "fsdp2", "zero2", "zero3"])
def test_options_train_as_one_and_are_resumed(file, recipe, tmp_path):
    options = ("--data.balance=colour", "--logit-adjustment=0.5", "--encoder.adversary=0.1")
    options += ("--adde.adversary=0.1", "--adde.score=0.5", "--adde.edits=2")
    # More terms have more kinks; smaller steps meet none.
    options += ("--encoder.schedule.learning-rate=1e-3", "--adde.schedule.learning-rate=1e-3")
    if file == "ddp":
        options += ("--encoder.pseudo.weight=0.2", "--encoder.pseudo.confidence=0.4")
    launch("cpu", 1, recipe, tmp_path / "one", *options)
    launch(file, 2, recipe, tmp_path / "two", *options)
    same(tmp_path / "two", tmp_path / "one")
    run = stopped_at(tmp_path / "one", 7, tmp_path / "resumed")
    launch(file, 2, recipe, run, "--resume", *options)
    same(run, tmp_path / "one")


@slow
def test_pseudo_labels_are_refused_where_averages_are_in_shards(recipe, tmp_path):
    options = ("--encoder.pseudo.weight=0.2",)
    output = launch("fsdp2", 2, recipe, tmp_path / "run", *options, status=1)
    assert "encoder.pseudo.weight: expected averaged weights whole on every rank" in output


def stopped_at(run, step, copy):
    """Copy a run as if it had been killed after its checkpoint of `step`."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    (copy / "checkpoints" / "best.json").unlink(missing_ok=True)
    return copy


@pytest.mark.parametrize(
    ("file", "ranks", "step"),
    [
        ("fsdp2", 2, 17),
        *(pytest.param(f, 2, s, marks=slow) for f in SHARDED for s in (7, 17)),
        pytest.param("fsdp2", 2, 7, marks=slow),
        pytest.param("ddp", 3, 17, marks=slow),
    ],
)
def test_a_checkpoint_of_one_process_goes_on_under_another_strategy(
    file, ranks, step, recipe, one, tmp_path
):
    run = stopped_at(one, step, tmp_path / "run")
    assert f"resuming at step {step}" in launch(file, ranks, recipe, run, "--resume")
    same(run, one)


@slow
@pytest.mark.parametrize("file", ["ddp", "fsdp2", *SHARDED])
def test_adamw_trains_as_one_and_goes_on_in_one_process(file, recipe, tmp_path):
    launch("cpu", 1, recipe, tmp_path / "one", *ADAM)
    launch(file, 2, recipe, tmp_path / "two", *ADAM)
    same(tmp_path / "two", tmp_path / "one", adam=True)
    for step in (7, 17):
        run = stopped_at(tmp_path / "two", step, tmp_path / f"from {step}")
        launch("cpu", 1, recipe, run, "--resume", *ADAM)
        same(run, tmp_path / "one", adam=True)
    run = stopped_at(tmp_path / "one", 17, tmp_path / "back")
    launch(file, 2, recipe, run, "--resume", *ADAM)
    same(run, tmp_path / "one", adam=True)


@slow
def test_a_run_of_cut_weights_is_exported(recipe, tmp_path):
    launch("zero3", 2, recipe, tmp_path / "run")
    program = [sys.executable, "export/to_onnx.py", f"--run={tmp_path / 'run'}"]
    for which in ("best", "last"):
        more = [f"--checkpoint={which}", f"--out={tmp_path / which}"]
        subprocess.run([*program, *more], cwd=ROOT, check=True)
        assert (tmp_path / which / "encoder.onnx").exists()


@slow
@pytest.mark.parametrize("file", ["ddp", "fsdp2", "zero2", "zero3"])
def test_cached_embeddings_train_as_one_plain_batch(file, recipe, tmp_path):
    # Layer norms, because batch norms would see the micro-batches.
    options = "backbone_options = {img_size = 32}"
    text = recipe.read_text().replace('"test_resnet"', f'"test_vit"\n{options}')
    text = text.replace("backbone.layer1", "backbone.blocks.0")
    (tmp_path / "vit.toml").write_text(text)
    launch("cpu", 1, tmp_path / "vit.toml", tmp_path / "plain")
    cached = ("--data.cached", "--data.accumulation=3", "--model.checkpointing")
    launch(file, 2, tmp_path / "vit.toml", tmp_path / "cached", *cached)
    same(tmp_path / "cached", tmp_path / "plain")


@slow
@pytest.mark.parametrize("file", ["ddp_nodes", "ddp_nodes_c10d", "fsdp2_nodes"])
def test_two_machines_train_as_one(file, recipe, one, tmp_path):
    port = free_port()
    machines = [
        start(
            *(file, 2, recipe, tmp_path / "run"),
            options=(f"--machine_rank={rank}", f"--main_process_port={port}"),
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        output, _ = machine.communicate(timeout=200)
        assert machine.returncode == 0, output
    same(tmp_path / "run", one)


@slow
def test_sigusr1_to_the_ranks_saves_and_another_number_of_ranks_goes_on(recipe, one, tmp_path):
    run = tmp_path / "run"
    process = start("ddp", 2, recipe, run)
    while not (run / "log.jsonl").exists() or len(log(run)) < 4:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    # Like launch/slurm.sh, but other runs on this machine are left alone.
    subprocess.run(
        ["pkill", "-USR1", "-f", f"python[0-9.]* (-u )?train/main[.]py .*{run}"], check=True
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped after step" in output
    step = log(run)[-1]["step"]
    assert step < 20
    assert f"resuming at step {step}" in launch("ddp", 3, recipe, run, "--resume")
    same(run, one)


def test_fp16_is_refused_where_its_loss_scale_would_be_lost(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"found fp16, .* use bf16, or launch/ddp\.yaml"):
        open_accelerator(Config(precision="fp16"))


def test_compiling_is_refused_where_it_would_fail(monkeypatch):
    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"compile: expected a C\+\+ compiler .*No working"):
        open_accelerator(Config(compile=True))
    monkeypatch.setattr("adde.training.strategies.choice._prepare_deepspeed", lambda: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="compile: expected false under DeepSpeed"):
        open_accelerator(Config(compile=True))


@slow
@pytest.mark.parametrize("file", ["fsdp2", *SHARDED])
def test_bf16_stays_near_fp32(file, recipe, one, tmp_path):
    launch(file, 2, recipe, tmp_path / "run", "--precision=bf16")
    losses = [
        [v for x in log(r) for k, v in x.items() if k.endswith("/loss")]
        for r in (tmp_path / "run", one)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    state = tensors(tmp_path / "run", "optimizer")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
