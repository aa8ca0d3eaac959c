"""Flat shards: the form in which ranks write tensors to a checkpoint.

A flat shard is a contiguous range of a tensor's elements in row-major order. Under every strategy a
rank's part of a tensor has this form: rows (FSDP2), partitions of flat groups (ZeRO), or all of it
where the tensor is replicated. `saving.py` writes flat shards and `checkpoint.py` reads any range
of elements back, under any strategy and number of ranks.

torch.distributed.checkpoint was tried instead. It loads a file with a flipped bit without an error,
and it pickles its metadata, so that reading a checkpoint may execute code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from adde.distributed import rank, world_size


class FlatShard(NamedTuple):
    """Elements `start` to `start + len(values)` of a tensor in row-major order."""

    values: Tensor
    """(n,)"""
    start: int
    shape: tuple[int, ...]
    """Shape of the full tensor."""

    @classmethod
    def of(cls, tensor: Tensor) -> "FlatShard":
        """All elements of a tensor."""
        return cls(tensor.detach().reshape(-1), 0, tuple(tensor.shape))


def partition_replicated(tensors: dict[str, Tensor]) -> dict[str, FlatShard]:
    """Select the tensors that this rank writes, of those that all ranks hold.

    Tensors go in order of decreasing size, each to the rank with the fewest bytes so far.
    """
    assigned = [0] * world_size()
    mine: dict[str, FlatShard] = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        least = assigned.index(min(assigned))
        assigned[least] += tensors[name].nbytes
        if least == rank():
            mine[name] = FlatShard.of(tensors[name])
    return mine


class HostBuffers:
    """Copies of flat shards in host memory, which training does not change.

    The memory is kept between checkpoints: allocating it anew takes several times as long as
    copying.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, shards: dict[str, FlatShard]) -> dict[str, FlatShard]:
        """Copy the shards; overwrites the copies of the call before."""
        self._buffers = {name: self._buffer(name, shard.values) for name, shard in shards.items()}
        return {
            name: shard._replace(values=self._buffers[name].copy_(shard.values.detach()))
            for name, shard in shards.items()
        }

    def _buffer(self, name: str, values: Tensor) -> Tensor:
        kept = self._buffers.get(name)
        if kept is not None and (kept.shape, kept.dtype) == (values.shape, values.dtype):
            return kept
        return torch.empty_like(values, device="cpu", requires_grad=False)
