"""Joint label ids."""

from collections.abc import Collection

import torch
from torch import Tensor

from adde.schema import UNKNOWN


def joint_labels(
    labels: Tensor, sizes: tuple[int, ...] | None = None, multiple: Collection[int] = ()
) -> Tensor:
    """Assign one id to each distinct label row; does not synchronise with the device.

    Args:
        labels: (M, A) int64 rows of the whole global batch, in the same order on every rank;
            the ids are then the same on every rank too.
        sizes: V_a, larger than every label of attribute a; saves sorts.
        multiple: attributes whose labels may be sets, which are not below V_a.

    Returns:
        (M,) int64; UNKNOWN for a row without known labels. In a row with some known labels, UNKNOWN
        equals only UNKNOWN.
    """
    # Attributes are combined one by one into a 62-bit key. Before it overflows, each key is
    # replaced by its rank among all keys, which is below M.
    keys, span = labels.new_zeros(len(labels)), max(1, len(labels))
    bounds = sizes or [2**31] * labels.shape[1]
    for attribute, (values, size) in enumerate(zip(labels.unbind(1), bounds)):
        if attribute in multiple:
            values, size = (
                torch.where(values == UNKNOWN, UNKNOWN, _ranks(values.contiguous())),
                len(labels),
            )
        if span * (size + 1) > 2**62:
            keys, span = _ranks(keys), max(1, len(labels))
        keys, span = keys * (size + 1) + (values + 1), span * (size + 1)
    ids = _ranks(keys)
    return torch.where((labels == UNKNOWN).all(dim=1), UNKNOWN, ids)


def _ranks(keys: Tensor) -> Tensor:
    return torch.searchsorted(keys.sort().values, keys)
