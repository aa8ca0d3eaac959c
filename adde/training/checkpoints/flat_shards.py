"""A checkpoint's tensors as its ranks hold them: runs of elements of named tensors.

Every strategy's part of a tensor is such a run in row-major order: FSDP2's rows, ZeRO's pieces of
flat groups, or, where all ranks have it whole, all of it. One rule thus serves all of them, in
files that name the run (`saving.py`), and any run is read from those of any other strategy and
number of ranks (`checkpoint.py`). torch.distributed.checkpoint was looked at for this: it knows
blocks of tensors, and ZeRO 1 to 3 would need planners of our own for its runs; and its saving
plans by collectives of all ranks, which a rank that dies leaves hanging beside the training.
"""

from typing import NamedTuple

from torch import Tensor

from adde.distributed import rank, world_size


class Piece(NamedTuple):
    """Elements `start` to `start + len(values)` of a tensor of that shape, in row-major order."""

    values: Tensor
    """(n,)"""
    start: int
    shape: tuple[int, ...]


def whole(tensor: Tensor) -> Piece:
    """All of a tensor."""
    return Piece(tensor.detach().reshape(-1), 0, tuple(tensor.shape))


def shares(tensors: dict[str, Tensor]) -> dict[str, Piece]:
    """Those that this rank writes of tensors that all ranks have alike, with the same names.

    The largest go first, each to the rank that has the fewest bytes so far.
    """
    loads = [0] * world_size()
    mine: dict[str, Piece] = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        least = loads.index(min(loads))
        loads[least] += tensors[name].nbytes
        if least == rank():
            mine[name] = whole(tensors[name])
    return mine


def snapshot(pieces: dict[str, Piece]) -> dict[str, Piece]:
    """Copies in the CPU's memory, which training does not touch any more."""
    return {
        name: piece._replace(values=piece.values.detach().to("cpu", copy=True))
        for name, piece in pieces.items()
    }
