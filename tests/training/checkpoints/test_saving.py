"""Checkpoints of several ranks: their parts, and messages about missing or wrong ones."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.schema import Attribute, Schema
from adde.shards.index import ShardIndex
from adde.shards.shard import Shard, member_rows
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints import flat_shards as pieces_of
from adde.training.checkpoints import saving
from adde.training.checkpoints.checkpoint import Position
from adde.training.checkpoints.flat_shards import FlatShard, partition_replicated
from adde.training.checkpoints.saving import Saver
from adde.training.config import Checkpoints, Config

SCHEMA = Schema((Attribute("colour", ("red", "blue")),))
MEMBERS = member_rows([2], [[0, 1, 2, 3, 4]] * 2)
SHARD = Shard("train-000000.tar", "train", 2, 9, "0" * 64, MEMBERS)
INDEX = ShardIndex(Path("shards"), "toy", SCHEMA, (SHARD,))
RANKS = 3


class Ranks:
    """Threads of this process as ranks."""

    def __init__(self, run, monkeypatch, **options):
        self.here = threading.local()
        self.config = Config(run=run, checkpoints=Checkpoints(**options))
        for module in (saving, pieces_of):
            monkeypatch.setattr(module, "rank", lambda: self.here.rank)
            monkeypatch.setattr(module, "world_size", lambda: RANKS)
        self.savers = [self.on(rank, self._open) for rank in range(RANKS)]

    def _open(self):
        saver, rank = Saver(self.config, INDEX, "1@main"), self.here.rank
        saver._background.start(
            lambda: setattr(self.here, "rank", rank)
        )  # sets the rank of its thread
        return saver

    def on(self, rank, job, *arguments, **options):
        self.here.rank = rank
        return job(*arguments, **options)

    def save(self, step, pieces, **options):
        for rank in (2, 1, 0):
            position = Position("encoder", step, step)
            self.on(rank, self.savers[rank].save, position, lambda r=rank: pieces(r), **options)

    def close(self, failed=False):
        for rank in range(RANKS):
            self.on(rank, self.savers[rank].close, failed)


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    made = Ranks(tmp_path, monkeypatch, timeout=0.3)
    yield made
    made.close()


WHOLE = {
    "model/weight": torch.arange(21.0).view(7, 3),
    "model/bias": torch.arange(5.0),
    "optimizer/weight/step": torch.tensor(4),
}


def cut(rank):
    """Return a rank's shards: rows of a sharded weight, and its share of replicated tensors."""
    first, last = (0, 9, 18, 21)[rank : rank + 2]
    flat = WHOLE["model/weight"].flatten()
    mine = {"model/weight": FlatShard(flat[first:last], first, (7, 3))}
    return mine | partition_replicated({name: WHOLE[name] for name in list(WHOLE)[1:]})


def test_parts_of_all_ranks_are_one_checkpoint(ranks, tmp_path):
    ranks.save(7, cut)
    for saver in ranks.savers:
        saver.wait()
    found = checkpoints.last_checkpoint(tmp_path)
    assert found.position == Position("encoder", 7, 7)
    names = {path.name for path in found.path.iterdir()}
    assert names == {*map(checkpoints.part_name, range(3)), "tensors.json", "state.json"}
    for kind in ("model", "optimizer"):
        for name, stored in found.tensors(kind).items():
            expected = WHOLE[f"{kind}/{name}"]
            assert stored.whole().dtype == expected.dtype
            assert torch.equal(stored.whole(), expected)
    weight = found.tensors("model")["weight"]
    for start in range(22):
        for stop in range(start, 22):
            assert weight.read(start, stop).tolist() == list(map(float, range(start, stop)))


def test_a_missing_and_an_altered_part_are_named(ranks, tmp_path, capsys):
    for step in (1, 2, 3):
        ranks.save(step, cut)
        for saver in ranks.savers:
            saver.wait()
    # keep = 2: the first is gone
    newest, before = checkpoints.folders(tmp_path)
    (newest / "part-00001.safetensors").unlink()
    assert checkpoints.last_checkpoint(tmp_path).path == before
    assert f"{newest}/part-00001.safetensors: damaged: expected sha256" in capsys.readouterr().err
    content = (before / "tensors.json").read_text()
    (before / "tensors.json").write_text(content.replace("[7, 3]", "[3, 7]"))
    with pytest.raises(UserError, match="found all 2 damaged"):
        checkpoints.last_checkpoint(tmp_path)
    assert f"{before}/tensors.json: damaged: expected sha256" in capsys.readouterr().err


