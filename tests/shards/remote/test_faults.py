"""Each kind of fault: the message with `raise`, and the substitution and report with `skip`."""

import io
import os
import re
import shutil
import signal
import threading
import time
import zlib
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from adde.errors import UserError
from adde.loading.batch import join
from adde.loading.loader import BatchStream
from adde.preprocess import Preprocess
from adde.shards.batches import Batches
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.reader import ShardReader
from adde.shards.shares import RankShare

PREPROCESS = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def index(tiny_shards, tmp_path):
    """A copy of the tiny shards that a test may damage."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    return ShardIndex.read(tmp_path / "shards")


def spoil(index, member, change, packed=False):
    """Change the picture or the record at position 3 of the first shard.

    With `packed`, update the checksum in the index, as if the bytes had been packed like that.
    """
    shard = index.split("train")[0]
    image_at, image_bytes, json_at, json_bytes, *_ = shard.members[3].tolist()
    at, size = (image_at, image_bytes) if member == "picture" else (json_at, json_bytes)
    path = index.root / shard.name
    content = bytearray(path.read_bytes())
    content[at : at + size] = change(bytes(content[at : at + size]))
    path.write_bytes(content)
    if packed:
        picture = content[image_at : image_at + image_bytes]
        shard.members[3][4] = zlib.crc32(picture + content[json_at : json_at + json_bytes])


def flip_last_pixel(picture):
    """Return a valid PNG of the same length with other pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).copy()
    pixels[-1, -1, -1] ^= 1
    for level in range(10):  # until it fits
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", compress_level=level)
        if len(buffer.getvalue()) <= len(picture):
            return buffer.getvalue().ljust(len(picture), b"\0")
    raise AssertionError("no such PNG")


def truncate(index):
    shard = index.split("train")[0]
    os.truncate(index.root / shard.name, shard.members[3][0] + 5)


FAULTS = {
    "truncated tar": (truncate, "expected .* bytes at offset .*, found 5; the shard is truncated"),
    "missing shard": (
        lambda index: (index.root / index.split("train")[0].name).unlink(),
        "No such file",
    ),
    "flipped byte in a label": (
        lambda index: spoil(index, "record", lambda b: b.replace(b'"colour"', b'"coloar"'), True),
        "expected JSON with item_id and labels of the schema, found: ",
    ),
    "flipped byte in the record's JSON": (
        lambda index: spoil(index, "record", lambda b: b"[" + b[1:], True),
        "expected JSON with item_id and labels",
    ),
    "picture that does not decode": (
        lambda index: spoil(index, "picture", lambda b: b"\0" * len(b), True),
        "expected a picture that decodes, found",
    ),
    "flipped byte in a label's value": (
        lambda index: spoil(index, "record", lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:]),
        "expected bytes with crc32 [0-9a-f]{8}, found [0-9a-f]{8}; they were changed",
    ),
    "flipped byte in a picture that still decodes": (
        lambda index: spoil(index, "picture", flip_last_pixel),
        "expected bytes with crc32 [0-9a-f]{8}, found [0-9a-f]{8}; they were changed",
    ),
}  # fmt: skip


def batches(index, on_fault, places=None):
    shard = index.split("train")[0]
    places = places or (lambda number: np.array([(0, p) for p in range(2, 6)]))
    assert shard.samples > 6
    return Batches(index, "train", PREPROCESS, places, on_fault)


def first(stream):
    with closing(stream):
        return next(stream)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_raise_names_rank_shard_position_and_reason(index, fault, workers):
    make, message = FAULTS[fault]
    make(index)
    name = re.escape(str(index.root / index.split("train")[0].name))
    position = "[23]"  # a truncated or missing tar fails at the first requested sample
    with pytest.raises(UserError, match=f"rank 5: {name}, sample {position}.*{message}") as raised:
        list(BatchStream(batches(index, "raise"), range(2), workers, rank=5))
    assert "data.on_fault = 'skip'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if "tar" not in name and "shard" not in name]
)
def test_skip_puts_the_next_sample_of_the_batch_in_its_place(index, fault):
    make, message = FAULTS[fault]
    whole = first(BatchStream(batches(index, "raise"), range(1), 0))
    make(index)
    for workers in (0, 1):
        found = first(BatchStream(batches(index, "skip"), range(1), workers))
        assert found.item_ids == [whole.item_ids[i] for i in (0, 2, 2, 3)]
        assert torch.equal(found.images, whole.images[[0, 2, 2, 3]])
        assert torch.equal(found.labels, whole.labels[[0, 2, 2, 3]])
        assert len(found.faults) == 1
        assert re.search(f"sample 3.*{message}", found.faults[0])


