"""Run train/main.py on a tiny catalogue: start, kill and resume it as a user does."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace

import psutil
import pytest
import torch

from adde.methods.adde.method import METHOD
from adde.shards.catalogues.drawn.wardrobe import wardrobe
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.training.checkpoints.checkpoint import last_checkpoint
from adde.training.watching.panels import NOT_SHOWN, PANELS
from adde.training.watching.profiling import PARTS
from adde.training.watching.tracking import read_log
from tests import programs
from tests.programs import finish

TINY = [
    "--data.batch-size=12",
    "--data.workers=0",
    "--model.backbone=test_resnet",
    "--model.image-size=32",
    "--model.width=8",
    "--model.hidden=8",
    "--model.dropout=0.1",
    "--encoder.schedule.epochs=2",
    "--adde.schedule.epochs=3",
    "--checkpoints.every=3",
    "--evaluation.every-epochs=3",
    "--evaluation.rows=2",
    "--optimizer.ema=0.9",
    "--cross-batch.size=31",
    "--cross-batch.warmup=2",
    "--wandb=off",
]


def start(shards, run, *more, launcher=()):
    """Start train/main.py."""
    words = (*launcher, "train/main.py", f"--run={run}", f"--data.shards={shards}", *TINY, *more)
    return programs.start(*words, PYTHONWARNINGS="default")


def steps(run):
    return [line["step"] for line in read_log(run / "log.jsonl") if "lr" in line]


def losses(run):
    """Return the loss of every step."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [v for line in lines for k, v in line.items() if k in ("encoder/loss", "adde/loss")]