def test_a_rank_that_never_writes_is_named_and_nothing_stays(ranks, tmp_path):
    for rank in (0, 2):
        ranks.on(rank, ranks.savers[rank].save, Position("encoder", 1, 1), lambda r=rank: cut(r))
    with pytest.raises(
        UserError, match=r"the parts of 3 ranks within 0\.3 s .* none from ranks 1;"
    ):
        ranks.savers[0].wait()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_rank_that_fails_is_quoted(ranks, tmp_path, monkeypatch):
    write = saving.safetensors.torch.save_file

    def fail(values, path):
        if path.name == "part-00001.safetensors":
            raise OSError(28, "No space left on device", str(path))
        write(values, path)

    monkeypatch.setattr(saving.safetensors.torch, "save_file", fail)
    ranks.save(1, cut)
    with pytest.raises(UserError, match=r"rank 1 could not write its part: .*No space left"):
        ranks.savers[0].wait()
    with pytest.raises(OSError, match="No space left"):
        ranks.savers[1].wait()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_failed_run_does_not_wait_for_parts_that_never_come(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "GRACE", 0.1)
    ranks = Ranks(tmp_path, monkeypatch, timeout=100)
    ranks.on(0, ranks.savers[0].save, Position("encoder", 1, 1), lambda: cut(0))
    started = time.monotonic()
    ranks.close(failed=True)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("shift", "message"),
    [(1, "expected rank 2 to continue at element 18, found 19"), (-1, "found 17")],
)
def test_gaps_and_overlaps_are_refused(ranks, shift, message):
    def wrong(rank):
        pieces = cut(rank)
        moved = pieces["model/weight"]._replace(start=18 + shift)
        return pieces | ({"model/weight": moved} if rank == 2 else {})

    ranks.save(1, wrong)
    with pytest.raises(UserError, match=f"model/weight: {message}" if shift > 0 else message):
        ranks.savers[0].wait()


def test_an_incomplete_tensor_is_refused(ranks):
    ranks.save(1, lambda rank: {} if rank == 2 else cut(rank))
    with pytest.raises(UserError, match="weight: expected 21 elements, found 18"):
        ranks.savers[0].wait()


def test_a_position_is_written_once_and_may_become_the_best(ranks, tmp_path):
    ranks.save(1, cut)
    figures = {"hit@30": 0.5, "hit@10": 0.3, "hit@1": 0.1}

    def never(rank):
        raise AssertionError

    ranks.save(1, never, best=figures)
    ranks.savers[0].wait()
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"checkpoint": "step-00000001", **figures}


def test_a_later_stage_replaces_the_checkpoint_of_the_same_step(ranks, tmp_path):
    ranks.save(1, cut)
    for saver in ranks.savers:
        saver.wait()
    before = sha256_of_file(tmp_path / "checkpoints/step-00000001/state.json")
    for rank in (2, 1, 0):
        position = replace(Position("encoder", 1, 1), stage="adde", stage_step=0)
        ranks.on(rank, ranks.savers[rank].save, position, lambda r=rank: cut(r))
    ranks.savers[0].wait()
    assert checkpoints.last_checkpoint(tmp_path).position.stage == "adde"
    assert sha256_of_file(tmp_path / "checkpoints/step-00000001/state.json") != before


@given(sizes=st.lists(st.integers(1, 50), max_size=30), count=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_what_is_alike_is_shared_out_once_and_evenly(sizes, count):
    tensors = {f"t{i}": torch.zeros(size) for i, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_of, "world_size", lambda: count)
        found = []
        for rank in range(count):
            patch.setattr(pieces_of, "rank", lambda rank=rank: rank)
            found.append(partition_replicated(tensors))
    assert sorted(name for mine in found for name in mine) == sorted(tensors)
    loads = [sum(len(piece.values) for piece in mine.values()) for mine in found]
    assert max(loads) - min(loads) <= max(sizes, default=0)
