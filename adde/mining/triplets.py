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

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adde.mining.distances import full_precision
from adde.mining.reference import reference_loss
from adde.mining.tiled import tiled_loss
from adde.schema import UNKNOWN

Strategy = Literal["semihard", "hardest"]
Implementation = Literal["auto", "reference", "tiled"]


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
        self_index: (N,) int64, the column that is the anchor itself; needed with `refs`.
        margin: m > 0, in squared distance.
        strategy: how the negative is chosen.
        impl: `reference` is the plain contract; `tiled` holds no tensor above tile x M.

    Returns:
        `loss_sum` float32 (float64 for float64 inputs), differentiable in `anchors` and `refs`;
        `pairs` and `active` int64. Where there is no pair the sum is a zero with a gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a label is below -1, margin <= 0.
    """
    if refs is None:
        refs, ref_labels = anchors, labels
        self_index = torch.arange(anchors.shape[1], device=anchors.device)
    if ref_labels is None or self_index is None:
        raise ValueError("expected ref_labels and self_index beside refs, found None")
    _check(anchors, labels, refs, ref_labels, self_index, margin)
    loss = reference_loss if impl == "reference" else tiled_loss
    with full_precision(anchors):
        return Mined(*loss(anchors, labels, refs, ref_labels, self_index, margin, strategy))


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
    # Reading values back would stall a GPU, so only what lies on the CPU is looked at.
    if labels.device.type == "cpu" and labels.numel() and int(labels.min()) < UNKNOWN:
        raise ValueError(f"labels: expected >= {UNKNOWN}, found {int(labels.min())}")
