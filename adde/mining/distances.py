"""Squared Euclidean distances through one matrix product."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def as_accumulated(tensor: Tensor) -> Tensor:
    """Convert to the precision of mining: float64 is kept, all else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32, which rounds the factors of float32 products and convolutions.

    torch's default is TF32 in convolutions only.
    """
    with warnings.catch_warnings():
        # Some releases recommend `fp32_precision` instead, which torch.compile cannot read.
        warnings.simplefilter("ignore", UserWarning)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Disable autocast and TF32 for products and convolutions.

    In mining, negatives differ in the last digits; metrics must be those of the served model. TF32
    may have been enabled by a recipe, by Accelerate with a dynamo backend, or by a container.
    """
    cudnn: Any = torch.backends.cudnn  # its stubs lag behind
    switches = (torch.backends.cuda.matmul, cudnn.conv)
    no_autocast = torch.autocast(tensor.device.type, enabled=False)
    if torch.compiler.is_compiling():  # a graph does not record TF32 settings
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
    """Compute |row - column|^2 >= 0 (G, N, M) of rows (G, N, D) and columns (G, M, D).

    Rounding gives equal vectors a distance of about +-1e-7; negative results become zero.
    """
    row_norms = rows.square().sum(-1, keepdim=True)
    column_norms = columns.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(row_norms + column_norms, rows, columns.mT, alpha=-2.0).clamp_(min=0)
