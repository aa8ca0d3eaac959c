"""Logit adjustment for long tails: cross-entropies of logits plus tau log prior.

Menon et al. (ICLR 2021), "Long-tail learning via logit adjustment". Rare values then get their
share of the predictions, which are those of the plain logits.
"""

import numpy as np
import torch
from torch import Tensor

from adde.schema import Labels, Schema


def log_priors(labels: list[Labels], schema: Schema) -> Tensor:
    """Return (V,) float32, the log share of each value among its attribute's known labels.

    One more item of every value is counted, so that none has a share of 0.

    Args:
        labels: (n, A) int64 each.
        schema: of the labels.
    """
    counts = 1 + np.sum([schema.multi_hot(part).sum(0, np.float64) for part in labels], axis=0)
    parts = np.split(counts, schema.offsets[1:])
    shares = np.concatenate([part / part.sum() for part in parts])
    return torch.from_numpy(np.log(shares)).float()
