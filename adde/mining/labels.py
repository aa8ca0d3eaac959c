"""Joint label ids."""

import torch
from torch import Tensor

from adde.schema import UNKNOWN


def joint_labels(labels: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
    """One id per distinct label row, from the rows themselves; waits for no device.

    Args:
        labels: (M, A) int64 rows of the whole global batch, in the same order on every rank;
            the ids are then the same on every rank too.
        sizes: V_a, above every label of attribute a; with it fewer sorts do.

    Returns:
        (M,) int64; UNKNOWN where a row knows none of its attributes. A row in which only some
        labels are missing is a class of its own: UNKNOWN there equals only UNKNOWN.
    """
    # Attributes are joined one by one into a key of 62 bits. Before it is full, each key is
    # replaced by its lowest place among all in order, which is below M.
    keys, span = labels.new_zeros(len(labels)), max(1, len(labels))
    for values, size in zip(labels.unbind(1), sizes or [2**31] * labels.shape[1]):
        if span * (size + 1) > 2**62:
            keys, span = _ranks(keys), max(1, len(labels))
        keys, span = keys * (size + 1) + (values + 1), span * (size + 1)
    ids = _ranks(keys)
    return torch.where((labels == UNKNOWN).all(dim=1), UNKNOWN, ids)


def _ranks(keys: Tensor) -> Tensor:
    return torch.searchsorted(keys.sort().values, keys)
