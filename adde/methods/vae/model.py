"""Encoder, decoder and, where the loss has them, discriminator and relevances, in one module."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from adde.distributed import RankRows
from adde.methods.pictures import scaled
from adde.methods.players import with_fixed_weights
from adde.methods.vae.config import VAEConfig
from adde.methods.vae.networks import build_discriminator, build_networks
from adde.preprocess import Preprocess


class Forward(NamedTuple):
    """Outputs of a forward pass, a row per item."""

    mean: Tensor
    """mu, (b, L) float32."""
    log_variance: Tensor
    """lambda = log sigma^2, (b, L) float32."""
    codes: Tensor
    """z = mu + sigma eps, (b, L) float32."""
    logits: Tensor
    """Logits of the reconstructed pixels, (b, C, S, S) float32."""
    relevance: Tensor | None = None
    """r of RF-VAE, the same in every row, (b, L) float32."""
    log_ratio: Tensor | None = None
    """d_0 - d_1 of the codes, log q(z) / prod q(z_l), (b, 1) float32. Its gradient is the codes';
    the discriminator's weights have none of it."""
    verdicts: Tensor | None = None
    """The discriminator's logits (b, 2) float32 of the codes as they are in the first half of the
    global batch, and permuted in the second. Its gradient is the discriminator's alone."""


class VAE(nn.Module):
    """A variational auto-encoder of pictures."""

    given: Tensor | None

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        side, latents = config.image_size, config.latents
        self.channels, self.latents, self.side = config.channels, latents, side
        self.preprocess = Preprocess(side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "pad")
        self.encoder, self.decoder = build_networks(config.network, side, config.channels, latents)
        self.discriminator = None
        if config.has_discriminator:
            settings = config.discriminator
            self.discriminator = build_discriminator(latents, settings.layers, settings.width)
        # A fixed relevance is in the recipe, and a learnt one in the weights.
        own = None
        if config.loss == "rf_vae_0":
            own = torch.tensor(config.relevance.given, dtype=torch.float32)
        self.register_buffer("given", own, persistent=False)
        self.relevance_logits = None
        if config.loss == "rf_vae":
            self.relevance_logits = nn.Parameter(0.001 * torch.randn(latents))

    @property
    def relevance(self) -> Tensor | None:
        """r, (L,) in 0..1; None where all latents are alike."""
        if self.relevance_logits is not None:
            return self.relevance_logits.float().sigmoid()
        return self.given

    def forward(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        permutation: Tensor | None = None,
        ranks: RankRows | None = None,
    ) -> Forward:
        """Encodes and decodes pictures.

        Args:
            images: (b, S, S, 3) uint8.
            noise: eps, (b, L) float32; None: codes are their means.
            permutation: (n, L) int64, of each latent over the last n items of the global batch;
                None: the discriminator is not asked.
            ranks: how the global batch is shared out, where there is a permutation.
        """
        mean, log_variance = self.encode(images)
        codes = mean
        if noise is not None:
            codes = mean + (log_variance / 2).exp() * noise
        relevance = self.relevance
        if relevance is not None:
            relevance = relevance.expand_as(codes)
        ratio = verdicts = None
        if permutation is not None and ranks is not None:
            seen = codes if relevance is None else relevance * codes
            ratio, verdicts = self._judge(seen, permutation, ranks)
        logits = self.decode(codes)
        return Forward(mean, log_variance, codes, logits, relevance, ratio, verdicts)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances (b, L) float32 of pictures (b, S, S, 3) uint8."""
        mean, log_variance = self.encoder(scaled(images, self.channels)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Logits (b, C, S, S) float32 of the pixels of codes (b, L)."""
        return self.decoder(codes).float()

    def _judge(self, codes: Tensor, permutation: Tensor, ranks: RankRows) -> tuple[Tensor, Tensor]:
        """`Forward.log_ratio` and `Forward.verdicts` of this rank's codes."""
        assert self.discriminator is not None
        real, permuted = with_fixed_weights(self.discriminator, codes).float().unbind(1)
        # An item that is not finite is found by its own row, and must not spoil those of others.
        everyone = ranks.gather(codes.detach().nan_to_num(0.0, 0.0, 0.0))
        first, second = everyone.split([len(everyone) - len(permutation), len(permutation)])
        mixed = torch.cat([first, second.gather(0, permutation)])
        verdicts = self.discriminator(ranks.local(mixed)).float()
        return (real - permuted)[:, None], verdicts
