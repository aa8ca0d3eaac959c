"""Batches from worker processes: where their pictures are stored, and when workers exit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest
import torch

from adde.loading.loader import BatchStream
from adde.loading.workers import LENT, READ_AHEAD, READ_AHEAD_BYTES, STOP_SIGNALS, batches_ahead
from adde.preprocess import Preprocess
from adde.shards.batches import Batches
from adde.shards.index import ShardIndex
from adde.shards.shares import StoredOrder


@pytest.fixture
def batches(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    places = StoredOrder(tuple(s.samples for s in index.split("train")), 3)
    assert len(places) > 2 * (READ_AHEAD + LENT)
    return Batches(index, "train", Preprocess(8), places)


def stream(batches, workers, count=20):
    return closing(BatchStream(batches, range(count), workers))


def forked():
    """Return the workers, without processes that other test files keep."""
    return {p for p in multiprocessing.active_children() if p.name.startswith("ForkProcess")}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_are_kept_do_not_change(batches, workers):
    with stream(batches, 0) as one_by_one, stream(batches, workers) as found:
        kept = list(found)
        for batch, expected in zip(kept, one_by_one, strict=True):
            assert torch.equal(batch.images, expected.images)


def test_single_batches_are_not_copied(batches):
    with stream(batches, 0) as one_by_one, stream(batches, 1) as found:
        places = []
        for batch, expected in zip(found, one_by_one, strict=True):
            assert torch.equal(batch.images, expected.images)
            places.append(batch.images.data_ptr())
    # Addresses stay within the ring of slots, so nothing was copied.
    slots = READ_AHEAD + 1 + LENT
    assert len(set(places)) <= slots
    span = max(places) - min(places)
    assert span == (slots - 1) * 3 * 8 * 8 * 3


@pytest.mark.parametrize(
    ("workers", "together", "megabytes", "expected"),
    [
        (2, 1, 1, READ_AHEAD),
        (2, 32, 1, 16),  # what a step takes
        (4, 128, 38, 27),  # 256 pictures of 224 px: limited to 4 GB, although a step takes 5
        (8, 1, 4932, 1),  # a batch of 32,768 of them exceeds the limit, but each worker needs one
    ],
)
def test_workers_read_ahead_a_step_within_the_limit(workers, together, megabytes, expected):
    ahead = batches_ahead(workers, together, megabytes * 10**6)
    assert ahead == expected
    slots = workers * ahead + 1 + LENT
    assert slots * megabytes * 10**6 <= max(
        READ_AHEAD_BYTES, (workers + 1 + LENT) * megabytes * 10**6
    )


def test_a_part_of_a_batch_keeps_its_memory(batches):
    with stream(batches, 0) as one_by_one, stream(batches, 1) as found:
        parts = [batch.images[1:2].permute(0, 3, 1, 2) for batch in found]
        for part, expected in zip(parts, one_by_one, strict=True):
            assert torch.equal(part, expected.images[1:2].permute(0, 3, 1, 2))


def test_signals_from_outside_stop_no_worker(batches, capfd):
    before = [signal.signal(s, lambda *_: print("stopping", flush=True)) for s in STOP_SIGNALS]
    try:
        with stream(batches, 0) as one_by_one, stream(batches, 2) as found:
            kept = [next(found)]
            workers = forked()
            assert len(workers) == 2
            for number in STOP_SIGNALS:  # from a process that is not their parent
                command = ["kill", f"-{number}", *(str(worker.pid) for worker in workers)]
                subprocess.run(command, check=True)
            kept += found
            for batch, expected in zip(kept, one_by_one, strict=True):
                assert torch.equal(batch.images, expected.images)
    finally:
        for number, handler in zip(STOP_SIGNALS, before):
            signal.signal(number, handler)
    assert "stopping" not in capfd.readouterr().out


def test_closing_a_stream_ends_its_workers(batches):
    with stream(batches, 2) as found:
        next(found)
        workers = forked()
        assert len(workers) == 2
    assert not workers & forked()


KILLED = """
import multiprocessing, os, signal
import numpy as np
from adde.shards.batches import BatchMetadata
from adde.loading.loader import BatchStream

class Wide:
    leaves = False

    def shape(self, number):
        return 64, 8, 8, 3

    def read(self, number, images, say):  # more than a pipe holds, so that workers block
        return BatchMetadata(np.zeros((64, 1000), np.int64), [""] * 64, [], [], {})

stream = BatchStream(Wide(), range(1000), 2)
next(stream)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_worker_outlives_a_rank_that_is_killed(tmp_path):
    output = tmp_path / "output"  # not a pipe, which orphans would keep open
    with output.open("w") as file:
        killed = subprocess.run([sys.executable, "-c", KILLED], stdout=file)
    assert killed.returncode == -signal.SIGKILL
    left = workers = [int(pid) for pid in output.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    try:
        while left := [pid for pid in workers if runs(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
