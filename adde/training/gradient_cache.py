"""Mining over a whole batch whose activations do not fit into memory (GradCache).

Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". The
micro-batches are encoded without gradients; losses are taken over all their embeddings, which gives
the loss's gradient for each embedding; every micro-batch is then encoded again and handed its part.
The gradients are those of one plain batch, at the price of a second forward pass. Only batch norms
tell the difference: in training they see a micro-batch, as under plain accumulation.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adde.loading.batch import Batch
from adde.training.method import Objective, Stage
from adde.training.optimisation import Kept
from adde.training.strategies import Replicated
from adde.training.terms import Outputs, global_mean
from adde.training.watching import profiling


def cached_backward(
    strategy: Replicated,
    objective: Objective,
    stage: Stage,
    batch: Batch,
    draws: torch.Generator,
    parts: int,
    flag: bool = False,
) -> tuple[dict[str, float], bool]:
    """One step's gradients from a rank's whole share of the batch, encoded in `parts` pieces.

    Returns the scalars and the flag of `global_mean`.
    """
    plan = objective.plan(stage, batch, draws)
    size = len(batch.labels) // parts
    rows = [slice(part * size, (part + 1) * size) for part in range(parts)]
    seed = torch.initial_seed()

    def encode(part: int) -> Outputs:
        torch.manual_seed((seed + part) % 2**63)  # the same dropout in both passes
        return objective.encode(strategy.model, plan, batch.images, rows[part])

    cached = _join(_without_traces(strategy.model, encode, parts))
    terms = objective.terms(stage, cached, batch, plan)
    loss, scalars, stopping = global_mean(terms, stage.weights, flag)
    with profiling.part("backward"):
        loss.backward()
    for part in range(parts):
        with strategy.micro_batch(last=part == parts - 1):
            share = _share(encode(part), cached, rows[part], first=part == 0)
            strategy.backward(share * parts)  # which it divides by
    return scalars, stopping


@torch.no_grad()
def _without_traces(model: nn.Module, encode: Any, parts: int) -> list[Outputs]:
    """All parts' outputs; buffers (running statistics) are as before, for the second pass."""
    before = Kept(list(model.buffers()))
    outputs = [encode(part) for part in range(parts)]
    before.undo()
    return outputs


def _join(outputs: list[Outputs]) -> Outputs:
    """The outputs of the whole share as leaves that collect gradients."""

    def leaf(values: tuple[Tensor | None, ...]) -> Tensor | None:
        if values[0] is None:
            return None
        joined = torch.cat(values) if values[0].ndim else values[0].clone()  # pyright: ignore[reportArgumentType]
        return joined.detach().requires_grad_()

    kind: Any = type(outputs[0])
    return kind(*map(leaf, zip(*outputs)))


def _share(output: Outputs, cached: Outputs, rows: slice, first: bool) -> Tensor:
    """A scalar whose gradient is this part's share of the loss's gradient.

    What belongs to no item, such as a norm of weights, is the first part's.
    """
    share = torch.zeros((), device=next(v.device for v in output if v is not None))
    for value, leaf in zip(output, cached):
        if value is None or leaf is None or leaf.grad is None:
            continue
        if value.ndim:
            share = share + (value * leaf.grad[rows]).sum()
        else:
            # Times zero elsewhere: every rank and part must reach every parameter.
            share = share + value * leaf.grad * float(first)
    return share
