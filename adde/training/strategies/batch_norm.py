"""Batch norms whose training statistics cover the micro-batches of all ranks."""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from adde.distributed import RankRows, world_size
from adde.training.batch_size import micro_batch
from adde.training.config import Config

MIN_LOCAL_ITEMS = 32
"""With fewer items per rank, local statistics are too noisy."""


def synchronise(model: nn.Module, config: Config, device: torch.device) -> None:
    """Synchronise the model's batch norms over all ranks if `config` asks for it.

    Names and shapes of the model's state do not change. GPUs use torch's SyncBatchNorm, which has
    no CPU kernel; on the CPU the same statistics are gathered by `RankRows`.
    """
    small = micro_batch(config.data, world_size()) < MIN_LOCAL_ITEMS
    wanted = config.batch_norm == "sync" or (config.batch_norm == "auto" and small)
    if world_size() == 1 or not wanted:
        return
    if device.type == "cuda":
        convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            _set_class(module, _OverRanksWithAct)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _set_class(module, _OverRanks)


def _set_class(module: Any, kind: type[nn.Module]) -> None:
    module.__class__ = kind


class _OverRanks(nn.modules.batchnorm._BatchNorm):
    """A batch norm over all ranks, in plain PyTorch operations."""

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) float."""
        return _normalise(self, input) if self.training else super().forward(input)


class _OverRanksWithAct(BatchNormAct2d):
    """timm's batch norm with an activation after it, over all ranks."""

    act: Any
    drop: Any

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) float."""
        return self.act(self.drop(_normalise(self, x))) if self.training else super().forward(x)


def _normalise(norm: Any, input: Tensor) -> Tensor:
    shape, over = (1, -1, *(1,) * (input.ndim - 2)), (0, *range(2, input.ndim))
    values = input.float()
    mean = values.mean(over)
    squares = (values - mean.view(shape)).square().mean(over)
    count = mean.new_full((1,), float(input.numel() // input.shape[1]))
    everyone = RankRows.equal(1).gather(torch.cat([mean, squares, count])[None])
    means, variances, counts = everyone.split([len(mean), len(mean), 1], dim=1)
    share = counts / counts.sum()
    # The total variance is that within ranks plus that between their means.
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    _update_running(norm, mean.detach(), variance.detach(), counts.detach().sum().item())
    normal = (values - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(input.dtype)


def _update_running(norm: Any, mean: Tensor, variance: Tensor, count: float) -> None:
    """Update the running statistics; the variance is unbiased, as in torch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * count / max(1.0, count - 1), momentum)
