"""Layers that compute in float32 under autocast."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_float32(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Decorate a module's `forward` to compute in float32 whatever autocast says.

    Without autocast nothing changes, not even in an exported graph.
    """

    @functools.wraps(forward)
    def wrapped(self: Any, x: Tensor) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return forward(self, x)
        with torch.autocast(device, enabled=False):
            return forward(self, x.float())

    return wrapped
