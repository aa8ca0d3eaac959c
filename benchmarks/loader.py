"""Compare the training stream with a decode-only loop, webdataset and litdata.

    python benchmarks/loader.py --json docs/loader.json
    python benchmarks/loader.py --shards data/photos --side 224 --workers 8

All read the same pictures with the same number of worker processes and yield shuffled batches of
uint8 pictures and labels. They are timed in turn in one run and compared by medians. The
decode-only loop reads pictures from RAM and discards the results. webdataset runs twice: its
documented pipeline, and with our decoder. litdata, which has its own streaming format, runs with
our decoder.
"""

import gc
import io
import json as json_module
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import litdata.streaming  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
import tyro
from figures import publish
from PIL import Image
from torchvision.transforms import v2
from webdataset.compat import WebDataset, WebLoader

from adde.errors import run_program
from adde.loading.loader import BatchStream
from adde.loading.resize import load_for_training
from adde.preprocess import Preprocess
from adde.schema import Attribute, Schema
from adde.shards.batches import Batches
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import iterate
from adde.shards.shares import RankShare

Stream = Iterator[Any]


def measure(
    shards: Path | None = None,
    side: int = 224,
    workers: int = 1,
    batch_size: int = 64,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Print and write samples per second and their ratios.

    Args:
        shards: folder of shards; default: made-up photographs of 256 x 320 pixels.
        side: of the pictures that training takes, pixels.
        workers: processes of each contestant.
        batch_size: items of a batch.
        json: file of the figures.
        quick: 3 rounds in place of 7.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = ShardIndex.read(shards or make_shards(Path(scratch) / "shards", 3000))
        load = partial(decoded, Preprocess(side))
        streams: dict[str, Callable[[], Stream]] = {
            "loader": lambda: ours(index, side, batch_size, workers),
            "webdataset": lambda: webdataset(index, side, batch_size, workers),
            "webdataset_our_decoder": lambda: webdataset(index, side, batch_size, workers, load),
            "litdata": partial(
                lit, write_litdata(index, Path(scratch) / "lit"), load, batch_size, workers
            ),
        }
        batches = max(4, min(index.count("train") // batch_size - 8, 32))
        speeds: dict[str, list[float]] = {name: [] for name in (*streams, "decode")}
        for _ in range(3 if quick else 7):
            for name, make in streams.items():
                speeds[name].append(samples_per_second(make(), batches) * batch_size)
            speeds["decode"].append(decode_only(index, load, batches * batch_size, workers))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    figures: dict[str, Any] = {
        "loader_vs_decode": median["loader"] / median["decode"],
        "loader_vs_webdataset": median["loader"] / median["webdataset"],
        "loader_vs_webdataset_our_decoder": median["loader"] / median["webdataset_our_decoder"],
        "loader_vs_streaming": median["loader"] / median["litdata"],
        **{f"{name}_samples_per_second": value for name, value in median.items()},
        "workers": workers,
        "side": side,
        "median_bytes": float(
            np.median(np.concatenate([shard.members["image_bytes"] for shard in index.shards]))
        ),
    }
    publish(figures, ("torch", "torchvision", "webdataset", "litdata", "pillow"), json)


def samples_per_second(stream: Stream, batches: int) -> float:
    """Measure batches per second after the workers have filled their queues."""
    for _ in range(4):
        next(stream)
    started = time.perf_counter()
    for _ in range(batches):
        next(stream)
    elapsed = time.perf_counter() - started
    del stream
    gc.collect()  # end its workers before the next measurement
    return batches / elapsed


def ours(index: ShardIndex, side: int, batch_size: int, workers: int) -> Stream:
    """Read like train/main.py."""
    share = RankShare(SampleOrder(index.split("train"), batch_size, seed=0), 0, 1, 1)
    batches = Batches(index, "train", Preprocess(side), share, load=load_for_training)
    return BatchStream(batches, range(10_000), workers)


def webdataset(
    index: ShardIndex, side: int, batch_size: int, workers: int, load: Any = None
) -> Stream:
    """Read with webdataset's documented pipeline, or with our decoder."""
    names = [str(index.folder / shard.name) for shard in index.split("train")]
    source = WebDataset(names, shardshuffle=100, seed=0).shuffle(1000)
    if load is None:
        transform = v2.Compose([v2.PILToTensor(), v2.Resize(side), v2.CenterCrop(side)])
        source = source.decode("pil").to_tuple("jpg;png;webp", "json").map_tuple(transform)
    else:
        source = source.to_tuple("jpg;png;webp", "json")
        source = source.map_tuple(lambda picture: torch.from_numpy(load(picture)))
    source = source.map(lambda pair: (pair[0], labels_of(index.schema, pair[1])))
    return iter(WebLoader(source.batched(batch_size), batch_size=None, num_workers=workers))


class _Lit(litdata.StreamingDataset):
    """Decoded samples."""

    load: Any

    def __getitem__(self, place: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sample = super().__getitem__(place)
        labels = torch.from_numpy(np.frombuffer(sample["labels"], np.int64).copy())
        return torch.from_numpy(self.load(sample["picture"])), labels


def lit(folder: Path, load: Any, batch_size: int, workers: int) -> Stream:
    """Read with litdata's loader from its own format."""
    dataset = _Lit(str(folder), shuffle=True, seed=0)
    dataset.load = load
    return iter(litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers))


def write_litdata(index: ShardIndex, folder: Path) -> Path:
    """Write the same pictures as litdata chunks."""
    samples = [
        {"picture": sample.picture, "labels": sample.labels.tobytes()}
        for sample in iterate(index, "train")
    ]
    writer = litdata.streaming.Cache(str(folder), chunk_bytes="64MB")
    for number, sample in enumerate(samples):
        writer[number] = sample
    writer.done()
    writer.merge()
    return folder


def decoded(preprocess: Preprocess, content: bytes) -> np.ndarray:
    """Decode a picture to (S, S, 3) uint8 with our decoder."""
    picture = np.empty((preprocess.size, preprocess.size, 3), np.uint8)
    load_for_training(preprocess, content, "picture", picture)
    return picture


def decode_only(index: ShardIndex, load: Any, samples: int, workers: int) -> float:
    """Measure samples per second of `workers` processes that only decode pictures in RAM."""
    pictures = [sample.picture for sample, _ in zip(iterate(index, "train"), range(1000))]
    with multiprocessing.Pool(workers, torch.set_num_threads, (1,)) as pool:
        spans = pool.map(partial(_decode_all, pictures, load), [samples // workers] * workers, 1)
    return workers * (samples // workers) / max(spans)


def _decode_all(pictures: list[bytes], load: Any, samples: int) -> float:
    for picture in pictures[:50]:
        load(picture)
    started = time.perf_counter()
    for number in range(samples):
        load(pictures[number % len(pictures)])
    return time.perf_counter() - started


def labels_of(schema: Schema, record: Any) -> torch.Tensor:
    """Parse the labels (A,) int64 of a sample's JSON."""
    if isinstance(record, bytes):
        record = json_module.loads(record)
    return torch.from_numpy(schema.encode(record["labels"]))


@dataclass(frozen=True)
class _MadeUp:
    """A picture in RAM."""

    content: bytes

    def read(self) -> tuple[bytes, str]:
        return self.content, "jpg"

    def stamp(self) -> str:
        return ""


def make_shards(folder: Path, items: int) -> Path:
    """Make shards of 100 pictures of multi-scale noise, which compresses like photographs."""
    rng = np.random.default_rng(0)
    pictures: list[_MadeUp] = []
    for _ in range(100):
        layers = [
            Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((256, 320))
            for n in (3, 17, 90)
        ]
        pixels = np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        pictures.append(_MadeUp(buffer.getvalue()))
    attributes = [Attribute(f"attribute_{a}", ("a", "b", "c", "d")) for a in range(8)]
    catalogue = Catalogue(
        "noise",
        Schema(tuple(attributes)),
        [f"{number:06d}" for number in range(items)],
        rng.integers(0, 4, (items, 8)),
        ["train"] * items,
        lambda row: pictures[row % len(pictures)],
    )
    pack(catalogue, folder, PackOptions(items_per_shard=256), engine("processes", 1))
    return folder


if __name__ == "__main__":
    run_program(lambda: tyro.cli(measure))
