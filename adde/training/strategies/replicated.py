"""The whole model on every rank, gradients averaged (DDP); and what every strategy can do."""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from adde.distributed import rank, sum_over_ranks, world_size
from adde.training.checkpoints.checkpoint import Stored
from adde.training.checkpoints.flat_shards import Piece, shares, whole
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Averages, Kept, Rate, build_optimizer, set_rate
from adde.training.terms import Outputs
from adde.training.watching.profiling import part


class Replicated:
    """One stage's model and optimiser, as the loop uses them.

    Other strategies override what lies elsewhere. `shard` below is this rank's part of a
    parameter, in whatever form the strategy keeps it; here it is the parameter.

    Args:
        accelerator: of this process.
        plain: the model as it stands, whole, with `requires_grad` as the stage wants it; here it
            is trained in place.
        config: of the run.
        rates: of the stage.
    """

    sharded = False
    """Whether the model that is trained is another than `plain`."""

    def __init__(
        self,
        accelerator: Accelerator,
        plain: nn.Module,
        config: Config,
        rates: Mapping[str, Rate] = NO_RATES,
    ) -> None:
        self._accelerator, self._settings = accelerator, config.optimizer
        self._rates = rates
        self._accumulation = config.data.accumulation
        self.model: Any = None
        self._bare: Any = None
        self._optimizer: Any = None
        self.averaged = Averages(config.optimizer.ema) if config.optimizer.ema else None
        self.block_norms: dict[str, float] = {}
        """Norms of the last step's gradient by part of the model, before clipping."""
        self._open(plain)
        self._buffers = Kept(list(self._bare.buffers()))

    def _open(self, plain: nn.Module) -> None:
        self._bare = plain
        optimizer = build_optimizer(self._settings, plain, self._rates)
        self.model, self._optimizer = self._accelerator.prepare(plain, optimizer)

    # A step

    def begin_step(self, rate: float) -> None:
        """Sets the learning rate of all groups, and remembers what a void step must not change."""
        set_rate(self._optimizer, rate)
        self._buffers.keep()

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward: gradients are averaged over ranks with the last only."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Adds one micro-batch's share to the step's gradients."""
        with part("backward"):
            self._accelerator.backward(loss / self._accumulation)

    def step(self) -> float:
        """Clips, steps, averages, clears; returns the gradient's global norm before clipping.

        Where that is NaN or infinite, which all ranks see alike, the step is void: weights,
        optimiser, averages and running statistics stay as they were.
        """
        with part("optimiser"):
            norm = self._clip_and_step(self._settings.clip_norm or math.inf)
            if not math.isfinite(norm):
                self.undo_buffers()
            elif self.averaged is not None:
                self.averaged.update(self.state())
        return norm

    @torch.no_grad()
    def look(self, encode: Callable[[Any], Outputs]) -> Outputs:
        """What `encode` makes of the model in eval mode; the step under way is not disturbed.

        On all ranks.
        """
        self.model.eval()
        out = encode(self.model)
        self.model.train()
        return out

    def undo_buffers(self) -> None:
        """Puts back the running statistics from before the step."""
        self._buffers.undo()

    def _clip_and_step(self, largest: float) -> float:
        self._accelerator.unscale_gradients()  # only in fp16 is there anything to it
        norm = self._clip(largest)
        # fp16's GradScaler skips by itself, and must be asked in order to lower its scale.
        if math.isfinite(norm) or self._accelerator.scaler is not None:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def _clip(self, largest: float) -> float:
        """Scales gradients so that their global norm is `largest` at most; returns that norm
        before, and leaves that of each of the model's blocks in `block_norms`.
        """
        blocks: dict[str, list[Tensor]] = {}
        for name, parameter in self._bare.named_parameters():
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
        # One transfer for all of them.
        norm, *parts = torch.cat([total[None], squares.sqrt()]).tolist()
        self.block_norms = dict(zip(blocks, parts))
        return norm

    # What evaluation and checkpoints need: the same names and shapes under every strategy

    def state(self) -> dict[str, Tensor]:
        """This rank's shards of the parameters, and the persistent buffers, as they lie."""
        parameters = {name: self._shard(p) for name, p in self._bare.named_parameters()}
        stored = self._bare.state_dict(keep_vars=True)
        return parameters | {n: b for n, b in self._bare.named_buffers() if n in stored}

    @torch.no_grad()
    def copy_to(self, plain: nn.Module, tensors: dict[str, Tensor] | None = None) -> None:
        """Writes the whole state, or `tensors` that lie as it does, into `plain`; on all ranks.

        Buffers are those of rank 0, so that every rank evaluates what is saved.
        """
        parameters = dict(self._bare.named_parameters())
        targets = plain.state_dict(keep_vars=True)
        for name, value in (self.state() if tensors is None else tensors).items():
            if name in parameters:
                value = self._whole(parameters[name], value)
            elif world_size() > 1:
                value = value.clone()
                dist.broadcast(value, 0)
            if value.data_ptr() != targets[name].data_ptr():
                targets[name].copy_(value)

    def pieces(self) -> dict[str, Piece]:
        """What this rank writes of a checkpoint; asks no other rank.

        Where weights are cut over the ranks, its own part; of what all have alike, its share.
        Buffers and counters, which may differ (statistics of its own items), are the main rank's.
        """
        parameters = dict(self._bare.named_parameters())
        mine: dict[str, Piece] = {}
        alike: dict[str, Tensor] = {}

        def add(name: str, value: Tensor, piece: Piece | None) -> None:
            if piece is None:
                alike[name] = value
            elif len(piece.values):
                mine[name] = piece

        averages = self.averaged.tensors if self.averaged is not None else {}
        for kind, tensors in (("model", self.state()), ("ema", averages)):
            for name, value in tensors.items():
                if name in parameters:
                    add(f"{kind}/{name}", value, self._piece(parameters[name], value))
                elif rank() == 0:
                    mine[f"{kind}/{name}"] = whole(value)
        for name, parameter in parameters.items():
            for entry, value in self._entries(parameter).items():
                if value.ndim:
                    found = self._entry_piece(parameter, value)
                    add(f"optimizer/{name}/{entry}", value, found)
                elif rank() == 0:
                    mine[f"optimizer/{name}/{entry}"] = whole(value)
        return mine | shares(alike)

    def restore(self, optimizer: dict[str, Stored], averaged: dict[str, Stored]) -> None:
        """Puts back an optimiser's state, "<parameter>/<entry>", and averages where there are."""
        parameters = dict(self._bare.named_parameters())
        entries: dict[str, dict[str, Stored]] = {}
        for key, value in optimizer.items():
            name, _, entry = key.rpartition("/")
            entries.setdefault(name, {})[entry] = value
        self._restore_entries({parameters[name]: found for name, found in entries.items()})
        if self.averaged is not None and averaged:
            self.averaged.tensors = {
                name: self._cut(parameters[name], averaged[name])
                if name in parameters
                else averaged[name].whole().to(value.device)
                for name, value in self.state().items()
            }

    def close(self) -> None:
        """Lets go of the model, which another strategy or stage may then take."""
        self._accelerator.free_memory()
        self._accelerator.unwrap_model(self._bare, keep_fp32_wrapper=False)
        # Still marked as prepared, it would be left as it is: without autocast in the next stage.
        self._bare.__dict__.pop("_is_accelerate_prepared", None)

    # Where things lie

    def _shard(self, tensor: Tensor) -> Tensor:
        """This rank's part of a parameter or of its optimiser's state."""
        return tensor

    def _whole(self, parameter: Tensor, shard: Tensor) -> Tensor:
        """All ranks' shards as one tensor of the parameter's shape; on all ranks."""
        return shard

    def _piece(self, parameter: Tensor, shard: Tensor) -> Piece | None:
        """Which elements of a parameter a shard of this rank is; None: all, and all ranks' are."""
        return None

    def _entry_piece(self, parameter: Tensor, value: Tensor) -> Piece | None:
        """The same of what `_entries` gives."""
        return self._piece(parameter, self._shard(value))

    def _cut(self, parameter: Tensor, stored: Stored) -> Tensor:
        """This rank's shard of a tensor of the parameter's shape, where the parameter's lies."""
        # The fused AdamW takes for granted that averages lie in memory as the parameter does.
        return torch.empty_like(parameter.detach()).copy_(stored.whole())

    def _entries(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimiser's state of a parameter, as it lies on this rank."""
        state = self._optimizer.state.get(parameter, {})
        return {entry: value for entry, value in state.items() if isinstance(value, Tensor)}

    def _restore_entries(self, entries: dict[Tensor, dict[str, Stored]]) -> None:
        state = {
            parameter: {
                # Step counts too: the fused AdamW keeps them with the parameter.
                entry: self._cut(parameter, stored)
                if stored.shape
                else stored.whole().to(parameter.device)
                for entry, stored in found.items()
            }
            for parameter, found in entries.items()
        }
        self._optimizer.state.clear()
        self._optimizer.state.update(state)


def over(plain: nn.Module) -> nn.Module:
    """A model like `plain` whose parameters lie in the same memory until they are moved or cut."""
    parameters = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in plain.parameters()}
    return copy.deepcopy(plain, parameters)