def test_skip_raises_if_a_whole_batch_is_unreadable(index):
    FAULTS["missing shard"][0](index)
    with pytest.raises(UserError, match=r"no sample of a batch can be read; the first: .*sample 2"):
        first(BatchStream(batches(index, "skip"), range(1), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_watchdog_names_what_was_being_read(index, workers, monkeypatch):
    read = ShardReader.read

    def stall(self, shard, position):
        if position == 4:
            time.sleep(60)
        return read(self, shard, position)

    monkeypatch.setattr(ShardReader, "read", stall)
    started = time.monotonic()
    name = re.escape(str(index.root / index.split("train")[0].name))
    stream = BatchStream(batches(index, "raise"), range(2), workers, timeout=0.5, rank=3)
    with pytest.raises(
        UserError,
        match=rf"rank 3: no batch came for 0\.5 seconds .*worker 0 reads {name}, sample 4",
    ):
        next(stream)
    assert time.monotonic() - started < 30


def test_a_worker_that_is_killed_is_named_with_what_it_read(index, monkeypatch):
    read = ShardReader.read

    def die(self, shard, position):
        if position == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, shard, position)

    monkeypatch.setattr(ShardReader, "read", die)
    with pytest.raises(UserError, match=r"rank 2: DataLoader worker .*killed.*sample 5"):
        first(BatchStream(batches(index, "raise"), range(2), 1, rank=2))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 1), (4, 0), (4, 2)])
def test_resuming_on_other_ranks_and_workers_sees_the_same_global_batches(
    tiny_shards, ranks, workers
):
    index = ShardIndex.read(tiny_shards)
    order = SampleOrder(index.split("train"), 12, seed=3, last_batch="pad")

    def ids(rank, ranks, steps, workers):
        share = RankShare(order, rank, ranks, 1)
        source = Batches(index, "train", PREPROCESS, share)
        return [batch.item_ids for batch in BatchStream(source, steps, workers)]

    whole = ids(0, 1, range(14), 0)
    stopped = 5
    parts = [ids(rank, ranks, range(stopped, 14), workers) for rank in range(ranks)]
    resumed = [[i for part in step for i in part] for step in zip(*parts)]
    assert whole[:stopped] + resumed == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_in_micro_batches_is_the_share_in_one_piece(index, workers):
    spoil(index, "picture", flip_last_pixel)
    order = SampleOrder(index.split("train"), 24, seed=3)

    def share(rank, parts, workers):
        places = RankShare(order, rank, 2, parts, whole=True)
        found = batches(index, "skip", places)
        numbers = range(2 * parts)
        with closing(BatchStream(found, numbers, workers, together=parts)) as stream:
            return [join(stream, parts) for _ in range(2)]

    seen = 0
    for rank in range(2):
        for expected, found in zip(share(rank, 1, 0), share(rank, 3, workers), strict=True):
            assert torch.equal(found.labels, expected.labels) or found.substituted_rows
            assert (found.substituted_rows, found.faults) == (
                expected.substituted_rows,
                expected.faults,
            )
            whole = [row for row in range(12) if row not in found.substituted_rows]
            assert torch.equal(found.images[whole], expected.images[whole])
            assert [found.item_ids[r] for r in whole] == [expected.item_ids[r] for r in whole]
            for row in found.substituted_rows:  # an item of the same micro-batch
                near = [found.item_ids[r] for r in whole if r // 4 == row // 4]
                assert found.item_ids[row] in near
            seen += len(found.substituted_rows)
    assert seen == 1


def test_closing_a_stream_ends_its_thread(index):
    stream = BatchStream(batches(index, "raise"), range(1000), 0)
    next(stream)
    threads = threading.active_count()
    stream.close()
    assert threading.active_count() < threads


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_behind_an_address_give_the_same_batches(index, tmp_path, monkeypatch, workers):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "cache"))
    order = SampleOrder(index.split("train"), 12, seed=3)
    share = RankShare(order, 0, 1, 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=index.root)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        remote = ShardIndex.read(f"http://127.0.0.1:{server.server_port}")
        found = list(BatchStream(Batches(remote, "train", PREPROCESS, share), range(5), workers))
        server.shutdown()
    whole = list(BatchStream(Batches(index, "train", PREPROCESS, share), range(5), workers))
    for one, two in zip(whole, found, strict=True):
        assert one.item_ids == two.item_ids
        assert torch.equal(one.images, two.images)
