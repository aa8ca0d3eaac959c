"""Fixtures: a tiny catalogue, model and bundle, read-only for tests."""

import hashlib
import io
import itertools
import json
import os
import resource
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

# Without a GPU, kernels run under Triton's interpreter; it must be asked for before the import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from adde.schema import Attribute, Schema
from adde.scoring import Calibration
from adde.shards.index import ShardIndex
from adde.shards.shard import Shard, member_rows

TINY_SCHEMA = Schema(
    (
        Attribute("colour", ("red", "green", "blue")),
        Attribute("shape", ("disc", "square")),
        Attribute("border", ("plain", "white")),
    )
)
TINY_SPLITS = {"train": ((0, 3), (1, 2)), "val": ((2, 1),), "test": ((3, 2),)}
"""Per split, per shard: a seed, and how often every combination of values appears."""

RGB = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220)}


FILE_SIZE = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.fixture
def little_room():
    """Calls make a disk that holds no file of more than so many bytes; full at once, as it were."""
    return lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, FILE_SIZE[1]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Room again before pytest reports the test: its own output may go to a file."""
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, FILE_SIZE)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory):
    """Folder of shards: 60 train, 12 val and 24 test pictures of 32 px, some labels missing.

    Edit groups are the three colours of one shape and border.
    """
    root = tmp_path_factory.mktemp("tiny")
    shards = [
        _write_shard(root, f"{split}-{number:06d}.tar", split, seed, repeats)
        for split, parts in TINY_SPLITS.items()
        for number, (seed, repeats) in enumerate(parts)
    ]
    ShardIndex(root, "tiny", TINY_SCHEMA, tuple(shards)).write()
    return root


def _write_shard(root, name, split, seed, repeats):
    rng = np.random.default_rng(seed)
    members, groups = [], []
    with tarfile.open(root / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        shapes, borders = TINY_SCHEMA.attributes[1].values, TINY_SCHEMA.attributes[2].values
        for _, shape, border in itertools.product(range(repeats), shapes, borders):
            for colour in RGB:
                item = f"{name[:-4]}-{len(members):03d}"
                labels = {"colour": colour, "shape": shape, "border": border}
                if rng.random() < 0.1:
                    labels[TINY_SCHEMA.names[rng.integers(3)]] = None
                record = json.dumps({"item_id": item, "labels": labels}).encode()
                picture = _png(colour, shape, border, rng)
                offsets = [
                    *_add(tar, f"{item}.png", picture),
                    *_add(tar, f"{item}.json", record),
                ]
                members.append([*offsets, zlib.crc32(picture + record)])
            groups.append(3)
    content = (root / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Shard(name, split, len(members), len(content), digest, member_rows(groups, members))


def _add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    # After adding, the tar stands behind the content and its padding to 512 bytes.
    return tar.offset - -(-len(content) // 512) * 512, len(content)


def _png(colour, shape, border, rng):
    image = Image.new("RGB", (32, 32), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    x, y = rng.integers(3, 9, size=2).tolist()
    options = {"fill": RGB[colour], "outline": "white" if border == "white" else None, "width": 3}
    paint = draw.ellipse if shape == "disc" else draw.rectangle
    paint((x, y, x + 18, y + 18), **options)
    noise = rng.normal(0, 6, (32, 32, 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained ADDE of the tiny catalogue whose memory is not zero."""
    # Not at the top: tests of layer 0 run where torch is not installed.
    import torch

    from adde.methods.adde.model import ADDE
    from adde.model import ModelSettings

    torch.manual_seed(0)
    settings = ModelSettings(backbone="test_resnet", image_size=32, width=6, hidden=8)
    model = ADDE(settings, TINY_SCHEMA).eval()
    with torch.no_grad():
        model.memory.weight.normal_()
        # Fresh weights see next to nothing: make pictures differ, not only biases.
        for layer in (model.heads.first, model.heads.second, model.classifiers.linear):
            layer.weight.mul_(6)
    return model


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model, tiny_shards, tmp_path_factory):
    """Folder of the bundle of `tiny_model`, exported once; tests that damage it take a copy."""
    from adde.exporting.export import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    retrieval = {"split": "test", "adde": {"hit@1": 0.5}}
    calibration = Calibration((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.01, 2.0)
    index = ShardIndex.read(tiny_shards)
    export_bundle(tiny_model, index, out, retrieval, {"run": "tiny"}, calibration)
    return out


@pytest.fixture(scope="session")
def several_pictures(tiny_shards, tmp_path_factory):
    """Index of the tiny pictures as items of one to four pictures with the same labels."""
    from adde.shards.catalogues.catalogue import Catalogue, PictureSource
    from adde.shards.packing.writer import write_tars
    from adde.shards.reader import iterate

    class Stored(PictureSource):
        def __init__(self, content):
            self.content = content

        def read(self):
            return self.content, "png"

        def stamp(self):
            return ""

    index = ShardIndex.read(tiny_shards)
    rows = [(split, sample) for split in TINY_SPLITS for sample in iterate(index, split)]
    items, members = [], {}
    for split, sample in rows:
        alike = (split, *sample.labels.tolist())
        members[alike] = number = members.get(alike, -1) + 1
        items.append("-".join(map(str, (*alike, number // 4))))
    catalogue = Catalogue(
        "several",
        TINY_SCHEMA,
        [sample.item_id for _, sample in rows],
        np.stack([sample.labels for _, sample in rows]),
        [split for split, _ in rows],
        lambda row: Stored(rows[row][1].picture),
        items=items,
    )
    folder = tmp_path_factory.mktemp("several")
    write = write_tars(catalogue, folder, lambda write, jobs: (write(job) for job in jobs))
    write.index.write()
    return ShardIndex.read(folder)
