"""The objective of a DNA-GAN: reconstruction, and two players over swapped pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adde import losses
from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.dna_gan.config import DNAGANConfig
from adde.methods.dna_gan.model import Exchange, Forward
from adde.methods.pictures import scaled
from adde.schema import UNKNOWN, Schema
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part


@dataclass(frozen=True)
class Plan:
    """Random draws for a rank's b items of the global batch."""

    ranks: RankRows
    labels: Tensor
    """(b, A) int64 of the learned attributes."""
    targets: Tensor
    """(b, A) int64, the labels that a swapped picture is to have."""
    usable: Tensor
    """(b,) float32, whether the global batch has an item of another value to exchange with."""
    exchange: Exchange


class DNAGANObjective(Objective):
    """The losses of both players, by the names of `DNAGANConfig.weights`.

    Raises:
        UserError: an attribute is not in the schema.
    """

    def __init__(self, config: DNAGANConfig, schema: Schema) -> None:
        self._config = config
        self.names = tuple(config.attributes) or schema.names
        self._columns = [schema.attribute_index(name) for name in self.names]
        self._sizes = tuple(schema.sizes[column] for column in self._columns)
        self._step = 0

    def begin_step(self, step: int, steps: int) -> None:
        """As `Objective.begin_step`."""
        self._step = step

    @property
    def critic_alone(self) -> bool:
        """Whether the published critic trains alone at this step."""
        settings = self._config
        place = self._step % settings.critic_every
        return settings.gan == "published" and place < settings.critic_steps

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """As `Objective.plan`; the draws are those of the global batch, whatever the ranks."""
        ranks = ranks or RankRows.equal(len(batch.labels))
        labels = batch.labels[:, self._columns]
        everyone = ranks.gather(labels)
        attribute, donor, usable = draw_exchange(everyone, draws)
        targets = everyone.clone()
        rows = torch.arange(len(everyone), device=labels.device)
        targets[rows, attribute] = everyone[donor, attribute]
        as_judged = targets if self._config.judged_under == "target" else everyone[donor]
        exchange = Exchange(*map(ranks.local, (attribute, donor, as_judged)))
        return Plan(ranks, labels, ranks.local(targets), ranks.local(usable), exchange)

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Forward:
        """As `Objective.encode`."""
        with part("forward"):
            exchange = Exchange(*(each[rows] for each in plan.exchange))
            return model(images[rows], plan.labels[rows], exchange, plan.ranks)

    def terms(self, stage: Stage, out: Forward, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`. Shares are the accuracies of the discriminator's classes."""
        with part("losses"):
            device = out.real.device
            items = torch.full((1,), float(len(out.real)), device=device)
            usable, exchanged = plan.usable, plan.usable.sum()[None]
            errors = (out.reconstructed + 1) / 2 - scaled(batch.images)
            made = 0.0 if self.critic_alone else 1.0
            critic = _hinge if self._config.gan == "hinge" else _wasserstein
            judgement = (critic(out.real, out.fake) * usable).sum()[None]
            found = {
                "reconstruction": Term(made * errors.abs().flatten(1).mean(1).sum()[None], items),
                "adversarial": Term(-made * (out.judged[:, 0] * usable).sum()[None], exchanged),
                "discriminator": Term(judgement, exchanged),
            }
            shares = item_shares(batch, finite_rows(out))
            shares["exchanged"] = Term(exchanged, items)
            parts: dict[str, tuple[str, ...]] = {}
            if out.classes is not None and out.swapped_classes is not None:
                seen, wanted = (out.classes, plan.labels), (out.swapped_classes, plan.targets)
                found["classes"] = losses.classification(*seen, self._sizes)
                found["swapped_classes"] = losses.classification(*wanted, self._sizes, usable)
                shares["accuracy"] = losses.accuracy(out.classes.detach(), plan.labels, self._sizes)
                parts = dict.fromkeys(("classes", "swapped_classes", "accuracy"), self.names)
            return Terms(found, shares, parts)


def draw_exchange(labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw for each item an attribute and an item with another value of it.

    Every attribute is drawn equally often, up to one item.

    Args:
        labels: (M, A) int64.
        draws: generator on the CPU.

    Returns:
        Attribute and donor (M,) int64, and (M,) float32, 1 where there is a donor; elsewhere the
        donor is the item itself.
    """
    items, device = len(labels), labels.device
    attribute = (torch.randperm(items, generator=draws) % labels.shape[1]).to(device)
    chance = torch.rand(items, generator=draws).to(device)
    theirs = labels.T[attribute]  # (M, M): each item's attribute, of all items
    own = theirs.diagonal()[:, None]
    differs = (theirs != own) & (theirs != UNKNOWN) & (own != UNKNOWN)
    counts = differs.sum(1)
    place = (chance * counts).long().clamp(max=items - 1)
    donor = (differs.cumsum(1) > place[:, None]).long().argmax(1)
    usable = counts > 0
    rows = torch.arange(items, device=device)
    return attribute, torch.where(usable, donor, rows), usable.float()


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(b,) losses of the discriminator's verdicts (b, 1)."""
    return ((1 - real).relu() + (1 + fake).relu())[:, 0]


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """(b,) losses of the critic's verdicts (b, 1)."""
    return (fake - real)[:, 0]
