"""Checks before the first step, and their messages."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

from adde.errors import UserError
from adde.shards.index import ShardIndex
from adde.training.config import Checkpoints, Config, Data
from adde.training.resilience import preflight as module
from adde.training.resilience import requirements
from adde.training.resilience.preflight import preflight, require_same
from adde.training.resilience.requirements import (
    require_device,
    require_room,
    require_split,
    warn_early,
)

CPU = torch.device("cpu")


@pytest.fixture
def ranks(monkeypatch):
    """Make gather_objects return the facts of other ranks too."""

    def make(*others):
        monkeypatch.setattr(module, "gather_objects", lambda mine: [mine, *others])

    return make


def test_ranks_that_agree_pass(ranks):
    facts = {"code": "a", "torch": "2"}
    ranks(dict(facts), dict(facts))
    require_same(facts)


def test_ranks_that_differ_are_named_with_what_each_has(ranks):
    facts = {"code": "a", "torch": "2.14"}
    ranks({**facts, "code": "b"}, {**facts, "deepspeed": "0.19"}, facts)
    with pytest.raises(UserError) as error:
        require_same(facts)
    assert "code: a on ranks 0, 2, 3, b on rank 1" in str(error.value)
    assert "deepspeed: nothing on ranks 0, 1, 3, 0.19 on rank 2" in str(error.value)
    assert "torch:" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, index: (replace(config, seed=1), index), "recipe seed: 0 on .* 1 on rank"),
        (
            lambda config, index: (replace(config, data=Data(batch_size=12)), index),
            "recipe data.batch_size: 256 on rank 0, 12 on rank 1",
        ),
        (
            lambda config, index: (config, replace(index, shards=index.shards[1:])),
            "train shards: [0-9a-f]{12} on rank 0, [0-9a-f]{12} on rank 1",
        ),
    ],
)
def test_another_recipe_or_other_shards_are_refused(ranks, tiny_shards, change, message):
    config, index = Config(), ShardIndex.read(tiny_shards)
    other = module._facts(*change(config, index), CPU)
    ranks(other)
    with pytest.raises(UserError, match=message):
        preflight(config, index, CPU)


def test_ranks_may_have_shards_and_workers_of_their_own(ranks, tiny_shards):
    config, index = Config(), ShardIndex.read(tiny_shards)
    own = replace(config, data=Data(shards="/elsewhere", workers=7))
    ranks(module._facts(own, index, CPU))
    require_same(module._facts(config, index, CPU))


def test_a_start_is_written_and_one_by_the_same_launcher_goes_on(
    tiny_shards, tmp_path, monkeypatch, capsys
):
    index = ShardIndex.read(tiny_shards)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    looked = preflight(Config(), index, CPU)
    assert not looked.resumes(tmp_path)
    looked.write(tmp_path, 0)
    (line,) = (tmp_path / "preflight.jsonl").read_text().splitlines()
    assert json.loads(line)["facts"]["schema"] == index.schema.hash[:12]
    assert "preflight: 1 rank on cpu; code " in capsys.readouterr().out
    assert preflight(Config(), index, CPU).resumes(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")
    assert not preflight(Config(), index, CPU).resumes(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    again = preflight(Config(), index, CPU)
    assert again.resumes(tmp_path)
    replace(again, clock_skew_s=3.0).write(tmp_path, 40)
    assert "clocks are 3.0 s apart" in capsys.readouterr().out


def without(index, split):
    return replace(index, shards=tuple(s for s in index.shards if s.split != split))


def test_a_missing_test_split_is_told_at_the_start(tiny_shards, capsys):
    index = ShardIndex.read(tiny_shards)
    warn_early(index, {"ACCELERATE_DYNAMO_BACKEND": "NO"})
    assert capsys.readouterr().out == ""
    warn_early(without(index, "test"), {})
    printed = capsys.readouterr().out
    assert "no test split, so train/evaluate.py and export/to_onnx.py will fail" in printed
    assert "continue with --split val or --shards" in printed
    assert "--test-share 0.1" in printed
    require_split(index, "val")
    with pytest.raises(
        UserError, match=r"split 'val', found train and test.*--shards.*--val-share"
    ):
        require_split(without(index, "val"), "val")
    with pytest.raises(UserError, match=r"split 'val', found .*; continue with --data.shards for"):
        require_split(without(index, "val"), "val", training=True)


def test_compiling_by_accelerates_configuration_is_told(tiny_shards, capsys):
    index = ShardIndex.read(tiny_shards)
    warn_early(index, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})
    printed = capsys.readouterr().out
    assert "with inductor (dynamo_backend in its default_config.yaml" in printed
    assert "--dynamo_backend no" in printed


def test_checkpoints_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(requirements.shutil, "disk_usage", lambda path: usage(10**9, 0, 10**6))
    model = nn.Linear(1000, 100, bias=False)  # 0.4 MB, 1.2 MB with AdamW's moments
    config = Config(run=tmp_path, checkpoints=Checkpoints(keep=2))
    with pytest.raises(UserError, match=r"room for 0\.00 GB of checkpoints .2 kept, the best"):
        require_room(config, model)
    # The run's own checkpoints are replaced, so their room counts.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old").write_bytes(bytes(3_900_000))
    require_room(config, model)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "rank 1: expected GPU 1 on .* found"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "rank 0: expected GPU 0 on .* found 0 that torch sees"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}, None),
        ({"WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({}, None),
    ],
)
def test_gpus_that_were_asked_for_must_be_there(environment, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    if message is None:
        require_device(environment)
        return
    with pytest.raises(UserError, match=message):
        require_device(environment)
