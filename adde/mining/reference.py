"""Reference implementation of mining in plain PyTorch: short, slow, differentiated by autograd."""

import torch
from torch import Tensor

from adde.mining.distances import as_accumulated, squared_distances
from adde.schema import UNKNOWN


def reference_loss(
    anchors: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
    strategy: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `adde.mining.mine`, which checks the arguments."""
    distances = squared_distances(as_accumulated(anchors), as_accumulated(refs))
    sums, pairs, active = [], [], []
    for group in range(len(anchors)):
        losses = [distances[group].sum() * 0]  # keeps the sum differentiable without pairs
        for row, itself in enumerate(self_index.tolist()):
            same = ref_labels[group] == labels[group, row]
            known = (ref_labels[group] != UNKNOWN) & (labels[group, row] != UNKNOWN)
            positive = same & known
            if itself >= 0:
                positive[itself] = False
            to_negatives = distances[group, row][~same & known]
            if len(to_negatives):
                to_positives = distances[group, row][positive]
                chosen = _choose(to_positives, to_negatives, strategy)
                losses.extend(margin + to_positives - to_negatives[chosen])
        hinge = torch.stack(losses).clamp(min=0)
        sums.append(hinge.sum())
        pairs.append(len(losses) - 1)
        active.append(int((hinge > 0).sum()))
    return torch.stack(sums), labels.new_tensor(pairs), labels.new_tensor(active)


def _choose(to_positives: Tensor, to_negatives: Tensor, strategy: str) -> list[int]:
    """Return the index of each positive's negative. argmin and argmax return the first of ties."""
    if strategy == "hardest":
        return [int(to_negatives.argmin())] * len(to_positives)
    chosen = []
    for to_positive in to_positives:
        farther = to_negatives > to_positive
        inside = torch.where(farther, to_negatives, torch.inf).argmin()
        chosen.append(int(inside if farther.any() else to_negatives.argmax()))
    return chosen
