"""The only collectives over embeddings: everything in global-batch order, on any rank count."""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 where no process group is up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 where no process group is up."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order: (n, ...) on each, the same n, gives (N n, ...) on all.

    The gradient is the sum over ranks of what each one's loss says about these rows. With a loss
    that is a sum over local anchors, every rank thus receives the gradient of the global sum.
    """
    if world_size() == 1:
        return rows
    if not rows.requires_grad:
        gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered
    everyone = dist.group.WORLD
    assert everyone is not None
    return functional.all_gather_tensor_autograd(rows.contiguous(), gather_dim=0, group=everyone)


def gather_uneven(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order where ranks may hold different numbers; no gradient."""
    if world_size() == 1:
        return rows
    counts = gather_rows(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = gather_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum over ranks; no gradient."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def local_rows(global_rows: Tensor, count: int) -> Tensor:
    """This rank's `count` rows of a tensor in global-batch order."""
    return global_rows[rank() * count : (rank() + 1) * count]
