"""The settings of a VAE beside those that every run has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adde.errors import UserError, did_you_mean
from adde.training.config import Config, Schedule
from adde.training.method import Stage
from adde.training.optimisation import Rate

LOSSES = (
    *("beta_vae", "annealed_vae", "factor_vae", "beta_tcvae", "dip_vae_i", "dip_vae_ii"),
    *("rf_vae", "rf_vae_0"),
)
"""Values of `VAEConfig.loss`."""

JUDGED = ("factor_vae", "rf_vae", "rf_vae_0")
"""Losses with a discriminator."""

PUBLISHED_SIDE = 64
"""Side in pixels of the pictures for which strengths were published."""

DISCRIMINATOR_BETAS = (0.5, 0.9)
"""AdamW's betas of the discriminator, as published."""


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    """Tells codes from codes whose latents were permuted over the batch (FactorVAE, RF-VAE)."""

    layers: int = 6
    """Hidden layers; the published one has 6 of 1,000 (RF-VAE: 5), 3 of 256 suit a CPU."""

    width: int = 1000
    """Units of a hidden layer."""

    rate: float = 1.0
    """Its learning rate as a factor of the schedule's."""


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """RF-VAE: relevant latents have a low price of KL, all others a high one."""

    low: float = 0.1
    """Price of a latent of relevance 1."""

    high: float = 10.0
    """Price of a latent of relevance 0."""

    sparsity: float = 1.0
    """Weight of the sum of relevances."""

    entropy: float = 100.0
    """Weight of the sum of the relevances' entropies in nats, which drives each to 0 or 1."""

    grow_from: float = 0.0
    """Share of the stage up to which both weights are zero."""

    grow_until: float = 0.0
    """Share of the stage from which both weights are whole; between the two they grow linearly.
    Too strong too early, they fix the relevances before anything is learnt."""

    given: tuple[float, ...] = ()
    """RF-VAE-0: the relevance of each latent, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Config):
    """One run of a VAE. `loss` and `strength` choose the method; docs/vae.md has the formulas."""

    loss: str = "beta_vae"
    """beta_vae, annealed_vae, factor_vae, beta_tcvae, dip_vae_i, dip_vae_ii, rf_vae, rf_vae_0."""

    strength: float = 4.0
    """beta of beta_vae and beta_tcvae; the final capacity in nats of annealed_vae; gamma of
    factor_vae, rf_vae and rf_vae_0; lambda_od of dip_vae_i and dip_vae_ii."""

    latents: int = 10
    """Numbers in a code."""

    network: Literal["study", "small"] = "study"
    """study: that of Locatello et al. (2019), for pictures of 64 px; small: half its time on a CPU,
    for sides that are multiples of 16 px."""

    image_size: int = 64
    """Side of the pictures, in pixels."""

    channels: Literal[1, 3] = 3
    """3: colours; 1: their mean alone, for sets such as dSprites."""

    match_published: bool = True
    """Weigh the reconstruction, a sum over pixels, as if pictures had 64 px, so that a strength
    means the same at every size."""

    capacity_weight: float = 1000.0
    """annealed_vae: gamma, the price of a nat away from the capacity."""

    capacity_steps: int = 100_000
    """annealed_vae: steps in which the capacity grows from 0 to `strength`."""

    discriminator: Discriminator = field(default_factory=Discriminator)
    relevance: Relevance = field(default_factory=Relevance)

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=40.0, learning_rate=1e-4, kind="constant", warmup=0.0
        )
    )
    """Length and learning rate; published: 300,000 steps of 64 pictures at 1e-4."""

    def __post_init__(self) -> None:
        """Checks what the settings say together.

        Raises:
            UserError: a setting does not fit the others; names it.
        """
        if self.loss not in LOSSES:
            raise UserError(
                f"loss: expected a loss of the VAE family, found {self.loss!r}; "
                f"{did_you_mean(self.loss, LOSSES, 2)}"
            )
        side = self.image_size
        if self.network == "study" and side != PUBLISHED_SIDE:
            raise UserError(
                f"image_size: expected {PUBLISHED_SIDE} of the network 'study', found {side}; "
                "use network = 'small'"
            )
        if side < 16 or side % 16:
            raise UserError(f"image_size: expected a multiple of 16 pixels, found {side}")
        if self.latents < 1:
            raise UserError(f"latents: expected at least 1, found {self.latents}")
        self.data.require_uncached()
        if self.data.batch_size < 2 * self.data.accumulation and self.loss != "beta_vae":
            raise UserError(
                f"data.batch_size: expected at least 2 items in each of data.accumulation "
                f"{self.data.accumulation} parts, as the loss {self.loss!r} compares items, found "
                f"{self.data.batch_size}"
            )
        self._check_relevance()

    def _check_relevance(self) -> None:
        given = self.relevance.given
        if self.loss == "rf_vae_0":
            if len(given) != self.latents or not all(0 <= r <= 1 for r in given):
                raise UserError(
                    f"relevance.given: expected {self.latents} numbers of 0 to 1, one a latent, as "
                    f"the loss 'rf_vae_0' is told them, found {list(given)}"
                )
        elif given:
            raise UserError(
                f"relevance.given: expected none, as the loss {self.loss!r} is not told it, found "
                f"{list(given)}; use loss = 'rf_vae_0'"
            )
        start, end = self.relevance.grow_from, self.relevance.grow_until
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise UserError(
                "relevance.grow_from, relevance.grow_until: expected shares of the stage, found "
                f"{start} and {end}"
            )

    @property
    def has_discriminator(self) -> bool:
        """Whether the loss is judged by one."""
        return self.loss in JUDGED

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term, by the term's name."""
        strength, relevance = self.strength, self.relevance
        pixels = (PUBLISHED_SIDE / self.image_size) ** 2 if self.match_published else 1.0
        judged = {"kl": 1.0, "total_correlation": strength, "discriminator": 1.0}
        terms = {
            "beta_vae": {"kl": strength},
            "annealed_vae": {"capacity": self.capacity_weight},
            "factor_vae": judged,
            "beta_tcvae": {"kl": 1.0, "total_correlation": strength - 1},
            "dip_vae_i": {"kl": 1.0, "off_diagonal": strength, "diagonal": 10 * strength},
            "dip_vae_ii": {"kl": 1.0, "off_diagonal": strength, "diagonal": strength},
            "rf_vae": {**judged, "sparsity": relevance.sparsity, "entropy": relevance.entropy},
            "rf_vae_0": judged,
        }
        return {"reconstruction": pixels, **terms[self.loss]}

    def stage(self) -> Stage:
        """The one stage of a run."""
        rates = {"discriminator": Rate(self.discriminator.rate, DISCRIMINATOR_BETAS)}
        own = rates if self.has_discriminator else {}
        return Stage("vae", self.schedule, self.weights, rates=own)
