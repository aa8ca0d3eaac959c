"""Joint label ids."""

import torch
from torch import Tensor

from adde.schema import UNKNOWN


def joint_labels(labels: Tensor) -> Tensor:
    """One id per distinct label row, from the rows themselves.

    Args:
        labels: (M, A) int64 rows of the whole global batch, in the same order on every rank;
            the ids are then the same on every rank too.

    Returns:
        (M,) int64; UNKNOWN where a row knows none of its attributes. A row in which only some
        labels are missing is a class of its own: UNKNOWN there equals only UNKNOWN.
    """
    ids = torch.unique(labels, dim=0, return_inverse=True)[1]
    return torch.where((labels == UNKNOWN).all(dim=1), UNKNOWN, ids)
