"""Squared Euclidean distances through one matrix product."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def accumulator(tensor: Tensor) -> Tensor:
    """The tensor in the precision mining computes in: float64 stays, all else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Products without autocast and without TF32: negatives are told apart by last digits.

    TF32 is switched on by whoever sets it: Accelerate with a dynamo backend, some containers.
    """
    matmul = torch.backends.cuda.matmul
    no_autocast = torch.autocast(tensor.device.type, enabled=False)
    if torch.compiler.is_compiling():  # TF32 is no part of a graph
        with no_autocast:
            yield
        return
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        with no_autocast:
            yield
    finally:
        matmul.fp32_precision = before


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(G, N, M) |row - column|^2 >= 0 of rows (G, N, D) and columns (G, M, D).

    Rounding gives equal vectors a distance of about +-1e-7; what falls below zero is zero.
    """
    row_norms = rows.square().sum(-1, keepdim=True)
    column_norms = columns.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(row_norms + column_norms, rows, columns.mT, alpha=-2.0).clamp_(min=0)
