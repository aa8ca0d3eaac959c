"""Two players in one backward pass: one runs with fixed weights in the other's loss terms."""

from typing import Any

from torch import nn
from torch.func import functional_call

from adde.errors import UserError


def with_fixed_weights(player: nn.Module, *inputs: Any) -> Any:
    """Call a submodule such that gradients reach its inputs, and none its own weights.

    Raises:
        UserError: its weights are sharded by ZeRO-3.
    """
    if any(hasattr(p, "ds_id") for p in player.parameters()):
        raise UserError(
            "expected whole weights of the discriminator, which runs a second time without "
            "gradients of its own, found them cut by ZeRO-3; launch with launch/zero2.yaml or "
            "launch/fsdp2.yaml"
        )
    weights = {name: p.detach() for name, p in player.named_parameters()}
    return functional_call(player, weights, inputs)
