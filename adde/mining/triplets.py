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
import logging
import os
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adde.mining import tiled
from adde.mining.distances import as_accumulated, full_precision
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
    grouping: "LabelGrouping | None" = None,
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
            device where it compiles (but for float64) and `tiled` elsewhere, and logs which, once.
        grouping: of the same labels. With it nothing waits for the device: labels
            and embeddings are not looked into, and one that is not finite makes losses that are
            not.

    Returns:
        `loss_sum` float32 (float64 for float64 inputs), differentiable in `anchors` and `refs`;
        `pairs` and `active` int64. Where there is no pair the sum is a zero with a gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, margin <= 0; without `grouping` also: a
            label is below -1 or is not that of its own column, an embedding is not finite (rank
            and row are named).
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
    _check_impl(impl, anchors)
    with_gradient = torch.is_grad_enabled() and (anchors.requires_grad or refs.requires_grad)
    known = (None, None) if grouping is None else grouping.tensors()
    arguments = (anchors, labels, refs, ref_labels, self_index, *known, margin, strategy, impl)
    return Mined(*_mine_op(*arguments, with_gradient)[:3])


class LabelGrouping:
    """What mining must know of labels, worked out before there are embeddings.

    Numbers that the host needs are copied while the device is at other work: a training step makes
    one before the forward pass, and mining after it waits for nothing.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> None:
        """Of labels (G, N) and (G, M) int64 and self_index (N,), as `mine` takes them."""
        self._on_device, counts = tiled.group(labels, ref_labels, self_index)
        self._counts = counts.to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.Event() if counts.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What `tiled.group` gives, on the device and on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_device, self._counts


# One opaque operator, so that torch.compile keeps the graph around it whole. What is read back
# from the device (values of bad input, class sizes) is read inside.


@torch.library.custom_op("adde::mine_triplets", mutates_args=())
def _mine_op(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    grouping: Tensor | None,
    counts: Tensor | None,
    margin: float,
    strategy: str,
    impl: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if grouping is None or counts is None:
        _check_values(anchors, labels, refs, ref_labels, self_index)
        grouping, counts = tiled.group(labels, ref_labels, self_index)
    if impl == "auto":
        impl = _choose_impl(anchors.device, anchors.dtype)
    if impl == "triton":
        from adde.mining.kernels import choose_in_kernel as choose  # imports triton
    else:
        choose = tiled.choose_by_sorting
        anchors, refs = as_accumulated(anchors), as_accumulated(refs)
    known = tiled.Grouping.unpack(grouping, counts.cpu(), labels.shape[1])
    arguments = (anchors, labels, refs, ref_labels, known, margin, strategy)
    with full_precision(anchors):
        return tiled.mine_in_tiles(*arguments, with_gradient, choose)


@_mine_op.register_fake
def _(anchors: Tensor, labels: Tensor, refs: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    groups, with_gradient = len(anchors), rest[-1]
    dtype = as_accumulated(anchors[:0]).dtype
    return (
        anchors.new_empty(groups, dtype=dtype),
        labels.new_empty(groups),
        labels.new_empty(groups),
        torch.empty_like(anchors if with_gradient else anchors[:0], dtype=dtype),
        torch.empty_like(refs if with_gradient else refs[:0], dtype=dtype),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[3:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, loss_gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scale = loss_gradient[:, None, None]
    anchors, refs = (kept.mul(scale).to(ctx.dtype) for kept in ctx.saved_tensors)
    return anchors, None, refs, *[None] * 8


_mine_op.register_autograd(_backward, setup_context=_save_for_backward)


def _check_impl(impl: Implementation, anchors: Tensor) -> None:
    if impl not in ("auto", "tiled", "triton"):
        raise ValueError(f"impl: expected auto, reference, tiled or triton, found {impl!r}")
    if impl == "triton" and anchors.dtype == torch.float64:
        raise ValueError("impl: triton computes in float32, found float64 embeddings; use tiled")
    if impl == "triton" and anchors.device.type != "cuda" and not _INTERPRETER:
        raise ValueError(
            f"impl: triton needs embeddings on a CUDA device, found {anchors.device}; use tiled, "
            "or set TRITON_INTERPRET=1 to try the kernels on a CPU"
        )


@functools.cache
def _choose_impl(device: torch.device, dtype: torch.dtype) -> Literal["tiled", "triton"]:
    """The implementation for a device, said once in the log.

    Shape does not decide: tiles are faster than the definition from two items on, and whether a
    GPU has shapes at which they are faster than the kernels is for `make gpu-check` to say.
    """
    impl = "tiled"
    if device.type == "cuda" and dtype != torch.float64:
        try:
            _try_kernels(device, dtype)
            impl = "triton"
        except Exception as error:  # of the compiler, the linker, the driver
            last = (str(error).strip() or type(error).__name__).splitlines()[-1]
            log.warning(
                "mining in tiles, which is slower: Triton's kernels do not run here (%s). They are "
                "compiled at first use, for which Triton needs a C compiler (CC) and Python's "
                "header files (python3-dev)",
                last,
            )
    log.info("mining %s embeddings on %s with impl=%s", dtype, device, impl)
    return impl


def _try_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Compiles the kernels and runs them on four items; raises whatever keeps them from it."""
    vectors = torch.eye(4, device=device, dtype=dtype)[None]
    labels = torch.arange(4, device=device)[None] // 2
    with torch.no_grad():
        mine(vectors, labels, margin=0.5, impl="triton").loss_sum.cpu()


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
