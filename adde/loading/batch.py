"""A batch of decoded samples as tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adde.shards.batches import BatchMetadata


@dataclass
class Batch:
    """b items: images (b, S, S, 3) uint8, labels (b, A) int64, and their ids."""

    images: Tensor
    labels: Tensor
    item_ids: list[str]
    faults: list[str] = field(default_factory=list)
    """Shard, position and reason of each unreadable sample."""
    substituted_rows: list[int] = field(default_factory=list)
    """Rows of unreadable samples; they hold another item of the same batch."""
    items: Tensor | None = None
    """(b,) int64 numbers on the CPU, equal for pictures of one item; None if each has one, and of
    batches that were joined."""

    @classmethod
    def of(cls, images: Tensor, metadata: BatchMetadata) -> "Batch":
        """Return the batch of pictures and their metadata."""
        labels = torch.from_numpy(metadata.labels)
        items = None if metadata.items is None else torch.from_numpy(metadata.items)
        lists = (metadata.item_ids, metadata.faults, metadata.substituted_rows)
        return cls(images, labels, *lists, items)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, without waiting for the copy."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def only(self, rows: Tensor) -> "Batch":
        """Return the rows of a (b,) bool mask; it must not keep any substituted rows."""
        ids = [item for item, kept in zip(self.item_ids, rows.tolist()) if kept]
        items = None if self.items is None else self.items[rows.to(self.items.device)]
        return Batch(self.images[rows], self.labels[rows], ids, items=items)


def join(batches: Iterator[Batch], count: int) -> Batch:
    """Concatenate the next `count` batches of equal length; free each once it is copied."""
    batch: Batch | None = next(batches)
    if count == 1:
        return batch
    size = len(batch.labels)
    images, labels = (
        tensor.new_empty(count * size, *tensor.shape[1:]) for tensor in (batch.images, batch.labels)
    )
    whole = Batch(images, labels, [])
    for number in range(count):
        batch = batch or next(batches)
        rows = slice(number * size, (number + 1) * size)
        images[rows], labels[rows] = batch.images, batch.labels
        whole.item_ids += batch.item_ids
        whole.faults += batch.faults
        whole.substituted_rows += [number * size + row for row in batch.substituted_rows]
        batch = None
    return whole
