"""A picture that yields NaN on one of two ranks: its steps are skipped and the item is named."""

import json

import numpy as np
import pytest
from test_strategies import launch
from tiny_recipe import RECIPE

from adde.loading.resize import load_for_training
from adde.preprocess import Preprocess
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.reader import ShardReader

PROGRAM = '''
"""train/main.py with one picture that becomes NaN; checks that skipped steps change nothing."""
import hashlib, math, runpy, sys
import torch
from adde.errors import run_program
from adde.methods.adde import objective as objectives
from adde.training.strategies import Strategy

plain, begin, end = objectives.augment, Strategy.begin_step, Strategy.step

def augment(images, moves, settings):
    out = plain(images, moves, settings)
    poisoned = images.flatten(1).long().sum(1) == {total}
    return torch.where(poisoned[:, None, None, None], {value}, out)

def digest(strategy):
    # This rank's part of a checkpoint.
    return {{name: p.values.detach().clone() for name, p in strategy.flat_shards().items()}}

def begin_step(self, rate):
    begin(self, rate)
    self.before = digest(self)

def step(self):
    norm = end(self)
    after = digest(self)
    same = [torch.equal(self.before[name], t) for name, t in after.items() if name in self.before]
    assert len(same) > 5, len(same)
    if math.isfinite(norm):
        assert not all(same)
    else:
        assert all(same) and len(same) == len(after)
        print("untouched", flush=True)
    return norm

objectives.augment, Strategy.begin_step, Strategy.step = augment, begin_step, step
program = runpy.run_path("train/main.py")
run_program(program["main"])
'''
BATCH = 12


@pytest.fixture
def poisoned(tiny_shards, tmp_path):
    """Make recipe and program of a run in which one item is NaN; also return its id and rows."""

    def make(value="math.nan", **settings):
        index = ShardIndex.read(tiny_shards)
        shards = index.split("train")
        order = SampleOrder(shards, BATCH, seed=5)
        shard, position = order.batch(3)[BATCH - 1].tolist()  # on the second rank
        sample = ShardReader(index).read(shards[shard], position)
        picture = np.empty((32, 32, 3), np.uint8)
        load_for_training(Preprocess(32, (0, 0, 0), (1, 1, 1)), sample.picture, "", picture)
        program = tmp_path / "main.py"
        program.write_text(PROGRAM.format(total=picture.astype(np.int64).sum(), value=value))
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
        places = {}
        for step in range(20):
            for row in (order.batch(step) == [shard, position]).all(1).nonzero()[0].tolist():
                places[step + 1] = row
        assert len(places) == 4  # once an epoch
        return recipe, program, sample.item_id, places

    return make


def bad_steps(run):
    return [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("ddp", ()),
        *(
            pytest.param(file, more, marks=pytest.mark.slow)
            for file, more in [
                ("ddp", ("--data.accumulation=3",)),
                ("ddp", ("--data.accumulation=3", "--data.cached")),
                ("ddp", ("--optimizer.name=adamw",)),
                ("ddp", ("--precision=bf16",)),
                ("fsdp2", ("--data.accumulation=2",)),
                ("fsdp2", ("--data.accumulation=2", "--data.cached")),
                *((f"zero{n}", ("--data.accumulation=2",)) for n in (1, 2, 3)),
                ("zero3", ("--precision=bf16", "--optimizer.name=adamw")),
                ("zero3_offload", ()),
            ]
        ),
    ],
)
def test_a_step_with_nan_changes_nothing_and_its_item_is_named(file, more, poisoned, tmp_path):
    recipe, program, item, places = poisoned()
    run = tmp_path / "run"
    output = launch(file, 2, recipe, run, *more, program=program)
    assert output.count("untouched") == 2 * len(places)
    found = bad_steps(run)
    assert [line["step"] for line in found] == list(places)
    assert {tuple(line["items"]) for line in found} == {(item,)}
    parts = int(more[0][-1]) if "--data.accumulation" in " ".join(more) else 1
    micro = BATCH // (2 * (1 if "--data.cached" in more else parts))
    assert [line["rank"] for line in found] == [row // micro % 2 for row in places.values()]
    assert 1 in {line["rank"] for line in found}
    assert all("embeddings" in line["terms"] for line in found)
    for line in found:
        assert f"step {line['step']}: " in output
        assert f"rank {line['rank']}, items {item}" in output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "lr" in line]
    assert [line["step"] for line in steps if line["grad_norm"] is None] == list(places)
    assert steps[-1]["bad_steps"] == len(places)
    assert all(line["val/accuracy"] >= 0 for line in log if "val/accuracy" in line)


def test_beyond_the_limit_the_run_ends_and_says_where_to_look(poisoned, tmp_path):
    recipe, program, item, places = poisoned()
    run = tmp_path / "run"
    output = launch("cpu", 1, recipe, run, "--limits.bad-steps=1", program=program, status=1)
    second = list(places)[1]
    message = output.rpartition("error: ")[2]
    assert message.startswith("expected at most 1 steps with NaN or infinity since this start")
    assert f"found 2, the last at step {second}: " in message
    assert f"rank 0, items {item}. Check these items" in message
    assert [line["step"] for line in bad_steps(run)] == list(places)[:2]
