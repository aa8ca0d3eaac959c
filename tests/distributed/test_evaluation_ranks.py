"""Several ranks compute the same metrics of a split as one rank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_ranks import free_port

from adde.methods.adde.evaluation import encode_split, evaluate_split, memory_edit, retrieval
from adde.metrics import METRIC_NAMES, manipulation_queries
from adde.scoring import Calibration
from adde.shards.index import ShardIndex
from adde.training.evaluation import Evaluator

CPU = torch.device("cpu")


def first_items(index, count):
    """Return the index with a test split of `size` items."""
    (shard,) = index.split("test")
    short = replace(shard, samples=count, members=shard.members[:count])
    return replace(index, shards=(short,))


def evaluate(index, model, most=0):
    encoded = encode_split(Evaluator(index, 5, 0, CPU), model, "test")
    return encoded, retrieval(model, encoded, CPU, most)


def run_rank(rank, port, splits, model, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    torch.set_num_threads(1)
    try:
        found = [evaluate(index, model) for index in splits]
        queue.put([(encoded.rows, figures) for encoded, figures in found])
        queue.join()
    finally:
        dist.destroy_process_group()


def test_three_ranks_find_what_one_does(tiny_shards, tiny_model):
    """Also with fewer items than ranks."""
    index = ShardIndex.read(tiny_shards)
    splits = [first_items(index, items) for items in (24, 2)]
    expected = [evaluate(index, tiny_model) for index in splits]
    context = mp.get_context("spawn")
    queue = context.JoinableQueue()
    arguments = (free_port(), splits, tiny_model, queue)
    processes = mp.spawn(run_rank, arguments, 3, join=False, start_method="spawn")
    results = [queue.get(timeout=240) for _ in range(3)]
    for _ in results:
        queue.task_done()
    while not processes.join():
        pass
    for result in results:
        for (rows, figures), (encoded, alone) in zip(result, expected):
            np.testing.assert_array_equal(rows, encoded.rows)
            assert figures == pytest.approx(alone, abs=1e-12)
    for encoded, alone in expected:
        found = evaluate_split(
            encoded,
            tiny_model.schema,
            memory_edit(tiny_model),
            Calibration((1.0,) * encoded.labels.shape[1], (), 0.01, 2.0),
            manipulation_queries(encoded.labels),
            most=30,
        )["adde"]
        assert alone == pytest.approx({n: found[n] for n in (*METRIC_NAMES, "queries")}, abs=1e-12)


def test_fewer_queries_are_spread_over_all(tiny_shards, tiny_model):
    index = ShardIndex.read(tiny_shards)
    whole, few = (evaluate(index, tiny_model, most)[1] for most in (0, 30))
    assert few["queries"] == 30 < whole["queries"]
    assert few["hit@10"] == pytest.approx(whole["hit@10"], abs=0.25)