def unmined(run):
    """Return the terms of every step that need no negatives, whose choice depends on rounding."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    names = ("encoder/cls", "encoder/presence", "adde/presence")
    return [line[name] for line in lines for name in names if name in line]


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 120
    while not (found := steps(run)) or found[-1] < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_checkpoint(run, process):
    """Checkpoints are written in the background, a few steps later."""
    deadline = time.monotonic() + 120
    while not any((run / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def last_weights(run):
    found = last_checkpoint(run)
    return found.path.name, {
        kind: {name: stored.whole() for name, stored in found.tensors(kind).items()}
        for kind in ("model", "ema", "optimizer")
    }


@pytest.fixture(scope="module")
def uninterrupted(tiny_shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    output = finish(start(tiny_shards, run))
    return run, output


def test_a_run_leaves_what_it_promises(uninterrupted):
    run, output = uninterrupted
    assert "report.html" in output
    assert "real_accelerator" not in output  # DeepSpeed warns at import
    assert steps(run) == list(range(1, 26))
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.toml", "checkpoints", "log.jsonl", "report.html", "evaluation"}
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-2])
    for key in ("lr", "grad_norm", "images_per_second", "data_wait", "memory_gb"):
        assert line[key] >= 0, key
    # keep = 2, and the best if it is older
    assert 2 <= len(list((run / "checkpoints").glob("step-*"))) <= 3


def test_a_finished_run_has_nothing_to_do(tiny_shards, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    output = finish(start(tiny_shards, run, "--resume", launcher=on_ranks(2)))
    assert output.count(f"{run}: finished at step 25, nothing to do") == 1
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "step", [pytest.param(5, id="encoder", marks=pytest.mark.slow), pytest.param(14, id="adde")]
)
def test_killed_and_resumed_ends_in_the_same_weights(tiny_shards, tmp_path, uninterrupted, step):
    process = start(tiny_shards, tmp_path / "run")
    wait_for_step(tmp_path / "run", step, process)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    output = finish(start(tiny_shards, tmp_path / "run", "--resume"))
    assert "resuming at step" in output
    assert steps(tmp_path / "run") == list(range(1, 26))
    name, expected = last_weights(uninterrupted[0])
    found_name, found = last_weights(tmp_path / "run")
    assert found_name == name == "step-00000025"
    for file, tensors in expected.items():
        for key, tensor in tensors.items():
            assert torch.equal(found[file][key], tensor), f"{file}: {key}"


COMPARABLE = (
    "--model.dropout=0",  # every rank draws its own mask
    "--encoder.schedule.learning-rate=3e-5",
    "--adde.schedule.learning-rate=3e-5",
    "--checkpoints.keep=9",
)
"""At higher rates AdamW turns rounding errors into steps, and runs on other ranks diverge."""


def on_ranks(count):
    return ("-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", "--")


@pytest.fixture(scope="module")
def killed_on_two_ranks(tiny_shards, tmp_path_factory):
    """A run of two ranks that was killed, and an uninterrupted run of one rank."""
    place = tmp_path_factory.mktemp("elastic")
    whole = start(tiny_shards, place / "whole", *COMPARABLE)
    process = start(tiny_shards, place / "killed", *COMPARABLE, launcher=on_ranks(2))
    wait_for_step(place / "killed", 8, process)
    wait_for_checkpoint(place / "killed", process)
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.kill()
    process.communicate()
    finish(whole)
    return place


@pytest.mark.parametrize(
    "ranks", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_on_other_ranks_sees_the_same_batches(
    tiny_shards, killed_on_two_ranks, tmp_path, ranks
):
    run = tmp_path / "run"
    shutil.copytree(killed_on_two_ranks / "killed", run)
    launcher = on_ranks(ranks) if ranks > 1 else ()
    output = finish(start(tiny_shards, run, *COMPARABLE, "--resume", launcher=launcher))
    assert "resuming at step" in output
    assert steps(run) == list(range(1, 26))
    # Terms of batches with other items differ by far more than this.
    found = unmined(run)
    assert found == pytest.approx(unmined(killed_on_two_ranks / "whole"), abs=5e-4)
    assert len(found) == 10 + 10 + 15
    assert max(found[-15:]) - min(found[-15:]) > 0.01


def test_bf16_trains_as_fp32_and_resumes_to_the_last_bit(tiny_shards, tmp_path, uninterrupted):
    run = tmp_path / "run"
    more = ("--precision=bf16", "--checkpoints.keep=9")
    finish(start(tiny_shards, run, *more))
    found, expected = losses(run), losses(uninterrupted[0])
    assert found != expected
    assert unmined(run)[:2] == pytest.approx(unmined(uninterrupted[0])[:2], rel=0.01)
    assert found == pytest.approx(expected, rel=0.15)  # some mined negatives differ
    assert sum(found) == pytest.approx(sum(expected), rel=0.02)
    name, weights = last_weights(run)
    assert {tensor.dtype for tensor in weights["optimizer"].values()} == {torch.float32}
    for file in ("model", "ema"):
        assert torch.bfloat16 not in {tensor.dtype for tensor in weights[file].values()}

    # As if it had been killed after step 12.
    for folder in (run / "checkpoints").glob("step-*"):
        if folder.name > "step-00000012":
            shutil.rmtree(folder)
    (run / "checkpoints" / "best.json").unlink()
    finish(start(tiny_shards, run, *more, "--resume"))
    again_name, again = last_weights(run)
    assert again_name == name == "step-00000025"
    for file, tensors in weights.items():
        for key, tensor in tensors.items():
            assert torch.equal(again[file][key], tensor), f"{file}: {key}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--precision=fp16", "precision: expected fp32 or bf16 on the CPU, found fp16"),
        ("--precision=tf32", "precision: expected fp32 or bf16 on the CPU, found tf32"),
        ("--data.batch-size=61", "batch_size: expected at most the 60 items of the training split"),
    ],
)
def test_what_cannot_be_trained_leaves_no_run(tiny_shards, tmp_path, setting, message):
    process = start(tiny_shards, tmp_path / "run", setting)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: {message}" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_says_how_to_go_on(tiny_shards, tmp_path):
    upload = f"--checkpoints.upload=file://{tmp_path}/bucket"
    process = start(tiny_shards, tmp_path / "run", upload)
    wait_for_step(tmp_path / "run", 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    done = steps(tmp_path / "run")[-1]
    assert f"stopped after step {done}" in output
    assert "--resume" in output
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}" / "state.json").exists()

    # A machine without the run's folder resumes from the uploads.
    recipe = shutil.copy(tmp_path / "run" / "config.toml", tmp_path / "recipe.toml")
    again = ("--resume", f"--recipe={recipe}")
    elsewhere = start(tiny_shards, tmp_path / "elsewhere", upload, *again)
    wait_for_step(tmp_path / "elsewhere", done + 1, elsewhere)
    elsewhere.kill()
    output, _ = elsewhere.communicate()
    assert f"fetched file://{tmp_path}/bucket/step-{done:08d}" in output
    assert steps(tmp_path / "elsewhere")[0] == done + 1
    assert (tmp_path / "elsewhere" / "config.toml").exists()

    # Another configuration is rejected, and so is a new run in the same folder.
    other = start(tiny_shards, tmp_path / "run", "--resume", "--margin=0.9")
    output, _ = other.communicate(timeout=60)
    assert (other.returncode, "margin: 0.9 and 0.5" in output) == (1, True), output
    again = start(tiny_shards, tmp_path / "run")
    output, _ = again.communicate(timeout=60)
    assert (again.returncode, "expected an empty run folder" in output) == (1, True), output


@pytest.fixture(scope="module")
def two_ranks(tiny_shards, tmp_path_factory):
    """A run of two ranks with a profile and W&B offline."""
    run = tmp_path_factory.mktemp("runs") / "two"
    more = ("--data.accumulation=2", "--profile", "--wandb=offline")
    finish(start(tiny_shards, run, *more, launcher=on_ranks(2)))
    return run


def test_panels_show_what_a_run_logs_and_nothing_else(two_ranks):
    lines = [json.loads(line) for line in (two_ranks / "log.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line} - {"step", "time", "alert"}
    panels = (*METHOD.panels, *PANELS)
    for panel in panels:
        assert any(panel.shows(name) for name in logged), panel
    hidden = re.compile("|".join((*METHOD.hidden_metrics, *NOT_SHOWN)))
    for name in logged:
        shown = sum(panel.shows(name) for panel in panels)
        assert shown == (0 if hidden.fullmatch(name) else 1), name
    media = {path.name for path in (two_ranks / "wandb").rglob("media/**/*") if path.is_file()}
    for name in ("pictures", "matrix", *METHOD.tables):
        assert any(file.startswith(f"{name}_") for file in media), (name, media)
    assert {line["ranks/slowest"] for line in lines if "ranks/slowest" in line} <= {0.0, 1.0}
    norms = next(line for line in reversed(lines) if "grad_norm/memory" in line)
    blocks = ("backbone", "heads", "classifiers", "presence", "memory")
    parts = [norms[f"grad_norm/{b}"] for b in blocks]
    assert norms["grad_norm"] == pytest.approx(sum(p**2 for p in parts) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("stage", ["encoder", "adde"])
def test_a_profile_says_where_a_steps_time_goes(two_ranks, stage):
    trace = json.loads((two_ranks / "profile" / f"{stage}.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {f"adde/{part}" for part in PARTS} <= names
    page = (two_ranks / "profile" / f"{stage}.html").read_text()
    rows = dict(re.findall(r"</i>([a-z ]+)</td><td>([\d.]+)</td>", page))
    assert list(rows) == [*PARTS, "other"]
    step = re.search(r"Mean of [56] steps on the main rank, ([\d.]+) ms each", page)
    assert step is not None
    assert sum(map(float, rows.values())) == pytest.approx(float(step[1]), abs=0.2)
    assert float(rows["backward"]) > float(rows["augmentation"]) > 0
    assert not re.search(r"https?://|src=", page)


def test_a_start_says_what_was_started(two_ranks):
    (line,) = (two_ranks / "preflight.jsonl").read_text().splitlines()
    start = json.loads(line)
    assert (start["step"], start["ranks"], start["restarts"]) == (0, 2, 0)
    assert re.fullmatch("[0-9a-f]{40}", start["commit"]) and start["dirty"] in (True, False)
    assert "torch " in (two_ranks / "report.html").read_text()
    assert start["commit"][:10] in (two_ranks / "report.html").read_text()


def test_two_ranks_train_and_are_evaluated(two_ranks):
    run = two_ranks
    assert steps(run) == list(range(1, 26))
    output = finish(programs.start("train/evaluate.py", f"--run={run}", "--split=test"))
    assert "classifier_soft" in output
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["baselines"]) == {"random", "no_edit", "classifier", "classifier_soft"}
    assert metrics["split"] == "test"
    assert metrics["adde"]["queries"] > 0


@pytest.mark.parametrize("limit", [0.5, 0.001])
def test_skipped_samples_are_counted_up_to_a_limit(tiny_shards, tmp_path, limit):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    index = ShardIndex.read(shards)
    shard = index.split("train")[0]
    content = bytearray((shards / shard.name).read_bytes())
    at, size = shard.members[3].tolist()[:2]
    content[at : at + size] = bytes(size)
    (shards / shard.name).write_bytes(content)
    faults = ("--data.on-fault=skip", f"--data.max-faults={limit}")
    process = start(shards, tmp_path / "run", *faults, "--adde.schedule.epochs=0")
    output, _ = process.communicate(timeout=180)
    told = [json.loads(line) for line in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    assert f"{shard.name}, sample 3: expected bytes with crc32" in told[0]["fault"]
    assert told[0]["fault"] in output
    if limit == 0.001:
        assert process.returncode == 1
        assert "expected at most 0.06 samples that cannot be read (data.max_faults" in output
        return
    assert process.returncode == 0, output
    assert f"encoding train: skipped {told[0]['fault']}" in output
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    shares = [line["encoder/skipped"] for line in log if "encoder/skipped" in line]
    assert len(told) == 2 == round(sum(share * 12 for share in shares), 3)  # once per epoch


def test_resuming_on_other_shards_is_refused(tiny_shards, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    pack(wardrobe(60, 0, 16), tmp_path / "schema", PackOptions(), engine("processes", 1))
    index = ShardIndex.read(tiny_shards)
    shutil.copytree(tiny_shards, tmp_path / "order")
    members = index.shards[0].members.copy()
    members["group"][2] = 1  # groups of 2 and 4, not of 3 and 3
    swapped = (replace(index.shards[0], members=members),)
    replace(index, root=tmp_path / "order", shards=swapped + index.shards[1:]).write()
    for folder, message in (("schema", "schema"), ("order", "expected the shards it was trained")):
        process = start(tmp_path / folder, tmp_path / "run", "--resume")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert "error: " in output
        assert message in output.splitlines()[-1]
        assert "Traceback" not in output


def test_a_killed_loader_worker_ends_both_ranks_and_is_named(tiny_shards, tmp_path):
    run = tmp_path / "run"
    more = ("--data.workers=1", "--encoder.schedule.epochs=500")
    process = start(tiny_shards, run, *more, launcher=on_ranks(2))
    wait_for_step(run, 3, process)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    # A rank's children are its worker and possibly torch's resource tracker.
    (worker,) = (c for c in ranks[1].children() if "resource_tracker" not in " ".join(c.cmdline()))
    worker.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(rf"error: rank 1: DataLoader worker \(pid \(?{worker.pid}", output), output
    assert not any(rank.is_running() for rank in ranks)
