"""DeepSpeed ZeRO 1, 2 and 3, with the recipe's settings in place of DeepSpeed's defaults.

The engine is created directly. Accelerate's launcher chooses the ZeRO stage and the offloading;
micro-batch, clipping, accumulation and precision come from the recipe. Mixed precision is
DeepSpeed's `torch_autocast`: weights stay float32, as under the other strategies.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adde.distributed import all_gather, rank, sum_over_ranks, world_size
from adde.training.batch_size import micro_batch
from adde.training.checkpoints.checkpoint import StoredTensor
from adde.training.checkpoints.flat_shards import FlatShard
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Rate, build_optimizer
from adde.training.strategies.strategy import Strategy, clone_sharing_storage
from adde.training.watching.profiling import part


class Zero(Strategy):
    """A DeepSpeed engine shards optimiser state (1), gradients (2) and parameters (3)."""

    sharded = True

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        config: Config,
        rates: Mapping[str, Rate] = NO_RATES,
    ) -> None:
        self._zero: Any = None
        self._flat_of: dict[int, Tensor] = {}
        self._config = engine_config(accelerator.state.deepspeed_plugin.deepspeed_config, config)
        self._stage = self._config["zero_optimization"]["stage"]
        super().__init__(accelerator, model, config, rates)

    def _open(self, model: nn.Module) -> None:
        import deepspeed  # an extra

        self._module = clone_sharing_storage(model).to(memory_format=torch.contiguous_format)
        optimizer = build_optimizer(self._settings, self._module, self._rates)
        if self._stage == 3:
            # This shards one parameter at a time; `initialize` would move all of them first.
            deepspeed.zero.Init(module=self._module, config_dict_or_path=self._config)
        self._module.to(self._accelerator.device)  # what is not sharded
        opened: Any = deepspeed.initialize(
            model=self._module, optimizer=optimizer, config=self._config
        )
        self.model, self._zero = opened[:2]
        self._optimizer = optimizer
        groups = zip(self._groups(), self._flats())
        self._flat_of = {id(parameter): flat for group, flat in groups for parameter in group}

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Do nothing: the engine counts micro-batches."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch; the engine divides by the accumulation and steps with the last one.

        It skips steps with gradients that are not finite, in every precision.
        """
        with part("backward"):
            self.model.backward(loss)
        if self.model.is_gradient_accumulation_boundary():
            self.block_norms = self._norms()  # the step frees the gradients
        with part("optimiser"):
            self.model.step()

    @torch.no_grad()
    def _norms(self) -> dict[str, float]:
        """Compute `block_norms` from the gradient partitions that DeepSpeed keeps on this rank."""
        zero = self._zero
        block_of = {id(p): name.partition(".")[0] for name, p in self._module.named_parameters()}
        names = list(dict.fromkeys(block_of[id(p)] for p in self._trained()))
        squares = torch.zeros(len(names), device=self._accelerator.device)
        groups = self._groups() if self._stage == 3 else zero.params_in_partition
        for number, group in enumerate(groups):
            for place, parameter in enumerate(group):
                if "offload_optimizer" in self._config["zero_optimization"]:
                    norm = zero.norm_for_param_grads.get(zero.get_param_id(parameter), 0.0)
                else:
                    norm = zero.averaged_gradients[number][place].norm()
                squares[names.index(block_of[id(parameter)])] += norm**2
        return dict(zip(names, sum_over_ranks(squares).sqrt().tolist()))

    def _trained(self) -> list[Tensor]:
        return [p for p in self._module.parameters() if p.requires_grad]

    def _clip_and_step(self, largest: float) -> float:
        norm = self.model.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def close(self) -> None:
        """Free the engine's hooks and buffers."""
        self.model.destroy()
        # DeepSpeed's globals and hooks keep the engine alive, so free its optimiser here.
        self._zero.__dict__.clear()
        self._flat_of.clear()
        self._optimizer.state.clear()
        self._optimizer.param_groups.clear()

    # In stage 3 every parameter is a flat partition, padded to the same length on all ranks

    def _shard(self, tensor: Any) -> Tensor:
        return tensor.ds_tensor.data if hasattr(tensor, "ds_tensor") else tensor

    def _whole(self, parameter: Any, shard: Tensor) -> Tensor:
        if self._stage < 3 or shard.ndim != 1:
            return shard
        shard = shard.to(self._accelerator.device).contiguous()
        whole = all_gather(shard)
        return whole[: parameter.ds_numel].view(parameter.ds_shape)

    def _flat_shard(self, parameter: Any, shard: Tensor) -> FlatShard | None:
        if self._stage < 3:
            return None
        start = min(rank() * shard.numel(), parameter.ds_numel)
        return FlatShard(shard[: parameter.ds_numel - start], start, tuple(parameter.ds_shape))

    def _read_local_shard(self, parameter: Any, stored: StoredTensor) -> Tensor:
        if self._stage < 3:
            return stored.whole().to(parameter.device)
        partition = parameter.ds_tensor
        start = rank() * partition.numel()
        values = stored.read(start, min(start + partition.numel(), parameter.ds_numel))
        padded = values.new_zeros(partition.numel())
        padded[: len(values)] = values
        return padded.to(partition.device)

    # The optimiser steps on flat tensors; DeepSpeed maps parameters to parts of them

    def _flats(self) -> list[Tensor]:
        if self._stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _groups(self) -> list[list[Tensor]]:
        """Return the parameters of each flat tensor."""
        return self._zero.fp16_groups if self._stage == 3 else self._zero.bit16_groups

    def _entries(self, parameter: Any) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_optimizer_state

        flat = self._flat_of.get(id(parameter))
        if flat is None or flat not in self._optimizer.state:
            return {}
        state = self._optimizer.state[flat]
        found = {entry: value for entry, value in state.items() if not value.ndim}
        if self._stage < 3:
            fragment = parameter._hp_mapping  # None if other ranks hold all of it
            return found | ({} if fragment is None else fragment.optim_fragment)
        local: Any = safe_get_local_optimizer_state
        entries = [entry for entry, value in state.items() if value.ndim]
        return found | {entry: local(parameter, entry) for entry in entries}

    def _entry_flat_shard(self, parameter: Any, value: Tensor) -> FlatShard | None:
        if self._stage == 3:
            return self._flat_shard(parameter, value)
        start = parameter._hp_mapping.lp_fragment_address.start
        return FlatShard(value, start, tuple(parameter.shape))

    def _link(self) -> None:
        """In stages 1 and 2, map each parameter to its part of the flat optimiser state.

        DeepSpeed does it after the first group's first step, when other groups have no state yet.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        if self._stage < 3:
            for group, flat in zip(self._groups(), self._flats()):
                if flat in self._optimizer.state:
                    lazy_init_hp_params_optimizer_state(group, flat, self._optimizer.state)

    def flat_shards(self) -> dict[str, FlatShard]:
        """As `Strategy.flat_shards`; optimiser state is that of this rank's flat tensors."""
        self._link()
        return super().flat_shards()

    def _restore_entries(self, entries: dict[Tensor, dict[str, StoredTensor]]) -> None:
        # A group of parts that have just begun to learn has no state yet.
        for parameter, found in entries.items():
            flat = self._flat_of[id(parameter)]
            if flat not in self._optimizer.state:
                self._optimizer.state[flat] = {
                    entry: torch.zeros_like(flat) if one.shape else one.whole().to(flat.device)
                    for entry, one in found.items()
                }
        self._link()
        for parameter, found in entries.items():
            for entry, stored in found.items():
                if stored.shape:
                    self._restore_entry(parameter, entry, stored)

    def _restore_entry(self, parameter: Any, entry: str, stored: StoredTensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        if self._stage == 3:
            safe_set_local_optimizer_state(
                parameter, self._read_local_shard(parameter, stored), entry
            )
        elif (fragment := parameter._hp_mapping) is not None:
            start, count = fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel
            fragment.optim_fragment[entry].copy_(stored.read(start, start + count))


def engine_config(launched: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return DeepSpeed's configuration: ZeRO stage as launched, all else from the recipe."""
    zero = {key: v for key, v in launched["zero_optimization"].items() if v not in ("auto", None)}
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") in ("none", None):
            zero.pop(key, None)
    return {
        "train_micro_batch_size_per_gpu": micro_batch(config.data, world_size()),
        "gradient_accumulation_steps": config.data.accumulation,
        # 0 does not clip; if it is missing, DeepSpeed clips at 1.
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            # Weights and gradients are communicated in float32, as under DDP.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 10**9,
    }
