"""The objective of a Glow: bits per dimension."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.glow.config import GlowConfig
from adde.methods.glow.model import Forward, bits_per_dimension
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part


@dataclass(frozen=True)
class Plan:
    """Random draws for a rank's b items of the global batch."""

    noise: Tensor
    """(b, 3, S, S) float32 in 0..1."""


class GlowObjective(Objective):
    """Bits per dimension of dequantised pictures."""

    def __init__(self, config: GlowConfig) -> None:
        self._side, self._bits = config.image_size, config.bits
        self._names = tuple(f"level{number + 1}" for number in range(config.levels))

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """As `Objective.plan`; the draws are those of the global batch, whatever the ranks."""
        ranks = ranks or RankRows.equal(len(batch.labels))
        shape = (sum(ranks.counts), 3, self._side, self._side)
        noise = ranks.local(torch.rand(shape, generator=draws))
        return Plan(noise.to(batch.images.device))

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Forward:
        """As `Objective.encode`."""
        with part("forward"):
            return model(images[rows], plan.noise[rows])

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`.

        Shares are the two parts of the likelihood in bits per dimension: the flow's volume, and the
        density of each level's latents.
        """
        with part("losses"):
            dimensions = 3 * self._side**2
            items = torch.full((1,), float(len(out.volume)), device=out.volume.device)
            total = bits_per_dimension(out, self._bits, dimensions).sum()[None]
            shares = item_shares(batch, finite_rows(out))
            unit = dimensions * math.log(2)
            for name, nats in (("volume", out.volume), ("prior", out.prior)):
                sums = nats.detach().sum(0) / unit
                shares[name] = Term(sums, items.expand(len(sums)))
            return Terms({"bits": Term(total, items)}, shares, {"prior": self._names})
