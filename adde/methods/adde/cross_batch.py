"""Embeddings of past batches as further columns of the label triplets (cross-batch memory).

Wang et al. (CVPR 2020), "Cross-Batch Memory for Embedding Learning". Anchors are the items of the
batch; positives and negatives are those of the batch and of the last `size` items before it, as
they were embedded then, without a gradient. A pair is an ordered (a, p) of an anchor of the batch
and another item of the same known label, of the batch or remembered; an older embedding of the
anchor's own picture is such another item. Every pair counts once in the term's mean. Columns stand
batch first; of equal distances the lowest column is taken.

Every rank remembers the whole global batch, which mining gathers anyway: all have the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adde.schema import UNKNOWN
from adde.training.checkpoints.checkpoint import StoredTensor


@dataclass(frozen=True, kw_only=True)
class CrossBatch:
    """Items of past batches among the positives and negatives of both label triplet terms."""

    size: int = 0
    """Items remembered, of all ranks; 0: none. Each rank keeps 4 A D bytes of every one."""

    warmup: int = 1000
    """Steps before they are used: embeddings that still move fast mislead."""


class CrossBatchMemory:
    """The last `size` items' embeddings (size, A, D) float32 and labels (size, A) int64.

    Item number i of all that were ever pushed stands at i modulo `size`; what is still empty has
    the label UNKNOWN, which forms no pair.

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

    def beside(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's embeddings (M, A, D) and labels (M, A) and, below, those remembered.

        Until the warm-up's steps are over it is the batch alone.
        """
        if self._seen < self._used_from:
            return embeddings, labels
        return torch.cat([embeddings, self._embeddings]), self.labels_beside(labels)

    def labels_beside(self, labels: Tensor) -> Tensor:
        """The labels of `beside`, for which the batch need not be encoded yet."""
        return labels if self._seen < self._used_from else torch.cat([labels, self._labels])

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remembers a global batch, (M, A, D) and (M, A), in the place of the oldest items.

        Items whose embedding is zero, as NaN is mined, are remembered without labels.
        """
        nothing = (embeddings == 0).flatten(1).all(1)
        labels = labels.masked_fill(nothing[:, None], UNKNOWN)
        count = min(len(labels), self._size)
        self._seen += len(labels)
        places = torch.arange(self._seen - count, self._seen, device=labels.device) % self._size
        self._embeddings[places] = embeddings[len(labels) - count :].float()
        self._labels[places] = labels[len(labels) - count :]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; the same on every rank."""
        seen = torch.tensor(self._seen)
        return {"embeddings": self._embeddings, "labels": self._labels, "seen": seen}

    def restore(self, tensors: dict[str, StoredTensor]) -> None:
        """Puts back what `state` gave, on any number of ranks."""
        self._embeddings.copy_(tensors["embeddings"].whole())
        self._labels.copy_(tensors["labels"].whole())
        self._seen = int(tensors["seen"].whole())
