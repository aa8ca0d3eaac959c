"""FSDP2: parameters, gradients and optimiser cut over ranks by torch's `fully_shard`.

Called here and not through Accelerate, which wraps nothing on the CPU and says nothing: one code
path serves GPUs and the CPU tests. Mixed precision is autocast, as everywhere else, so that
weights travel in float32 and a step's figures are those of DDP.
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
from adde.training.checkpoints.checkpoint import Stored
from adde.training.checkpoints.flat_shards import Piece
from adde.training.optimisation import build_optimizer
from adde.training.strategies.replicated import Replicated, over
from adde.training.terms import Outputs

SMALLEST_BLOCK = 1 << 16
"""Parameters from which a block has collectives of its own, overlapped with its neighbours'."""


class FullyShard(Replicated):
    """Every rank holds its rows of each parameter; blocks are made whole while they compute."""

    sharded = True

    def _open(self, plain: nn.Module) -> None:
        # fully_shard takes contiguous parameters only; convolutions still compute channels-last.
        bare = over(plain).to(memory_format=torch.contiguous_format)
        mesh = init_device_mesh(self._accelerator.device.type, (world_size(),))
        # Moves each block to the device and cuts it there before it comes to the next.
        for block in blocks(bare):
            fully_shard(block, mesh=mesh)
        fully_shard(bare, mesh=mesh)
        self._bare = bare
        # Autocast around forward, and no other wrapper.
        self.model = self._accelerator.prepare_model(
            bare, device_placement=False, evaluation_mode=True
        )
        self._optimizer = build_optimizer(self._settings, bare, self._rates)

    @contextlib.contextmanager
    def _without_sync(self) -> Iterator[None]:
        self._bare.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._bare.set_requires_gradient_sync(True)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients stay whole until a step's last micro-batch."""
        return contextlib.nullcontext() if last else self._without_sync()

    def look(self, encode: Callable[[Any], Outputs]) -> Outputs:
        """As for the others."""
        out = super().look(encode)
        # Without a backward pass to do so, the outermost weights would stay whole, and gradients
        # would be looked for there.
        self._bare.reshard()
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

    def _piece(self, parameter: Any, shard: Tensor) -> Piece:
        # Rows are shared out in runs of as many on every rank, the last ones' shorter or empty.
        rows = -(-parameter.shape[0] // world_size()) * rank()
        start = min(rows, parameter.shape[0]) * prod(parameter.shape[1:])
        return Piece(shard.reshape(-1), start, tuple(parameter.shape))

    def _cut(self, parameter: Any, stored: Stored) -> Tensor:
        local = parameter.detach().to_local()
        start = self._piece(parameter, local).start
        values = stored.read(start, start + local.numel())
        return values.view(local.shape).to(local.device)

    def _restore_entries(self, entries: dict[Tensor, dict[str, Stored]]) -> None:
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
    """The repeated blocks of a timm model, innermost first, that are worth a collective each.

    Those are composite elements of a Sequential or ModuleList: what model code calls as a whole.
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
