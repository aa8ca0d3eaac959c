"""DeepSpeed ZeRO 1, 2 and 3, with what the recipe says in place of DeepSpeed's own defaults.

The engine is asked for directly: Accelerate's launcher says which stage and what is offloaded,
and the micro-batch that DeepSpeed cannot infer, clipping, accumulation and precision come from the
recipe. Mixed precision is DeepSpeed's `torch_autocast`: weights stay float32, as everywhere else.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adde.distributed import rank, sum_over_ranks, world_size
from adde.training.batch_size import micro_batch
from adde.training.checkpoints.checkpoint import Stored
from adde.training.checkpoints.flat_shards import Piece
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Rate, build_optimizer
from adde.training.strategies.replicated import Replicated, over
from adde.training.watching.profiling import part


class Zero(Replicated):
    """Optimiser (1), gradients (2) and parameters (3) cut over ranks by a DeepSpeed engine."""

    sharded = True

    def __init__(
        self,
        accelerator: Any,
        plain: nn.Module,
        config: Config,
        rates: Mapping[str, Rate] = NO_RATES,
    ) -> None:
        self._zero: Any = None
        self._config = engine_config(accelerator.state.deepspeed_plugin.deepspeed_config, config)
        self._stage = self._config["zero_optimization"]["stage"]
        super().__init__(accelerator, plain, config, rates)

    def _open(self, plain: nn.Module) -> None:
        import deepspeed  # an extra

        self._bare = over(plain).to(memory_format=torch.contiguous_format)
        optimizer = build_optimizer(self._settings, self._bare, self._rates)
        if self._stage == 3:
            # One parameter after the other; left to `initialize`, all would be moved first.
            deepspeed.zero.Init(module=self._bare, config_dict_or_path=self._config)
        self._bare.to(self._accelerator.device)  # what is not cut
        opened: Any = deepspeed.initialize(
            model=self._bare, optimizer=optimizer, config=self._config
        )
        self.model, self._zero = opened[:2]
        self._optimizer = optimizer

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """The engine counts micro-batches itself."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """The engine divides by the accumulation, and steps with the last micro-batch.

        Gradients that are not finite it does not step on, whatever the precision.
        """
        with part("backward"):
            self.model.backward(loss)
        if self.model.is_gradient_accumulation_boundary():
            self.block_norms = self._norms()  # with its step the gradients are gone
        with part("optimiser"):
            self.model.step()

    @torch.no_grad()
    def _norms(self) -> dict[str, float]:
        """`block_norms`, of the pieces of the gradient that DeepSpeed keeps on this rank."""
        zero = self._zero
        block_of = {id(p): name.partition(".")[0] for name, p in self._bare.named_parameters()}
        names = list(dict.fromkeys(block_of[id(p)] for p in self._trained()))
        squares = torch.zeros(len(names), device=self._accelerator.device)
        groups = zero.fp16_groups if self._stage == 3 else zero.params_in_partition
        for number, group in enumerate(groups):
            for place, parameter in enumerate(group):
                if "offload_optimizer" in self._config["zero_optimization"]:
                    norm = zero.norm_for_param_grads.get(zero.get_param_id(parameter), 0.0)
                else:
                    norm = zero.averaged_gradients[number][place].norm()
                squares[names.index(block_of[id(parameter)])] += norm**2
        return dict(zip(names, sum_over_ranks(squares).sqrt().tolist()))

    def _trained(self) -> list[Tensor]:
        return [p for p in self._bare.parameters() if p.requires_grad]

    def _clip_and_step(self, largest: float) -> float:
        norm = self.model.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def close(self) -> None:
        """Frees the engine's hooks and buffers."""
        self.model.destroy()
        # Globals and hooks of DeepSpeed's hold on to the engine: what it steps on goes without it.
        self._zero.__dict__.clear()
        self._optimizer.state.clear()
        self._optimizer.param_groups.clear()

    # Stage 3 keeps of every parameter a flat piece, padded so that all ranks' are as long

    def _shard(self, tensor: Any) -> Tensor:
        return tensor.ds_tensor.data if hasattr(tensor, "ds_tensor") else tensor

    def _whole(self, parameter: Any, shard: Tensor) -> Tensor:
        if self._stage < 3 or shard.ndim != 1:
            return shard
        shard = shard.to(self._accelerator.device).contiguous()
        whole = shard.new_empty(world_size() * shard.numel())
        dist.all_gather_into_tensor(whole, shard)
        return whole[: parameter.ds_numel].view(parameter.ds_shape)

    def _piece(self, parameter: Any, shard: Tensor) -> Piece | None:
        if self._stage < 3:
            return None
        start = min(rank() * shard.numel(), parameter.ds_numel)
        return Piece(shard[: parameter.ds_numel - start], start, tuple(parameter.ds_shape))

    def _cut(self, parameter: Any, stored: Stored) -> Tensor:
        if self._stage < 3:
            return stored.whole().to(parameter.device)
        piece = parameter.ds_tensor
        start = rank() * piece.numel()
        values = stored.read(start, min(start + piece.numel(), parameter.ds_numel))
        padded = values.new_zeros(piece.numel())
        padded[: len(values)] = values
        return padded.to(piece.device)

    # The optimiser steps on flat tensors; DeepSpeed knows which part of them is whose

    def _flats(self) -> list[Tensor]:
        if self._stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _entries(self, parameter: Any) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_optimizer_state

        state = self._optimizer.state
        flats = [flat for flat in self._flats() if flat in state]
        if not parameter.requires_grad or not flats:
            return {}
        # All groups step together: any one's count is every parameter's.
        found = {entry: value for entry, value in state[flats[0]].items() if not value.ndim}
        if self._stage < 3:
            fragment = parameter._hp_mapping  # None: all of it is other ranks'
            return found | ({} if fragment is None else fragment.optim_fragment)
        local: Any = safe_get_local_optimizer_state
        entries = [entry for entry, value in state[flats[0]].items() if value.ndim]
        return found | {entry: local(parameter, entry) for entry in entries}

    def _entry_piece(self, parameter: Any, value: Tensor) -> Piece | None:
        if self._stage == 3:
            return self._piece(parameter, value)
        start = parameter._hp_mapping.lp_fragment_address.start
        return Piece(value, start, tuple(parameter.shape))

    def _link(self) -> None:
        """Tells stages 1 and 2 where each parameter's state lies.

        DeepSpeed does so after the first group's first step, when the others have no state yet.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        if self._stage < 3:
            for group, flat in zip(self._zero.bit16_groups, self._flats()):
                lazy_init_hp_params_optimizer_state(group, flat, self._optimizer.state)

    def pieces(self) -> dict[str, Piece]:
        """As for the others; of the optimiser's state what lies in this rank's flat tensors."""
        self._link()
        return super().pieces()

    def _restore_entries(self, entries: dict[Tensor, dict[str, Stored]]) -> None:
        for flat in self._flats():
            some = next(iter(entries.values()))
            self._optimizer.state[flat] = {
                entry: torch.zeros_like(flat) if stored.shape else stored.whole().to(flat.device)
                for entry, stored in some.items()
            }
        self._link()
        for parameter, found in entries.items():
            for entry, stored in found.items():
                if stored.shape:
                    self._restore_entry(parameter, entry, stored)

    def _restore_entry(self, parameter: Any, entry: str, stored: Stored) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        if self._stage == 3:
            safe_set_local_optimizer_state(parameter, self._cut(parameter, stored), entry)
        elif (fragment := parameter._hp_mapping) is not None:
            start, count = fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel
            fragment.optim_fragment[entry].copy_(stored.read(start, start + count))


def engine_config(launched: dict[str, Any], config: Config) -> dict[str, Any]:
    """DeepSpeed's configuration: topology as launched, everything else from the recipe."""
    zero = {key: v for key, v in launched["zero_optimization"].items() if v not in ("auto", None)}
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") in ("none", None):
            zero.pop(key, None)
    return {
        "train_micro_batch_size_per_gpu": micro_batch(config.data, world_size()),
        "gradient_accumulation_steps": config.data.accumulation,
        # 0 does not clip; left out, DeepSpeed would clip at 1.
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            # Of no module are weights and gradients sent in lower precision: DDP does not either.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 10**9,
    }
