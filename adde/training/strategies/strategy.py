"""The interface of all strategies, and data parallelism (DDP)."""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from adde.distributed import rank, sum_over_ranks, world_size
from adde.training.checkpoints.checkpoint import StoredTensor
from adde.training.checkpoints.flat_shards import FlatShard, partition_replicated
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Averages, Rate, Snapshot, build_optimizer, set_rate
from adde.training.terms import Outputs
from adde.training.watching.profiling import part

Result = TypeVar("Result")


class Strategy:
    """The model and optimiser of one stage, as the training loop uses them.

    A `shard` is this rank's part of a parameter, in the form in which the strategy keeps it.

    Args:
        accelerator: of this process.
        model: the full model, with `requires_grad` set for the stage.
        config: of the run.
        rates: of the stage.
    """

    sharded = False
    """Whether ranks hold parts of parameters, gradients or optimiser state."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        config: Config,
        rates: Mapping[str, Rate] = NO_RATES,
    ) -> None:
        self._accelerator, self._settings = accelerator, config.optimizer
        self._rates = rates
        self._accumulation = config.data.accumulation
        self.model: Any = None
        self._module: Any = None
        self._optimizer: Any = None
        decay, warmup = config.optimizer.ema, config.optimizer.ema_warmup
        self.averaged = Averages(decay, warmup) if decay else None
        self.block_norms: dict[str, float] = {}
        """Norms of the last step's gradient by top-level submodule, before clipping."""
        self._open(model)
        self._buffers = Snapshot(list(self._module.buffers()))

    def _open(self, model: nn.Module) -> None:
        """Set `_module` (unwrapped), `model` (as it is called) and `_optimizer`."""
        raise NotImplementedError

    # A step

    def begin_step(self, rate: float) -> None:
        """Set the learning rate, and save the buffers in case the step is skipped."""
        set_rate(self._optimizer, rate)
        self._buffers.save()

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Wrap forward and backward; only the last micro-batch averages gradients over ranks."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add one micro-batch's share to the step's gradients."""
        with part("backward"):
            self._accelerator.backward(loss / self._accumulation)

    def step(self) -> float:
        """Clip, step, update averages, clear; return the gradient's global norm before clipping.

        If the norm, which is equal on all ranks, is NaN or infinite, the step is skipped: weights,
        optimiser, averages and running statistics do not change.
        """
        with part("optimiser"):
            norm = self._clip_and_step(self._settings.clip_norm or math.inf)
            if not math.isfinite(norm):
                self.restore_buffers()
            elif self.averaged is not None:
                self.averaged.update(self.state())
            if self.averaged is not None:
                self.averaged.steps += 1
        return norm

    @torch.no_grad()
    def forward_in_eval_mode(self, encode: Callable[[Any], Outputs]) -> Outputs:
        """Return what `encode` makes of the model in eval mode; on all ranks.

        The current step's gradients and buffers do not change.
        """
        self.model.eval()
        out = encode(self.model)
        self.model.train()
        return out

    @torch.no_grad()
    def forward_averaged(self, encode: Callable[[Any], Result]) -> Result | None:
        """Return what `encode` makes of the averaged weights, a function of the model's arguments.

        It is in eval mode. None before the stage's first step. Strategies that shard the averaged
        weights do not have it.
        """
        raise NotImplementedError

    def restore_buffers(self) -> None:
        """Restore the running statistics from before the step."""
        self._buffers.restore()

    def _clip_and_step(self, largest: float) -> float:
        self._accelerator.unscale_gradients()  # has an effect only in fp16
        norm = self._clip(largest)
        # fp16's GradScaler skips the step itself, and must be called to lower its scale.
        if math.isfinite(norm) or self._accelerator.scaler is not None:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def _clip(self, largest: float) -> float:
        """Scale gradients to a global norm of at most `largest`; return the norm before.

        Sets `block_norms`.
        """
        blocks: dict[str, list[Tensor]] = {}
        for name, parameter in self._module.named_parameters():
            if parameter.grad is not None:
                block = blocks.setdefault(name.partition(".")[0], [])
                block.append(self._shard(parameter.grad))
        norms = torch.stack([torch.nn.utils.get_total_norm(block) for block in blocks.values()])
        squares = norms.square()
        if self.sharded:
            squares = sum_over_ranks(squares)
        total = squares.sum().sqrt()
        if largest < math.inf:
            factor = (largest / (total + 1e-6)).clamp(max=1.0)
            for block in blocks.values():
                torch._foreach_mul_(block, factor)
        # One transfer to the host for all of them.
        norm, *parts = torch.cat([total[None], squares.sqrt()]).tolist()
        self.block_norms = dict(zip(blocks, parts))
        return norm

    # For evaluation and checkpoints: the same names and shapes under every strategy

    def state(self) -> dict[str, Tensor]:
        """Return this rank's shards of the parameters, and the persistent buffers."""
        parameters = {name: self._shard(p) for name, p in self._module.named_parameters()}
        stored = self._module.state_dict(keep_vars=True)
        return parameters | {n: b for n, b in self._module.named_buffers() if n in stored}

    @torch.no_grad()
    def gather_full_weights(
        self, model: nn.Module, tensors: dict[str, Tensor] | None = None
    ) -> None:
        """Gather the full state, or `tensors` in its layout, into `model`; on all ranks.

        Buffers are rank 0's, so that every rank evaluates what is saved.
        """
        parameters = dict(self._module.named_parameters())
        targets = model.state_dict(keep_vars=True)
        for name, value in (self.state() if tensors is None else tensors).items():
            if name in parameters:
                value = self._whole(parameters[name], value)
            elif world_size() > 1:
                value = value.clone()
                dist.broadcast(value, 0)
            if value.data_ptr() != targets[name].data_ptr():
                targets[name].copy_(value)

    def flat_shards(self) -> dict[str, FlatShard]:
        """Return what this rank writes of a checkpoint, without communication.

        A rank writes its shards and its share of the replicated tensors. Buffers and step counters
        may differ between ranks; rank 0 writes them.
        """
        parameters = dict(self._module.named_parameters())
        mine: dict[str, FlatShard] = {}
        replicated: dict[str, Tensor] = {}

        def add(name: str, value: Tensor, shard: FlatShard | None) -> None:
            if shard is None:
                replicated[name] = value
            elif len(shard.values):
                mine[name] = shard

        averages = self.averaged.tensors if self.averaged is not None else {}
        for kind, tensors in (("model", self.state()), ("ema", averages)):
            for name, value in tensors.items():
                if name in parameters:
                    add(f"{kind}/{name}", value, self._flat_shard(parameters[name], value))
                elif rank() == 0:
                    mine[f"{kind}/{name}"] = FlatShard.of(value)
        for name, parameter in parameters.items():
            for entry, value in self._entries(parameter).items():
                if value.ndim:
                    found = self._entry_flat_shard(parameter, value)
                    add(f"optimizer/{name}/{entry}", value, found)
                elif rank() == 0:
                    mine[f"optimizer/{name}/{entry}"] = FlatShard.of(value)
        return mine | partition_replicated(replicated)

    def restore(
        self, optimizer: dict[str, StoredTensor], averaged: dict[str, StoredTensor], steps: int
    ) -> None:
        """Restore the optimiser state, by "<parameter>/<entry>", and averages if there are any.

        `steps` is the number of steps of the stage so far.
        """
        parameters = dict(self._module.named_parameters())
        entries: dict[str, dict[str, StoredTensor]] = {}
        for key, value in optimizer.items():
            name, _, entry = key.rpartition("/")
            entries.setdefault(name, {})[entry] = value
        self._restore_entries({parameters[name]: found for name, found in entries.items()})
        if self.averaged is not None:
            self.averaged.steps = steps
        if self.averaged is not None and averaged:
            self.averaged.tensors = {
                name: self._read_local_shard(parameters[name], averaged[name])
                if name in parameters
                else averaged[name].whole().to(value.device)
                for name, value in self.state().items()
            }

    def close(self) -> None:
        """Release the model for another stage."""
        self._accelerator.free_memory()
        # Undo `prepare`, or the next stage would autocast twice or not at all. `unwrap_model` does
        # the same, but imports DeepSpeed, which warns on machines without a GPU.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            self._module.__dict__.pop(name, None)

    # The layout, which subclasses define

    def _shard(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a parameter or of its optimiser state."""
        raise NotImplementedError

    def _whole(self, parameter: Tensor, shard: Tensor) -> Tensor:
        """Gather all ranks' shards as one tensor of the parameter's shape; on all ranks."""
        raise NotImplementedError

    def _flat_shard(self, parameter: Tensor, shard: Tensor) -> FlatShard | None:
        """Return the elements that this rank's shard of a parameter holds; None if replicated."""
        raise NotImplementedError

    def _read_local_shard(self, parameter: Tensor, stored: StoredTensor) -> Tensor:
        """Read this rank's shard of a tensor of the parameter's shape, onto the same device."""
        raise NotImplementedError

    def _entry_flat_shard(self, parameter: Tensor, value: Tensor) -> FlatShard | None:
        """The same for a value of `_entries`."""
        return self._flat_shard(parameter, self._shard(value))

    def _entries(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return this rank's optimiser state of a parameter."""
        state = self._optimizer.state.get(parameter, {})
        return {entry: value for entry, value in state.items() if isinstance(value, Tensor)}

    def _restore_entries(self, entries: dict[Tensor, dict[str, StoredTensor]]) -> None:
        state = {
            parameter: {
                # Step counts too: the fused AdamW keeps them on the parameter's device.
                entry: self._read_local_shard(parameter, stored)
                if stored.shape
                else stored.whole().to(parameter.device)
                for entry, stored in found.items()
            }
            for parameter, found in entries.items()
        }
        self._optimizer.state.clear()
        self._optimizer.state.update(state)


class DataParallel(Strategy):
    """The full model on every rank, trained in place; gradients are averaged (DDP)."""

    def _open(self, model: nn.Module) -> None:
        self._module = model
        optimizer = build_optimizer(self._settings, model, self._rates)
        self.model, self._optimizer = self._accelerator.prepare(model, optimizer)

    @torch.no_grad()
    def forward_averaged(self, encode: Callable[[Any], Result]) -> Result | None:
        """As `Strategy.forward_averaged`."""
        averages = self.averaged.tensors if self.averaged is not None else {}
        if not averages:
            return None
        self._module.eval()
        found = encode(lambda *inputs: functional_call(self._module, averages, inputs))
        self._module.train()
        return found

    def _shard(self, tensor: Tensor) -> Tensor:
        return tensor

    def _whole(self, parameter: Tensor, shard: Tensor) -> Tensor:
        return shard

    def _flat_shard(self, parameter: Tensor, shard: Tensor) -> FlatShard | None:
        return None

    def _read_local_shard(self, parameter: Tensor, stored: StoredTensor) -> Tensor:
        # The fused AdamW assumes that its state has the memory layout of the parameter.
        return torch.empty_like(parameter.detach()).copy_(stored.whole())


def clone_sharing_storage(model: nn.Module) -> nn.Module:
    """Copy a model; its parameters share memory with the original until they are moved."""
    parameters = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, parameters)
