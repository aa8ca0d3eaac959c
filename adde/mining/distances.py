"""Squared Euclidean distances through one matrix product."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def as_accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the precision mining computes in: float64 stays, all else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU rounds the factors of float32 products and convolutions to 10 bits.

    Without being told, torch does in convolutions and does not in products.
    """
    with warnings.catch_warnings():
        # Some releases ask for the names below instead, under which torch.compile cannot read it.
        warnings.simplefilter("ignore", UserWarning)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Products and convolutions without autocast and without TF32.

    In mining negatives are told apart by last digits; figures are those of what is served. TF32 is
    switched on by whoever sets it: a recipe, Accelerate with a dynamo backend, some containers.
    """
    cudnn: Any = torch.backends.cudnn  # its stubs lag behind
    switches = (torch.backends.cuda.matmul, cudnn.conv)
    no_autocast = torch.autocast(tensor.device.type, enabled=False)
    if torch.compiler.is_compiling():  # TF32 is no part of a graph
        with no_autocast:
            yield
        return
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with no_autocast:
            yield
    finally:
        for switch, precision in zip(switches, before):
            switch.fp32_precision = precision


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(G, N, M) |row - column|^2 >= 0 of rows (G, N, D) and columns (G, M, D).

    Rounding gives equal vectors a distance of about +-1e-7; what falls below zero is zero.
    """
    row_norms = rows.square().sum(-1, keepdim=True)
    column_norms = columns.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(row_norms + column_norms, rows, columns.mT, alpha=-2.0).clamp_(min=0)
