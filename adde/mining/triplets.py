"""The one entrance to triplet mining over labels.

The semi-hard triplet loss of FaceNet (Schroff et al., CVPR 2015) as `tf.contrib.losses` made it
popular, with its empty cases and ties spelled out. d is the squared Euclidean distance. For every
ordered pair (a, p) of an anchor and another item of the same known label, the negative n is

* ``semihard``: the item of another known label with the smallest d(a, n) > d(a, p); where none
  is that far, the one with the largest d(a, n);
* ``hardest``: the one with the smallest d(a, n);

ties go to the lowest index. The pair's loss is max(0, margin + d(a, p) - d(a, n)). An anchor
without any negative forms no pair; UNKNOWN labels form neither positives nor negatives.
"""

import functools
import importlib.util
import logging
import os
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adde.mining import tiled
from adde.mining.distances import accumulator, full_precision
from adde.mining.reference import reference_loss
from adde.schema import UNKNOWN

Strategy = Literal["semihard", "hardest"]
Implementation = Literal["auto", "reference", "tiled", "triton"]

_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"

log = logging.getLogger(__name__)


class Mined(NamedTuple):
    """Per group, each (G,): sum of the pairs' losses, pairs, and pairs with a positive loss."""

    loss_sum: Tensor
    pairs: Tensor
    active: Tensor


def mine(
    anchors: Tensor,
    labels: Tensor,
    *,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    margin: float,
    strategy: Strategy = "semihard",
    impl: Implementation = "auto",
) -> Mined:
    """Mines triplets in G independent groups (attributes) at once; definition in the module.

    Args:
        anchors: (G, N, D) float, L2-normalised by the caller.
        labels: (G, N) int64, UNKNOWN = -1.
        refs: (G, M, D) columns the positives and negatives come from; None: the anchors.
        ref_labels: (G, M) int64; needed with `refs`.
        self_index: (N,) int64, the column that is the anchor itself, -1 where it is none of them;
            None beside `refs`: no anchor is among them.
        margin: m > 0, in squared distance.
        strategy: how the negative is chosen.
        impl: `reference` is the plain contract; `tiled` runs anywhere and holds no tensor above
            tile x M; `triton` never holds distances at all; `auto` takes `triton` on a CUDA
            device (but for float64) and `tiled` elsewhere, and logs which, once.

    Returns:
        `loss_sum` float32 (float64 for float64 inputs), differentiable in `anchors` and `refs`;
        `pairs` and `active` int64. Where there is no pair the sum is a zero with a gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a label is below -1 or is not that of
            its own column, an embedding is not finite (rank and row are named), margin <= 0.
    """
    if refs is None:
        refs, ref_labels = anchors, labels
        self_index = torch.arange(anchors.shape[1], device=anchors.device)
    if ref_labels is None:
        raise ValueError("expected ref_labels beside refs, found None")
    if self_index is None:
        self_index = torch.full_like(labels[0], -1)
    _check(anchors, labels, refs, ref_labels, self_index, margin)
    if strategy not in ("semihard", "hardest"):
        raise ValueError(f"strategy: expected semihard or hardest, found {strategy!r}")
    if impl == "reference":
        _check_values(anchors, labels, refs, ref_labels, self_index)
        arguments = (anchors, labels, refs, ref_labels, self_index, margin, strategy)
        with full_precision(anchors):
            return Mined(*reference_loss(*arguments))
    chosen = _available(impl, anchors)
    with_gradient = torch.is_grad_enabled() and (anchors.requires_grad or refs.requires_grad)
    arguments = (anchors, labels, refs, ref_labels, self_index, margin, strategy, chosen)
    return Mined(*_mine_op(*arguments, with_gradient)[:3])


# One opaque operator, so that torch.compile keeps the graph around it whole. What is read back
# from the device (values of bad input, class sizes) is read inside.


