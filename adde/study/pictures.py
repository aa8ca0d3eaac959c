"""A split's pictures in memory, as uint8 on the training device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adde.preprocess import Preprocess
from adde.schema import Labels
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.reader import iterate


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures and labels of a split, in stored order."""

    images: Tensor
    """(N, S, S, 3) uint8."""
    labels: Labels
    """(N, K) int64."""
    starts: Labels
    """Row of each shard's first picture."""

    def rows(self, order: SampleOrder, step: int) -> Tensor:
        """Return the rows (batch_size,) of a global batch."""
        shards, places = order.batch(step).T
        return torch.from_numpy(self.starts[shards] + places)


def read_pictures(index: ShardIndex, split: str, size: int, device: torch.device) -> Pictures:
    """Decode a split.

    Args:
        index: of the shards.
        split: name.
        size: side of the pictures in pixels.
        device: that holds them.
    """
    preprocess = Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "pad")
    samples = tuple(shard.samples for shard in index.split(split))
    images = np.empty((sum(samples), size, size, 3), np.uint8)
    labels = np.empty((len(images), len(index.schema.sizes)), np.int64)
    for row, sample in enumerate(iterate(index, split)):
        images[row], labels[row] = preprocess.load(sample.picture), sample.labels
    starts = np.cumsum([0, *samples[:-1]])
    return Pictures(torch.from_numpy(images).to(device), labels, starts)
