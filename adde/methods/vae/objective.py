"""The objective of a VAE.

Terms that are no sum over items (a batch's mean KL, covariances, a mixture of posteriors,
permutations) use the global batch, so that N ranks give one rank's loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.pictures import scaled
from adde.methods.vae import losses
from adde.methods.vae.config import VAEConfig
from adde.methods.vae.model import Forward
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part


@dataclass(frozen=True)
class Plan:
    """Random draws for a rank's b items of the global batch of M."""

    ranks: RankRows
    noise: Tensor
    """(b, L) float32."""
    permutation: Tensor | None
    """(n, L) int64 of each latent over the second half of the global batch; None without a
    discriminator."""


class VAEObjective(Objective):
    """The losses of the whole family, by the names of `VAEConfig.weights`."""

    def __init__(self, config: VAEConfig) -> None:
        self._config = config
        self._step, self._steps = 0, 1
        self._names = tuple(f"z{latent}" for latent in range(config.latents))

    def begin_step(self, step: int, steps: int) -> None:
        """As `Objective.begin_step`."""
        self._step, self._steps = step, steps

    @property
    def capacity(self) -> float:
        """AnnealedVAE's capacity at this step, in nats."""
        share = min(1.0, self._step / max(1, self._config.capacity_steps))
        return self._config.strength * share

    @property
    def growth(self) -> float:
        """Share of the weights of RF-VAE's sparsity and entropy at this step."""
        start, end = self._config.relevance.grow_from, self._config.relevance.grow_until
        progress = self._step / max(1, self._steps)
        if progress >= end:
            return float(progress >= start)
        return max(0.0, progress - start) / max(end - start, 1e-9)

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """As `Objective.plan`; the draws are those of the global batch, whatever the ranks."""
        ranks = ranks or RankRows.equal(len(batch.labels))
        items, latents, device = sum(ranks.counts), self._config.latents, batch.images.device
        noise = ranks.local(torch.randn(items, latents, generator=draws)).to(device)
        permutation = None
        if self._config.has_discriminator:
            order = torch.rand(items - items // 2, latents, generator=draws)
            permutation = order.argsort(dim=0).to(device)
        return Plan(ranks, noise, permutation)

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Forward:
        """As `Objective.encode`."""
        with part("forward"):
            return model(images[rows], plan.noise[rows], plan.permutation, plan.ranks)

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`. Shares are the KL and the relevance of each latent."""
        with part("mining and losses"):
            items = torch.full((1,), float(len(out.mean)), device=out.mean.device)
            pictures = scaled(batch.images, self._config.channels)
            nats = losses.kl(out.mean, out.log_variance)
            sums = {"reconstruction": losses.reconstruction(out.logits, pictures).sum()}
            sums |= self._of_codes(stage, out, nats, plan.ranks)
            if out.relevance is not None and "sparsity" in stage.weights:
                sums["sparsity"] = self.growth * out.relevance.sum()
                sums["entropy"] = self.growth * losses.entropy(out.relevance).sum()
            found = {name: Term(total[None], items) for name, total in sums.items()}
            if out.verdicts is not None:
                found["discriminator"] = _discriminator(out.verdicts, plan)
            shares = item_shares(batch, finite_rows(out))
            details = {"latent_kl": nats.detach()}
            if out.relevance is not None:
                details["relevance"] = out.relevance.detach()
            shares |= {n: Term(v.sum(0), items.expand(v.shape[1])) for n, v in details.items()}
            return Terms(found, shares, dict.fromkeys(details, self._names))

    def _of_codes(
        self, stage: Stage, out: Forward, nats: Tensor, ranks: RankRows
    ) -> dict[str, Tensor]:
        """Sums over this rank's items; what is one figure of the global batch counts for each."""
        mean, log_variance = out.mean, out.log_variance
        sums: dict[str, Tensor] = {}
        if "kl" in stage.weights:
            priced = nats
            if out.relevance is not None:
                relevance = self._config.relevance
                priced = nats * losses.price(out.relevance, relevance.low, relevance.high)
            sums["kl"] = priced.sum()
        if "capacity" in stage.weights:
            whole = ranks.gather(nats.sum(1)).mean()
            sums["capacity"] = len(nats) * (whole - self.capacity).abs()
        if out.log_ratio is not None:
            sums["total_correlation"] = out.log_ratio.sum()
        elif "total_correlation" in stage.weights:
            everyone = ranks.gather(mean), ranks.gather(log_variance)
            sums["total_correlation"] = losses.total_correlation(out.codes, *everyone).sum()
        if "diagonal" in stage.weights:
            of_codes = self._config.loss == "dip_vae_ii"
            spread = ranks.gather(log_variance) if of_codes else None
            matrix = losses.covariance(ranks.gather(mean), spread)
            sums["off_diagonal"] = len(mean) * losses.off_diagonal(matrix)
            sums["diagonal"] = len(mean) * losses.diagonal(matrix)
        return sums


def _discriminator(verdicts: Tensor, plan: Plan) -> Term:
    """Half the cross-entropy of the codes as they are, and half that of permuted ones."""
    assert plan.permutation is not None
    row = plan.ranks.columns(verdicts.device)
    permuted = (row >= sum(plan.ranks.counts) - len(plan.permutation)).long()
    entropies = F.cross_entropy(verdicts, permuted, reduction="none") / 2
    chosen = F.one_hot(permuted, 2).float()
    return Term((entropies[:, None] * chosen).sum(0), chosen.sum(0))