@torch.library.custom_op("adde::mine_triplets", mutates_args=())
def _mine_op(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
    strategy: str,
    impl: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_values(anchors, labels, refs, ref_labels, self_index)
    if impl == "triton":
        from adde.mining.kernels import choose_in_kernel as choose  # imports triton
    else:
        choose = tiled.choose_by_sorting
        anchors, refs = accumulator(anchors), accumulator(refs)
    arguments = (anchors, labels, refs, ref_labels, self_index, margin, strategy)
    with full_precision(anchors):
        return tiled.mine_in_tiles(*arguments, with_gradient, choose)


@_mine_op.register_fake
def _(anchors: Tensor, labels: Tensor, refs: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    groups, with_gradient = len(anchors), rest[-1]
    dtype = accumulator(anchors[:0]).dtype
    return (
        anchors.new_empty(groups, dtype=dtype),
        labels.new_empty(groups),
        labels.new_empty(groups),
        torch.empty_like(anchors if with_gradient else anchors[:0], dtype=dtype),
        torch.empty_like(refs if with_gradient else refs[:0], dtype=dtype),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[3:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, loss_gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scale = loss_gradient[:, None, None]
    anchors, refs = (kept.mul(scale).to(ctx.dtype) for kept in ctx.saved_tensors)
    return anchors, None, refs, *[None] * 6


_mine_op.register_autograd(_backward, setup_context=_keep)


def _available(impl: Implementation, anchors: Tensor) -> str:
    if impl == "auto":
        return _automatic(anchors.device.type, anchors.dtype)
    if impl not in ("tiled", "triton"):
        raise ValueError(f"impl: expected auto, reference, tiled or triton, found {impl!r}")
    if impl == "triton" and anchors.dtype == torch.float64:
        raise ValueError("impl: triton computes in float32, found float64 embeddings; use tiled")
    if impl == "triton" and anchors.device.type != "cuda" and not _INTERPRETER:
        raise ValueError(
            f"impl: triton needs embeddings on a CUDA device, found {anchors.device}; use tiled, "
            "or set TRITON_INTERPRET=1 to try the kernels on a CPU"
        )
    return impl


@functools.cache
def _automatic(device: str, dtype: torch.dtype) -> Literal["tiled", "triton"]:
    """The implementation for a device, said once in the log.

    Shape does not decide: tiles are faster than the definition from two items on, and whether a
    GPU has shapes at which they are faster than the kernels is for `make gpu-check` to say.
    """
    has_triton = importlib.util.find_spec("triton") is not None
    fits = device == "cuda" and dtype != torch.float64 and has_triton
    impl = "triton" if fits else "tiled"
    log.info("mining %s embeddings on %s with impl=%s", dtype, device, impl)
    return impl


def _check(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
) -> None:
    if anchors.ndim != 3 or refs.ndim != 3:
        raise ValueError(
            f"expected anchors (G, N, D) and refs (G, M, D), found {tuple(anchors.shape)} "
            f"and {tuple(refs.shape)}"
        )
    groups, rows, width = anchors.shape
    expected = {
        "refs": (refs, (groups, refs.shape[1], width)),
        "labels": (labels, (groups, rows)),
        "ref_labels": (ref_labels, (groups, refs.shape[1])),
        "self_index": (self_index, (rows,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}")
        if tensor.device != anchors.device:
            raise ValueError(f"{name}: expected on {anchors.device}, found {tensor.device}")
        if name != "refs" and tensor.dtype != torch.int64:
            raise ValueError(f"{name}: expected int64, found {tensor.dtype}")
    if not anchors.is_floating_point() or refs.dtype != anchors.dtype:
        raise ValueError(
            f"expected anchors and refs of one float dtype, found {anchors.dtype}, {refs.dtype}"
        )
    if not margin > 0:
        raise ValueError(f"expected margin > 0, found {margin}")


def _check_values(
    anchors: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, self_index: Tensor
) -> None:
    """Checks that must look into the tensors: one transfer from the device where all is well."""
    if not labels.numel() or not ref_labels.numel():
        return
    own = (self_index < 0) | (labels == ref_labels[:, self_index])
    looks = [
        anchors.sum(dtype=torch.float32).isfinite(),
        refs.sum(dtype=torch.float32).isfinite(),
        (labels >= UNKNOWN).all(),
        (ref_labels >= UNKNOWN).all(),
        own.all(),
    ]
    if all(torch.stack(looks).tolist()):
        return
    where = f", seen on rank {dist.get_rank()}" if dist.is_initialized() else ""
    for name, vectors in (("anchors", anchors), ("refs", refs)):
        bad = (~vectors.isfinite()).any(-1).nonzero()
        if len(bad):
            group, row = bad[0].tolist()
            raise ValueError(
                f"{name}: expected finite embeddings, found nan or inf in {len(bad)} rows, "
                f"first in row {row} of group {group}{where}"
            )
    for name, ids in (("labels", labels), ("ref_labels", ref_labels)):
        if int(ids.min()) < UNKNOWN:
            raise ValueError(f"{name}: expected >= {UNKNOWN}, found {int(ids.min())}{where}")
    if not own.all():
        group, row = (~own).nonzero()[0].tolist()
        column = int(self_index[row])
        raise ValueError(
            f"self_index: expected the anchor's own column, found column {column} with "
            f"label {int(ref_labels[group, column])} for row {row} with label "
            f"{int(labels[group, row])} in group {group}{where}"
        )
