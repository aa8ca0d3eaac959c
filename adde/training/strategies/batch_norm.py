"""Batch norms whose training statistics are those of the micro-batches of all ranks."""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from adde.distributed import RankRows, world_size
from adde.training.batch_size import micro_batch
from adde.training.config import Config

SMALL = 32
"""Items on a rank below which its own statistics are too noisy."""


def synchronise(model: nn.Module, config: Config, device: torch.device) -> None:
    """Has the model's batch norms work over all ranks, where `config` wants that.

    Names and shapes of the model's state stay. On GPUs they become torch's SyncBatchNorm, which
    has no CPU kernel; on the CPU the same sums go through the project's own gather.
    """
    small = micro_batch(config.data, world_size()) < SMALL
    wanted = config.batch_norm == "sync" or (config.batch_norm == "auto" and small)
    if world_size() == 1 or not wanted:
        return
    if device.type == "cuda":
        convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            _turn(module, _OverRanksWithAct)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _turn(module, _OverRanks)


def _turn(module: Any, kind: type[nn.Module]) -> None:
    module.__class__ = kind


class _OverRanks(nn.modules.batchnorm._BatchNorm):
    """A batch norm over all ranks, in plain operations."""

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, ...) float."""
        return _normalise(self, input) if self.training else super().forward(input)


class _OverRanksWithAct(BatchNormAct2d):
    """timm's batch norm with an activation behind it, over all ranks."""

    act: Any
    drop: Any

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W) float."""
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
    # The variance of all: that within ranks and that between their means.
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    _remember(norm, mean.detach(), variance.detach(), counts.detach().sum().item())
    normal = (values - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(input.dtype)


def _remember(norm: Any, mean: Tensor, variance: Tensor, count: float) -> None:
    """Running statistics; the variance unbiased, as torch keeps it."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * count / max(1.0, count - 1), momentum)
