"""What forward and backward take on a GPU that is not here: the sum of what each kernel must.

A kernel computes, or it moves memory, whichever takes longer (Williams et al., "Roofline", CACM
2009), and never less than its launch. Depthwise convolutions, normalisation and activations are
bound by memory on any GPU; counting operations alone makes such networks many times too fast.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a kernel's time depends on; see scaling.toml."""

    flops: float
    utilisation: float
    memory: float
    memory_utilisation: float
    kernel: float


class Roofline(TorchDispatchMode):
    """Adds up `seconds` of all kernels inside, were they the GPU's.

    Each reads what it is given and writes what it gives, once; views are no kernels.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.seconds = 0.0
        self._rate = gpu.flops * gpu.utilisation
        self._memory = gpu.memory * gpu.memory_utilisation
        self._kernel = gpu.kernel

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view and not func.name().startswith("aten::empty"):
            moved = sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
            flops = _flops(func, args, kwargs, out)
            self.seconds += max(flops / self._rate, moved / self._memory, self._kernel)
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    if func is torch.ops.aten.convolution_backward.default:
        # Each gradient takes what the forward pass did; torch's own count forgets the groups.
        gradient, images, weight = args[:3]
        return sum(args[-1][:2]) * conv_flop_count(images.shape, weight.shape, gradient.shape)
    count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def step_seconds(model: torch.nn.Module, images: Tensor, gpu: Gpu) -> float:
    """Of forward, backward and AdamW, on tensors of the meta device: nothing is computed."""
    with Roofline(gpu) as found:
        outputs = [out for out in tree_leaves(model(images)) if isinstance(out, Tensor)]
        ones, weights = [torch.ones_like(out) for out in outputs], list(model.parameters())
        torch.autograd.grad(outputs, weights, ones, allow_unused=True)
    moved = 7 * sum(p.nbytes for p in weights)
    # Reads weight, gradient and two moments, writes all but the gradient.
    return found.seconds + moved / (gpu.memory * gpu.memory_utilisation)
