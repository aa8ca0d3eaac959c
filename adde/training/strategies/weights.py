"""The weights of a run: full copies for evaluation, and the strategy that trains them."""

import copy
import gc
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from adde.errors import UserError
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.checkpoints.flat_shards import FlatShard, partition_replicated
from adde.training.config import Config
from adde.training.optimisation import NO_RATES, Rate, require_parts
from adde.training.strategies.choice import full_model_device, open_strategy
from adde.training.strategies.strategy import Strategy


class Weights:
    """Full weights, averaged ones if the recipe has `optimizer.ema`, and a strategy per stage.

    Args:
        accelerator: of this process.
        model: full, on the CPU.
        config: of the run.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, config: Config) -> None:
        self._accelerator, self._config = accelerator, config
        self._full_model: Any = model
        self._average = copy.deepcopy(model) if config.optimizer.ema else None
        self._full_device = full_model_device(accelerator)
        self._strategy: Strategy | None = None
        self.offload_full()

    @property
    def strategy(self) -> Strategy:
        """The strategy of the current stage."""
        assert self._strategy is not None
        return self._strategy

    def train(self, frozen: Sequence[str], rates: Mapping[str, Rate] = NO_RATES) -> None:
        """Open the strategy of a stage; submodules in `frozen` get no gradient.

        Raises:
            UserError: the model has no such submodule, or nothing is left to train.
        """
        # DDP would wait for the gradient of a parameter that the stage does not use.
        model = self._full_model
        require_parts(model, [*frozen, *self._config.optimizer.frozen], "optimizer.frozen")
        model.requires_grad_(True)
        for name in frozen:
            model.get_submodule(name).requires_grad_(False)
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(
                "optimizer.frozen: expected a part that learns, found all of them frozen: "
                f"{', '.join(frozen)}"
            )
        self.close()
        self._strategy = open_strategy(self._accelerator, model, self._config, rates)

    def unfreeze(
        self, frozen: Sequence[str], rates: Mapping[str, Rate], checkpoint: Checkpoint
    ) -> None:
        """Open the stage's strategy again, with fewer frozen parts; on all ranks.

        `checkpoint` was just saved: what follows is what a resumed run would do.
        """
        self.strategy.gather_full_weights(self._full_model)
        self.train(frozen, rates)
        self.restore(checkpoint)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state of the stage's optimiser, averages and loss scale."""
        steps = checkpoint.position.stage_step
        self.strategy.restore(checkpoint.tensors("optimizer"), checkpoint.tensors("ema"), steps)
        if self._accelerator.scaler and checkpoint.state["scaler"]:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def gather(self) -> Any:
        """Return the full model that would be exported, on the device; on all ranks.

        It has averaged weights if there are any.
        """
        model = self._full_model
        if self._strategy is not None:
            self._strategy.gather_full_weights(model)
            averages = self._strategy.averaged
            if self._average is not None and averages is not None and averages.tensors:
                model = self._average
                self._strategy.gather_full_weights(model, averages.tensors)
        return model.to(self._accelerator.device)

    def offload_full(self) -> None:
        """Move full copies that are not trained off the GPU until the next evaluation."""
        self._full_model.to(self._full_device)
        if self._average is not None:
            self._average.to("cpu")

    def adopt(self, model: nn.Module) -> None:
        """End the stage's strategy; train from the weights of `model`, which `gather` returned."""
        self.close()
        if model is not self._full_model:
            self._full_model.load_state_dict(model.state_dict())

    def flat_shards(self, extra: dict[str, Tensor]) -> dict[str, FlatShard]:
        """Return what this rank writes of a checkpoint; `extra` tensors are equal on all ranks."""
        if self._strategy is not None:
            return self._strategy.flat_shards() | partition_replicated(extra)
        model = {f"model/{name}": value for name, value in self._full_model.state_dict().items()}
        return partition_replicated(model | extra)

    def close(self) -> None:
        """End the stage's strategy and free its memory."""
        if self._strategy is not None:
            self._strategy.close()
        self._strategy = None
        gc.collect()  # reference cycles of hooks hold shards, and the next stage needs the memory
        self.offload_full()
