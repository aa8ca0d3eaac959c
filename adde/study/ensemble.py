"""Models of one configuration and several seeds, trained as one by `torch.func.vmap`.

Weights of M models are stacked (M, ...), one optimiser moves them, and everything random comes in
from outside. So each model gets the batches, the noise and, up to rounding, the weights of the run
of its seed by `train/main.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.methods.vae.config import VAEConfig
from adde.methods.vae.method import METHOD
from adde.methods.vae.model import VAE
from adde.methods.vae.objective import Plan, VAEObjective
from adde.schema import Schema
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.study.pictures import Pictures
from adde.training.batches import seed_of
from adde.training.optimisation import build_optimizer, learning_rate, set_rate


class Ensemble:
    """M models at a step of their training.

    Args:
        config: of all models; its seed does not count.
        seeds: of the M models.
        index: of the shards that they are trained on.
        pictures: of the training split, on the device to train on.
        steps: of the whole training.
    """

    def __init__(
        self,
        config: VAEConfig,
        seeds: Sequence[int],
        index: ShardIndex,
        pictures: Pictures,
        steps: int,
    ) -> None:
        self.seeds, self.steps, self.step = tuple(seeds), steps, 0
        self._pictures, self._device = pictures, pictures.images.device
        self._stage, self._objective = config.stage(), VAEObjective(config)
        models = [_build(config, index.schema, seed).to(self._device) for seed in seeds]
        self._template = models[0]
        self._parameters, self._buffers = stack_module_state(models)  # pyright: ignore[reportArgumentType]
        self._optimizer = self._build_optimizer(config)
        data, shards = config.data, index.split("train")
        self._orders = [
            SampleOrder(shards, data.batch_size, seed, data.window, data.last_batch)
            for seed in seeds
        ]

    def _build_optimizer(self, config: VAEConfig) -> torch.optim.Optimizer:
        """That of one model, with its parameters replaced by the stacked ones."""
        optimizer = build_optimizer(config.optimizer, self._template, self._stage.rates)
        names = {parameter: name for name, parameter in self._template.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [self._parameters[names[p]] for p in group["params"]]
        return optimizer

    def train(self, steps: int) -> None:
        """Take the next `steps` steps."""
        per_epoch = self._orders[0].steps_per_epoch
        for step in range(self.step, self.step + steps):
            rate = learning_rate(self._stage.schedule, step, self.steps, per_epoch)
            set_rate(self._optimizer, rate)
            self._objective.begin_step(step, self.steps)
            images, noise, permutation = self._inputs(step)
            placed = (0, 0, 0, 0, None if permutation is None else 0)
            losses = torch.vmap(self._loss, placed)(
                self._parameters, self._buffers, images, noise, permutation
            )
            # The models share nothing, so that the sum's gradient is that of each alone.
            losses.sum().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step = step + 1

    def _inputs(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pictures (M, b, S, S, 3), noise (M, b, L), and permutations (M, n, L) or None."""
        rows = torch.stack([self._pictures.rows(order, step) for order in self._orders])
        images = self._pictures.images[rows.to(self._device)]
        plans: list[Plan] = []
        for own, seed in zip(images, self.seeds):
            draws = torch.Generator().manual_seed(seed_of(seed, step))
            plans.append(self._objective.plan(self._stage, _batch(own), draws))
        permutations = [plan.permutation for plan in plans if plan.permutation is not None]
        noise = torch.stack([plan.noise for plan in plans])
        return images, noise, torch.stack(permutations) if permutations else None

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        images: Tensor,
        noise: Tensor,
        permutation: Tensor | None,
    ) -> Tensor:
        """The loss of one model, by the objective that trains a run."""

        def model(*inputs: Any) -> Any:
            return functional_call(self._template, (parameters, buffers), inputs)

        batch, plan = _batch(images), Plan(RankRows.equal(len(images)), noise, permutation)
        out = self._objective.encode(model, plan, images)
        terms = self._objective.terms(self._stage, out, batch, plan).losses
        means = [
            self._stage.weights[name] * (term.sums / term.counts.clamp(min=1)).sum()
            for name, term in terms.items()
        ]
        return torch.stack(means).sum()

    @torch.no_grad()
    def model(self, number: int) -> VAE:
        """Return one of the models; the next call changes its weights."""
        own = {name: value[number] for name, value in self._parameters.items()}
        self._template.load_state_dict(own)
        return self._template.eval()

    def state(self) -> dict[str, Any]:
        """Return all that training continues from."""
        return {
            "step": self.step,
            "parameters": {name: value.detach() for name, value in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step = state["step"]
        for name, value in state["parameters"].items():
            self._parameters[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])


def _build(config: VAEConfig, schema: Schema, seed: int) -> VAE:
    torch.manual_seed(seed)
    return METHOD.build(config, schema).train()


def _batch(images: Tensor) -> Batch:
    """Without labels, as the losses read none."""
    return Batch(images, images.new_zeros((len(images), 0), dtype=torch.int64), [])
