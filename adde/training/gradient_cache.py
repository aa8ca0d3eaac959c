"""GradCache: losses over a whole batch whose activations do not fit into memory.

Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
Micro-batches are encoded without gradients. The losses of all embeddings give the gradient for each
embedding. Then every micro-batch is encoded again and backpropagates its part. Gradients equal
those of a plain batch, for the price of a second forward pass; only batch norms differ, because in
training they see a micro-batch, as under plain accumulation.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adde.loading.batch import Batch
from adde.training.method import Objective, Stage
from adde.training.optimisation import Snapshot
from adde.training.strategies import Strategy
from adde.training.terms import Outputs, global_mean
from adde.training.watching import profiling


def cached_backward(
    strategy: Strategy,
    objective: Objective,
    stage: Stage,
    batch: Batch,
    draws: torch.Generator,
    parts: int,
    flag: bool = False,
) -> tuple[dict[str, float], bool]:
    """Compute a step's gradients from a rank's share of the batch, encoded in `parts` parts.

    Returns:
        The scalars and the flag of `global_mean`.
    """
    plan = objective.plan(stage, batch, draws)
    size = len(batch.labels) // parts
    rows = [slice(part * size, (part + 1) * size) for part in range(parts)]
    seed = torch.initial_seed()

    def encode(part: int) -> Outputs:
        torch.manual_seed((seed + part) % 2**63)  # the same dropout in both passes
        return objective.encode(strategy.model, plan, batch.images, rows[part])

    cached = _join(_encode_without_gradients(strategy.model, encode, parts))
    terms = objective.terms(stage, cached, batch, plan)
    loss, scalars, stopping = global_mean(terms, stage.weights, flag)
    with profiling.part("backward"):
        loss.backward()
    for part in range(parts):
        with strategy.micro_batch(last=part == parts - 1):
            share = _share(encode(part), cached, rows[part], first=part == 0)
            strategy.backward(share * parts)  # `backward` divides by parts
    return scalars, stopping


@torch.no_grad()
def _encode_without_gradients(model: nn.Module, encode: Any, parts: int) -> list[Outputs]:
    """Encode all parts; restore buffers (running statistics) for the second pass."""
    before = Snapshot(list(model.buffers()))
    outputs = [encode(part) for part in range(parts)]
    before.restore()
    return outputs


def _join(outputs: list[Outputs]) -> Outputs:
    """Join the parts' outputs as leaf tensors that collect gradients."""

    def leaf(values: tuple[Tensor | None, ...]) -> Tensor | None:
        if values[0] is None:
            return None
        joined = torch.cat(values) if values[0].ndim else values[0].clone()  # pyright: ignore[reportArgumentType]
        return joined.detach().requires_grad_()

    kind: Any = type(outputs[0])
    return kind(*map(leaf, zip(*outputs)))


def _share(output: Outputs, cached: Outputs, rows: slice, first: bool) -> Tensor:
    """Return a scalar whose gradient is this part's share of the loss's gradient.

    Outputs that belong to no item, such as a norm of weights, count with the first part.
    """
    share = torch.zeros((), device=next(v.device for v in output if v is not None))
    for value, leaf in zip(output, cached):
        if value is None or leaf is None or leaf.grad is None:
            continue
        if value.ndim:
            share = share + (value * leaf.grad[rows]).sum()
        else:
            # Zero in other parts, which keeps every parameter in every part's graph.
            share = share + value * leaf.grad * float(first)
    return share
