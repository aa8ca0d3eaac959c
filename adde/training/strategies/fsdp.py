"""FSDP2: torch's `fully_shard` shards parameters, gradients and optimiser state over ranks.

It is called here, not through Accelerate, which silently wraps nothing on the CPU: GPUs and the CPU
tests use one code path. Mixed precision is autocast, as under the other strategies: weights are
communicated in float32, and a step gives the same figures as under DDP.
"""

import contextlib
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from adde.distributed import rank, world_size
from adde.training.checkpoints.checkpoint import StoredTensor
from adde.training.checkpoints.flat_shards import FlatShard
from adde.training.optimisation import build_optimizer
from adde.training.strategies.strategy import Strategy, clone_sharing_storage
from adde.training.terms import Outputs

SMALLEST_BLOCK = 1 << 16
"""Parameters from which a block gets collectives of its own, which overlap with other blocks."""


class FullyShard(Strategy):
    """Every rank holds its rows of each parameter; a block is gathered while it computes."""

    sharded = True

    def _open(self, model: nn.Module) -> None:
        # fully_shard needs contiguous parameters; convolutions still compute channels-last.
        module = clone_sharing_storage(model).to(memory_format=torch.contiguous_format)
        mesh = init_device_mesh(self._accelerator.device.type, (world_size(),))
        # Each block is moved to the device and sharded there before the next one.
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        self._module = module
        # Only autocast around forward, no other wrapper.
        self.model = self._accelerator.prepare_model(
            module, device_placement=False, evaluation_mode=True
        )
        self._optimizer = build_optimizer(self._settings, module, self._rates)

    @contextlib.contextmanager
    def _without_sync(self) -> Iterator[None]:
        self._module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._module.set_requires_gradient_sync(True)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Keep unsharded gradients until the last micro-batch of a step."""
        return contextlib.nullcontext() if last else self._without_sync()

    def forward_in_eval_mode(self, encode: Callable[[Any], Outputs]) -> Outputs:
        """As `Strategy.forward_in_eval_mode`."""
        out = super().forward_in_eval_mode(encode)
        # Without a backward pass the root's weights would stay gathered, and the optimiser would
        # look for gradients there.
        self._module.reshard()
        return out

    def _shard(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        local: Any = tensor.detach()
        return local.to_local()

    def _whole(self, parameter: Any, shard: Tensor) -> Tensor:
        return DTensor.from_local(
            shard,
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        ).full_tensor()

    def _flat_shard(self, parameter: Any, shard: Tensor) -> FlatShard:
        # Every rank has the same number of rows; the last ranks may have fewer or none.
        rows = -(-parameter.shape[0] // world_size()) * rank()
        start = min(rows, parameter.shape[0]) * prod(parameter.shape[1:])
        return FlatShard(shard.reshape(-1), start, tuple(parameter.shape))

    def _read_local_shard(self, parameter: Any, stored: StoredTensor) -> Tensor:
        local = parameter.detach().to_local()
        start = self._flat_shard(parameter, local).start
        values = stored.read(start, start + local.numel())
        return values.view(local.shape).to(local.device)

    def _restore_entries(self, entries: dict[Tensor, dict[str, StoredTensor]]) -> None:
        super()._restore_entries(entries)
        for parameter, state in self._optimizer.state.items():
            for entry, value in state.items():
                if value.ndim:
                    state[entry] = DTensor.from_local(
                        value,
                        parameter.device_mesh,
                        parameter.placements,
                        shape=parameter.shape,
                        stride=parameter.stride(),
                    )


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a timm model that get own collectives, innermost first.

    These are composite elements of a Sequential or ModuleList, which model code calls as a whole.
    """
    found: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    for container in reversed(list(backbone.modules())):
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        for block in container.children():
            if isinstance(block, nn.Sequential | nn.ModuleList) or not list(block.children()):
                continue
            own = [p for p in block.parameters() if p not in taken]
            if block not in found and sum(p.numel() for p in own) >= SMALLEST_BLOCK:
                found.append(block)
                taken.update(own)
    return found
