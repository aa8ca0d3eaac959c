"""Checkpoints are complete, verified, kept and deleted."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from adde.errors import UserError
from adde.files import this_process
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.model import ADDE
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.shards.index import ShardIndex
from adde.shards.shard import Shard, member_rows
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints.background import Background
from adde.training.checkpoints.checkpoint import Position
from adde.training.checkpoints.flat_shards import FlatShard, HostBuffers
from adde.training.checkpoints.saving import Saver
from adde.training.config import Checkpoints
from adde.training.opening import load_model
from adde.training.recipes import write_config
from adde.training.strategies import DataParallel

SCHEMA = Schema((Attribute("colour", ("red", "blue")),))
MEMBERS = member_rows([2], [[0, 1, 2, 3, 4]] * 2)
SHARD = Shard("train-000000.tar", "train", 2, 9, "0" * 64, MEMBERS)
INDEX = ShardIndex(Path("shards"), "toy", SCHEMA, (SHARD,))
CONFIG = AddeConfig(model=ModelSettings(backbone="test_resnet", image_size=32, width=4, hidden=4))


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    model = ADDE(CONFIG.model, SCHEMA)
    strategy = DataParallel(Accelerator(cpu=True), model, CONFIG)
    strategy.backward(model.encode(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))[0].sum())
    strategy.begin_step(0.1)
    strategy.step()
    write_config(CONFIG, tmp_path)
    yield tmp_path, model, strategy.flat_shards
    AcceleratorState._reset_state(reset_partial_state=True)


def save(trained, step, keep=9, best=None):
    run, _, pieces = trained
    config = replace(CONFIG, run=run, checkpoints=Checkpoints(keep=keep))
    saver = Saver(config, INDEX, this_process())
    saver.save(Position("encoder", step, step), pieces, best=best)
    try:
        saver.wait()
    finally:
        saver.close()
    return run / "checkpoints" / f"step-{step:08d}"


def figures(hit_30, hit_1=0.0):
    return {"hit@30": hit_30, "hit@10": 0.1, "hit@1": hit_1}


def test_the_best_has_the_highest_hit_30_and_then_the_highest_hit_1(trained):
    run = trained[0]
    assert checkpoints.is_best(run, figures(0.1))
    save(trained, 1, best=figures(0.5, hit_1=0.3))
    assert not checkpoints.is_best(run, figures(0.4, hit_1=0.9))
    assert not checkpoints.is_best(run, figures(0.5, hit_1=0.3))
    assert checkpoints.is_best(run, figures(0.5, hit_1=0.4))
    assert checkpoints.is_best(run, figures(0.6))


def test_weights_and_optimiser_come_back(trained):
    run, model, pieces = trained
    save(trained, 3, best=figures(0.5))
    loaded, config, found = load_model(run)
    assert config == CONFIG
    assert found.position == Position("encoder", 3, 3)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    fresh = DataParallel(Accelerator(cpu=True), loaded, CONFIG)
    fresh.restore(found.tensors("optimizer"), found.tensors("ema"), 2)
    restored, expected = fresh.flat_shards(), pieces()
    assert restored.keys() == expected.keys()
    entries = {key.rpartition("/")[2] for key in restored if key.startswith("optimizer")}
    assert entries == {"step", "exp_avg", "exp_avg_sq"}
    for key, piece in expected.items():
        assert torch.equal(restored[key].values, piece.values), key
        assert restored[key][1:] == piece[1:]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, capsys):
    run = trained[0]
    save(trained, 1)
    path = save(trained, 2) / "part-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert checkpoints.last_checkpoint(run).position.step == 1
    warning = capsys.readouterr().err
    assert "step-00000002/part-00000.safetensors: damaged" in warning
    assert "trying the previous one" in warning

    (run / "checkpoints" / "step-00000001" / "state.json").unlink()
    with pytest.raises(UserError, match="found all 2 damaged"):
        checkpoints.last_checkpoint(run)


def test_the_newest_and_the_best_are_kept(trained):
    run = trained[0]
    for step in range(1, 6):
        save(trained, step, keep=2, best=figures(0.9) if step == 2 else None)
    kept = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000004", "step-00000005"]


@pytest.mark.parametrize("size", [1000, 400_000])
def test_a_full_disk_leaves_nothing_half_written(trained, little_room, size):
    run = trained[0]
    assert max(file.stat().st_size for file in save(trained, 1).iterdir()) > size
    little_room(size)
    with pytest.raises((UserError, OSError)) as failure:
        save(trained, 2)
    assert str(run / "checkpoints" / "step-00000002") in str(failure.value)
    assert "File too large" in str(failure.value)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_a_killed_process_left_is_deleted(trained):
    run = trained[0]
    save(trained, 1)
    (run / "checkpoints" / ".step-00000002.77@elsewhere.tmp").mkdir()
    (run / "checkpoints" / ".best.json.1@elsewhere.tmp").touch()
    checkpoints.delete_unfinished(run)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"expected a run folder with config\.toml"):
        load_model(tmp_path)
    write_config(CONFIG, tmp_path)
    with pytest.raises(UserError, match="not evaluated yet"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="found none; train first"):
        load_model(tmp_path, "last")


def test_training_goes_on_while_a_checkpoint_is_written_and_hears_of_a_failure():
    background, written, go_on = Background(), [], threading.Event()
    background.start(lambda: go_on.wait(10) and written.append(1))
    background.check()
    assert not written  # start did not wait
    go_on.set()
    background.start(lambda: written.append(2))  # after the first
    background.wait()
    assert written == [1, 2]

    def fail():
        raise UserError("no room")

    background.start(fail)
    with pytest.raises(UserError, match="no room"):
        while True:
            background.check()
    background.check()  # raised only once
    background.close()


def test_a_snapshot_is_not_touched_by_training():
    weight = torch.nn.Parameter(torch.ones(3))
    buffers = HostBuffers()
    taken = buffers.copy({"weight": FlatShard(weight, 0, (3,))})["weight"].values
    with torch.no_grad():
        weight.zero_()
    assert taken.tolist() == [1, 1, 1]
    assert not taken.requires_grad


def test_host_buffers_are_kept_and_follow_names_and_shapes():
    def copy(**tensors):
        copies = buffers.copy({name: FlatShard.of(values) for name, values in tensors.items()})
        assert {n: c.values.tolist() for n, c in copies.items()} == {
            n: v.flatten().tolist() for n, v in tensors.items()
        }
        assert all(copies[n].values.dtype == v.dtype for n, v in tensors.items())
        return {name: shard.values.data_ptr() for name, shard in copies.items()}

    buffers = HostBuffers()
    first = copy(a=torch.ones(3, 2), b=torch.zeros(5))
    assert copy(a=torch.zeros(2, 3), b=torch.arange(5.0)) == first
    # Another stage trains other parameters; counters change their type.
    assert copy(a=torch.ones(4), c=torch.tensor(3)).keys() == {"a", "c"}
    assert buffers._buffers.keys() == {"a", "c"}
    copy(a=torch.ones(4, dtype=torch.int64))


def test_every_file_of_a_checkpoint_has_the_mode_of_new_files(trained):
    path = save(trained, 1)
    (path / "new").touch()
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert "part-00000.safetensors" in modes
    assert set(modes.values()) == {modes["new"]}
