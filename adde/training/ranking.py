"""Ranking on a GPU with the arithmetic of torch in place of numpy's."""

from typing import Any

import numpy.typing as npt
import torch

from adde.metrics import Watch
from adde.mining.distances import full_precision
from adde.ranking import Ranker
from adde.schema import Rows, Schema, Vector
from adde.scoring import parts


def ranker_for(device: torch.device, watch: Watch = iter) -> Ranker:
    """Return a ranker for the device: numpy's on a CPU, torch's elsewhere."""
    return Ranker(watch) if device.type == "cpu" else TorchRanker(device, watch)


class TorchRanker(Ranker):
    """The arithmetic of rankings on a torch device, in full float32 precision."""

    def __init__(self, device: torch.device, watch: Watch = iter) -> None:
        super().__init__(watch)
        self._device = device

    def put(self, array: npt.NDArray[Any]) -> Any:
        """Copy an array to the device."""
        return torch.from_numpy(array).to(self._device)

    def products(self, rows: Any, columns: Any) -> Any:
        """As `Ranker.products`."""
        with full_precision(rows):
            return rows @ columns.mT

    def smallest(self, costs: Any, k: int) -> Rows:
        """As `Ranker.smallest`."""
        k = min(k, costs.shape[1])
        chosen = costs.topk(k, largest=False, sorted=False).indices.sort(1).values
        order = costs.gather(1, chosen).argsort(dim=1, stable=True)
        ranked = chosen.gather(1, order)
        # topk keeps arbitrary columns of those that tie with the last: sort such rows whole.
        tied = (costs <= costs.gather(1, ranked[:, -1:])).sum(1) > k
        ranked[tied] = costs[tied].argsort(dim=1, stable=True)[:, :k]
        return ranked.cpu().numpy()

    def match_scores(
        self, wanted: Vector, weights: Vector, beliefs: Any, schema: Schema, epsilon: float
    ) -> Any:
        """As `Ranker.match_scores`."""
        rows, weighed = self.put(wanted), self.put(weights)
        scores = torch.zeros((*weighed.shape[:-1], len(beliefs)), device=self._device)
        for a, part in enumerate(parts(schema)):
            probability = self.products(rows[:, part], beliefs[:, part]).clamp(0, 1)
            scores += weighed[..., a, None] * (epsilon + probability).clamp(min=1e-30).log()
        return scores
