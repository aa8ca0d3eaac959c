"""Triplet mining by labels: the entry point `mine`.

The semi-hard triplet loss of FaceNet (Schroff et al., CVPR 2015) as in `tf.contrib.losses`, with
empty cases and ties defined. d is the squared Euclidean distance. For every ordered pair (a, p) of
an anchor and another item of the same known label, the negative n has another known label and is

* ``semihard``: the one with the smallest d(a, n) > d(a, p), or if there is none, the one with the
  largest d(a, n);
* ``hardest``: the one with the smallest d(a, n).

Ties go to the lowest index. The pair's loss is max(0, margin + d(a, p) - d(a, n)). An anchor
without a negative forms no pair. Items with UNKNOWN labels are neither positives nor negatives.
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
    """Per group (G,): the sum of losses, the number of pairs, and of pairs with a positive loss."""

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
    """Mine triplets in G independent groups (attributes) at once, as the module defines.

    Args:
        anchors: (G, N, D) float, L2-normalised by the caller.
        labels: (G, N) int64, UNKNOWN = -1.
        refs: (G, M, D) references, the candidates for positives and negatives; None: the anchors.
        ref_labels: (G, M) int64; required with `refs`.
        self_index: (N,) int64, the reference that is the anchor itself, or -1; None with `refs`:
            no anchor is among them.
        margin: m > 0, in squared distance.
        strategy: how the negative is chosen.
        impl: `reference` is the plain definition; `tiled` runs anywhere with tensors of at most
            tile x M; `triton` never stores distances; `auto` takes `triton` on a CUDA device where
            it compiles (except for float64) and `tiled` elsewhere, and logs the choice once.
        grouping: of the same labels; avoids synchronising with the device. Values are then not
            checked, and a non-finite embedding gives a non-finite loss.

    Returns:
        `loss_sum` float32 (float64 for float64 inputs), differentiable in `anchors` and `refs`;
        `pairs` and `active` int64. Without pairs the sum is a differentiable zero.

    Raises:
        ValueError: shapes, dtypes or devices do not match, or margin <= 0. Without `grouping` also:
            a label is below -1, an anchor's label differs from that of its own reference, or an
            embedding is not finite; names the rank and row.
    """
    if refs is None:
        refs, ref_labels = anchors, labels
        self_index = torch.arange(anchors.shape[1], device=anchors.device)
    if ref_labels is None:
        raise ValueError("expected ref_labels with refs, found None")
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
    """Groups of equal labels, computed before the embeddings exist.

    Made before the forward pass, it copies the numbers that the host needs while the device is busy
    with other work, so that mining does not synchronise.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, self_index: Tensor) -> None:
        """Group labels (G, N) and (G, M) int64; arguments as in `mine`."""
        self._on_device, counts = tiled.group(labels, ref_labels, self_index)
        self._counts = counts.to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.Event() if counts.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the results of `tiled.group`, on the device and on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_device, self._counts


# One opaque operator, so that torch.compile does not break the graph around it. Values read back
# from the device (for checks, class sizes) are read inside.


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
    """Choose the implementation for a device and log it once.

    The choice does not depend on shapes. `make gpu-check` compares tiles and kernels on a GPU.
    """
    impl = "tiled"
    if device.type == "cuda" and dtype != torch.float64:
        try:
            _try_kernels(device, dtype)
            impl = "triton"
        except Exception as error:  # from the compiler, the linker or the driver
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
    """Compile the kernels and run them on four items; raises any error of theirs."""
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
    """Check values in the tensors, with one transfer from the device if all are valid."""
    if not labels.numel() or not ref_labels.numel():
        return
    own = (self_index < 0) | (labels == ref_labels[:, self_index])
    checks = [
        anchors.sum(dtype=torch.float32).isfinite(),
        refs.sum(dtype=torch.float32).isfinite(),
        (labels >= UNKNOWN).all(),
        (ref_labels >= UNKNOWN).all(),
        own.all(),
    ]
    if all(torch.stack(checks).tolist()):
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
