"""Pictures that methods read for their displays, and the files that they show."""

import io
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adde.distributed import RankRows, rank, world_size
from adde.preprocess import Picture, Preprocess
from adde.schema import Labels
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder


def scaled(images: Tensor, channels: int = 3) -> Tensor:
    """(b, S, S, 3) uint8 as (b, channels, S, S) float32 in 0..1; one channel is the mean."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return pixels if channels == 3 else pixels.mean(1, keepdim=True)


def spread_items(
    preprocess: Preprocess, index: ShardIndex, split: str, count: int, rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Read `count` items spread evenly over a split, or all if it has fewer.

    Args:
        preprocess: of the pictures.
        index: of the shards.
        split: of the index.
        count: number of items.
        rows: which of them to read.

    Returns:
        Pictures (n, S, S, 3) uint8 and labels (n, A) int64, on the CPU.

    Raises:
        UserError: a sample cannot be read.
    """
    shards = index.split(split)
    samples = tuple(shard.samples for shard in shards)
    total = sum(samples)
    places = StoredOrder(samples, total)(0)
    chosen = np.unique(np.linspace(0, total - 1, count).astype(np.int64))[rows]
    reader = ShardReader(index)
    pictures: list[Picture] = []
    labels: list[Labels] = []
    for shard, position in places[chosen].tolist():
        sample = reader.read(shards[shard], position)
        pictures.append(preprocess.load(sample.picture, sample.where))
        labels.append(sample.labels)
    reader.close()
    if not pictures:
        side = preprocess.size
        none = torch.empty((0, side, side, 3), dtype=torch.uint8)
        return none, torch.empty((0, len(index.schema.sizes)), dtype=torch.int64)
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(labels))


def share_items(count: int) -> tuple[RankRows, slice]:
    """Share `count` items out among the ranks; also return this rank's rows."""
    ends = [count * number // world_size() for number in range(world_size() + 1)]
    ranks = RankRows(tuple(stop - first for first, stop in pairwise(ends)))
    return ranks, slice(ends[rank()], ends[rank() + 1])


def as_bytes(pictures: Tensor) -> Tensor:
    """Return pictures (n, C, S, S) in 0..1 as (n, S, S, C) uint8; values outside are clipped."""
    return (255 * pictures.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).contiguous()


def png_files(pictures: Tensor) -> list[bytes]:
    """Encode (n, C, S, S) in 0..1 as PNG files; values outside are clipped."""
    found: list[bytes] = []
    for picture in as_bytes(pictures).cpu().numpy():
        content = io.BytesIO()
        # One channel is told by its missing axis.
        Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0]).save(content, "PNG")
        found.append(content.getvalue())
    return found


def line(pictures: Tensor) -> list[tuple[bytes, bool]]:
    """Return pictures (n, C, S, S) in 0..1 as a line of `PictureRow`, none marked."""
    return [(file, False) for file in png_files(pictures)]
