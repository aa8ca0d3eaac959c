"""The form `flow`: a rectified flow from noise to pictures, for photographs on a GPU.

    x_t = (1 - t) noise + t x,    v(x_t, t, tokens) = x - noise

An edit integrates a picture back to its noise under its own tokens, and forward again under the
edited ones. What no token describes stays in the noise.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.adde.opening import FrozenEncoder
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.model import StyledDecoder, as_drawn
from adde.methods.decoder.unet import Tokens, Velocity
from adde.methods.vae.losses import kl
from adde.model.settings import ModelSettings
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part


class Forward(NamedTuple):
    """Outputs of one forward pass, a row per item."""

    mean: Tensor
    """Mean of the style's posterior, (b, L) float32."""
    log_variance: Tensor
    """(b, L) float32."""
    error: Tensor
    """Squared error of the velocity, summed over pixels and channels, (b, 1) float32."""


class Draws(NamedTuple):
    """Random draws for b items."""

    style: Tensor
    """eps of the style, (b, L) float32."""
    noise: Tensor
    """(b, 3, S, S) float32."""
    times: Tensor
    """t, (b,) float32 in 0..1."""
    dropped: Tensor
    """(b,) bool: the tokens say nothing."""


class FlowDecoder(StyledDecoder):
    """A flow given tokens of the attributes and of the style."""

    starts_from_pictures = True

    def __init__(self, config: DecoderConfig, seen: ModelSettings, attributes: int) -> None:
        super().__init__(config, seen, attributes)
        self.steps = config.steps
        self.tokens = Tokens(attributes, seen.width, config.style)
        self.velocity = Velocity(config.width)

    def forward(self, images: Tensor, embeddings: Tensor, draws: Draws) -> Forward:
        """Compute the error of the velocity of pictures (b, S, S, 3) uint8."""
        mean, log_variance = self.style(images)
        style = mean + (log_variance / 2).exp() * draws.style
        tokens = self.tokens(self.scaled(embeddings), style, draws.dropped)
        pictures = 2 * as_drawn(images, self.shrink) - 1
        times = draws.times[:, None, None, None]
        moved = (1 - times) * draws.noise + times * pictures
        found = self.velocity(moved, draws.times, tokens).float()
        error = (found - (pictures - draws.noise)).square().flatten(1).sum(1, keepdim=True)
        return Forward(mean, log_variance, error)

    def drawn(self, pictures: Tensor, own: Tensor, edited: Tensor, style: Tensor) -> Tensor:
        """As `StyledDecoder.drawn`: back under the own tokens, forward under the edited ones."""
        before, after = (self.tokens(self.scaled(one), style, None) for one in (own, edited))
        noise = self._integrated(2 * pictures - 1, before, -1)
        return ((self._integrated(noise, after, 1) + 1) / 2).clamp(0, 1)

    def _integrated(self, x: Tensor, tokens: Tensor, direction: int) -> Tensor:
        """Take Euler steps from t = 1 to 0 (direction -1), or from 0 to 1."""
        for number in range(self.steps):
            time = number / self.steps if direction > 0 else 1 - number / self.steps
            times = torch.full((len(x),), time, device=x.device)
            x = x + direction / self.steps * self.velocity(x, times, tokens).float()
        return x


class Plan(NamedTuple):
    """Random draws for a rank's b items, and their embeddings (b, A, D)."""

    draws: Draws
    embeddings: Tensor


class FlowObjective(Objective):
    """The squared error of the velocity, and the KL of the style."""

    def __init__(self, config: DecoderConfig, side: int, frozen: FrozenEncoder) -> None:
        self._config, self._side, self._frozen = config, side, frozen.model

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """As `Objective.plan`; t is logit-normal. Draws are those of the global batch."""
        ranks = ranks or RankRows.equal(len(batch.labels))
        count, side, device = sum(ranks.counts), self._side, batch.images.device

        def normal(*shape: int) -> Tensor:
            return ranks.local(torch.randn(count, *shape, generator=draws)).to(device)

        dropped = torch.rand(count, generator=draws) < self._config.unconditional
        found = Draws(
            normal(self._config.style),
            normal(3, side, side),
            normal().sigmoid(),
            ranks.local(dropped).to(device),
        )
        with part("frozen encoder"), torch.no_grad():
            return Plan(found, self._frozen.encode(batch.images).embeddings)

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Forward:
        """As `Objective.encode`."""
        with part("forward"):
            draws = Draws(*(value[rows] for value in plan.draws))
            return model(images[rows], plan.embeddings[rows], draws)

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`."""
        items = torch.full((1,), float(len(out.mean)), device=out.mean.device)
        sums = {"velocity": out.error.sum(), "kl": kl(out.mean, out.log_variance).sum()}
        losses = {name: Term(value[None], items) for name, value in sums.items()}
        return Terms(losses, item_shares(batch, finite_rows(out)))
