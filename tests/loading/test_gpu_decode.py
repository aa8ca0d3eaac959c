"""Compare pictures decoded on the device (here the CPU) with those that workers decode."""

import io
import queue
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from adde.errors import UserError
from adde.loading import loader
from adde.loading.gpu_decode import decode_into
from adde.loading.loader import BatchStream
from adde.loading.resize import load_for_training
from adde.preprocess import Fit, Preprocess
from adde.schema import Attribute, Schema
from adde.shards.batches import Batches, OnFault
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.index import ShardIndex
from adde.shards.jpeg import is_plain
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import iterate
from adde.shards.shares import StoredOrder

SCHEMA = Schema((Attribute("colour", ("red", "blue")),))


@dataclass(frozen=True)
class Made:
    content: bytes
    extension: str

    def read(self):
        return self.content, self.extension

    def stamp(self):
        return ""


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Made(buffer.getvalue(), {"JPEG": "jpg", "PNG": "png"}[kind])


def pictures():
    """Return several kinds of non-square pictures, four times; two of each six are plain JPEGs."""
    y, x = np.mgrid[:50, :70]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    made = []
    for number in range(4):
        pixels = np.stack([3 * x, 5 * y, 90 + 80 * np.sin((x + number * y) / 9)], axis=2)
        image = Image.fromarray(pixels.astype(np.uint8))
        made += [
            encoded(image, quality=95, subsampling=0),
            encoded(image, exif=rotated, quality=95, subsampling=0),
            encoded(image, "PNG"),
            encoded(image.convert("L"), quality=95),
            encoded(image.convert("CMYK"), quality=95),
            encoded(image.resize((33, 90)), quality=95, subsampling=0, progressive=True),
        ]
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = pictures()
    labels = np.arange(len(made))[:, None] % 2
    ids = [str(number) for number in range(len(made))]
    catalogue = Catalogue("kinds", SCHEMA, ids, labels, ["train"] * len(made), made.__getitem__)
    out = tmp_path_factory.mktemp("kinds") / "shards"
    pack(catalogue, out, PackOptions(items_per_shard=9), engine("processes", 1))
    return ShardIndex.read(out)


def stream(
    index, workers, leave=None, on_fault: OnFault = "raise", device="cpu", fit: Fit = "crop"
):
    places = StoredOrder(tuple(s.samples for s in index.split("train")), 7)
    preprocess = Preprocess(40, fit=fit)
    batches = Batches(index, "train", preprocess, places, on_fault, load_for_training, leave)
    numbers = range(len(places))
    with closing(BatchStream(batches, numbers, workers, torch.device(device))) as found:
        return list(found)


@pytest.mark.parametrize(("workers", "fit"), [(0, "crop"), (1, "crop"), (1, "pad"), (0, "squash")])
def test_the_pictures_are_those_of_the_workers(index, workers, fit):
    plain = [is_plain(sample.picture) for sample in iterate(index, "train")]
    assert sum(plain) == 8  # the upright and the progressive ones
    asked = []

    def leave(content):
        asked.append(is_plain(content))
        return asked[-1]

    expected = stream(index, workers, fit=fit)
    found = stream(index, workers, leave, fit=fit)
    if not workers:
        assert asked == plain
    for one, other in zip(expected, found, strict=True):
        assert one.item_ids == other.item_ids
        assert torch.equal(one.labels, other.labels)
        apart = (one.images.int() - other.images.int()).abs()
        assert apart.max() <= 3
        assert apart.float().mean() < 0.5
    assert any(not torch.equal(a.images, b.images) for a, b in zip(expected, found))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_batches_are_decoded_while_one_is_trained_on(index, workers, monkeypatch):
    started, go_on = queue.Queue(), threading.Semaphore(0)

    def slow(images, *_):
        started.put(len(images))
        assert go_on.acquire(timeout=60)
        images[:] = 7

    monkeypatch.setattr(loader, "_device_decoder", lambda: slow)
    places = StoredOrder(tuple(s.samples for s in index.split("train")), 3)
    batches = Batches(index, "train", Preprocess(40), places, leave=lambda content: True)
    with closing(BatchStream(batches, range(8), workers)) as found:
        go_on.release()
        first = next(found)  # although the second is not decoded yet
        assert started.get(timeout=60)
        before = first.images.clone()
        go_on.release(loader.QUEUE)
        for _ in range(loader.QUEUE + 1):  # without any request
            started.get(timeout=60)
        assert torch.equal(first.images, before)
        go_on.release(8)
        assert len(list(found)) == 7


WITHOUT = """
import sys
sys.modules["torchcodec"] = None
from adde.errors import UserError
from adde.loading.loader import BatchStream

class Left:
    leaves = True

try:
    BatchStream(Left(), range(3), 0)
except UserError as error:
    print(error)
"""


def test_a_missing_torchcodec_is_reported():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data.decode = 'device': expected torchcodec, which does not import here" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("leave", [None, is_plain])
def test_batches_arrive_on_the_gpu(index, workers, leave):
    expected, found = stream(index, workers), stream(index, workers, leave, device="cuda")
    for one, other in zip(expected, found, strict=True):
        assert other.images.is_cuda and other.labels.is_cuda
        assert torch.equal(one.labels, other.labels.cpu())
        apart = (one.images.int() - other.images.cpu().int()).abs()
        assert apart.max() <= (0 if leave is None else 12)  # nvJPEG rounds differently


def test_substituted_rows_may_be_decoded_on_the_device(index, tmp_path):
    shard = index.split("train")[0]
    rows = [is_plain(sample.picture) for sample in iterate(index, "train")][:7]
    gap = next(
        row for row in range(7) if rows[(row + 1) % 7]
    )  # the next one is decoded on the device
    kept = shard.members[gap][4]
    shard.members[gap][4] ^= 1
    try:
        batch = stream(index, 0, is_plain, "skip")[0]
    finally:
        shard.members[gap][4] = kept
    assert batch.substituted_rows == [gap]
    assert torch.equal(batch.images[gap], batch.images[(gap + 1) % 7])
    assert batch.images[gap].float().std() > 10


def test_a_picture_that_does_not_decode_is_named():
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB")).content
    assert is_plain(whole[:-400])
    assert not is_plain(b"no picture")
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"a picture of a.tar, sample 4 and 0 more does not decode"):
        decode_into(images, {1: whole[:-400]}, {1: "a.tar, sample 4"}, "crop")
