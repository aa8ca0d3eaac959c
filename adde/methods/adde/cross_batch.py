"""A queue of past batches whose embeddings are further references of the label triplets.

Wang et al. (CVPR 2020), "Cross-Batch Memory for Embedding Learning". Anchors are the items of the
batch. Positives and negatives come from the batch and the queue, which holds the last `size` items
with their embeddings at the time, without gradient. A pair is an ordered (a, p) of an anchor and
another item with the same known label, from the batch or the queue; an older embedding of the
anchor's own picture counts as another item. Every pair counts once in the term's mean. The batch's
references come first; ties go to the lowest index.

Every rank queues the whole global batch, which mining gathers anyway, so all queues are equal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adde.schema import UNKNOWN
from adde.training.checkpoints.checkpoint import StoredTensor


@dataclass(frozen=True, kw_only=True)
class CrossBatch:
    """Use items of past batches as positives and negatives of both label triplet terms."""

    size: int = 0
    """Items in the queue, from all ranks; 0: no queue. Each rank stores 4 A D bytes per item."""

    warmup: int = 1000
    """Steps before the queue is used: early embeddings change too fast to be good references."""


class CrossBatchQueue:
    """The last `size` items' embeddings (size, A, D) float32 and labels (size, A) int64.

    The i-th item ever pushed is at i modulo `size`. Empty slots have the label UNKNOWN, which forms
    no pair.

    Args:
        settings: size and warm-up.
        batch_size: items in the global batch of a step.
        shape: A and D.
        device: of the embeddings.
    """

    def __init__(
        self, settings: CrossBatch, batch_size: int, shape: tuple[int, int], device: torch.device
    ) -> None:
        self._size, self._used_from = settings.size, settings.warmup * batch_size
        self._embeddings = torch.zeros(settings.size, *shape, device=device)
        self._labels = torch.full((settings.size, shape[0]), UNKNOWN, device=device)
        self._seen = 0

    def with_batch(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Append the queue to the batch's embeddings (M, A, D) and labels (M, A).

        During the warm-up, return the batch alone.
        """
        if self._seen < self._used_from:
            return embeddings, labels
        return torch.cat([embeddings, self._embeddings]), self.labels_with_batch(labels)

    def labels_with_batch(self, labels: Tensor) -> Tensor:
        """Return the labels of `with_batch`, which do not depend on the embeddings."""
        return labels if self._seen < self._used_from else torch.cat([labels, self._labels])

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Replace the oldest items by a global batch, (M, A, D) and (M, A).

        Items with a zero embedding, which stands for a non-finite one, lose their labels.
        """
        nothing = (embeddings == 0).flatten(1).all(1)
        labels = labels.masked_fill(nothing[:, None], UNKNOWN)
        count = min(len(labels), self._size)
        self._seen += len(labels)
        places = torch.arange(self._seen - count, self._seen, device=labels.device) % self._size
        self._embeddings[places] = embeddings[len(labels) - count :].float()
        self._labels[places] = labels[len(labels) - count :]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to checkpoint; the same on every rank."""
        seen = torch.tensor(self._seen)
        return {"embeddings": self._embeddings, "labels": self._labels, "seen": seen}

    def restore(self, tensors: dict[str, StoredTensor]) -> None:
        """Restore the output of `state`, on any number of ranks."""
        self._embeddings.copy_(tensors["embeddings"].whole())
        self._labels.copy_(tensors["labels"].whole())
        self._seen = int(tensors["seen"].whole())
