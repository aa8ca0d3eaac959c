"""The settings of a DNA-GAN besides those that every run has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adde.errors import UserError
from adde.training.config import Config, Optimizer, Schedule
from adde.training.method import Stage
from adde.training.optimisation import Rate

HINGE_BETAS = (0.0, 0.9)
"""AdamW's betas of both players under `gan = "hinge"`."""


@dataclass(frozen=True, kw_only=True)
class DNAGANConfig(Config):
    """One run of a DNA-GAN (Xiao et al. 2018); docs/generative.md explains its parts."""

    attributes: tuple[str, ...] = ()
    """Attributes that get a piece of the code; none named: all of the catalogue."""

    recessive: Mapping[str, str] = field(default_factory=dict[str, str])
    """By attribute, the value that stands for its absence (`{headwear = "none"}`): its piece is
    zero. Attributes without one exchange pieces of all values."""

    image_size: int = 64
    """Side of the pictures, in pixels; a multiple of 16."""

    width: int = 128
    """Channels of the first convolution; the following have 2, 4 and 4 times as many."""

    piece: int = 128
    """Numbers (with `spatial`: channels) of an attribute's piece."""

    rest: int = 128
    """Numbers (with `spatial`: channels) of the code that belong to no attribute."""

    spatial: bool = False
    """true: pieces are maps of image_size / 8 pixels a side, as published; false: vectors."""

    gan: Literal["hinge", "published"] = "hinge"
    """hinge: hinge losses, and a discriminator with spectral norm; published: a Wasserstein
    critic whose weights are clipped to `clip`."""

    clip: float = 0.01
    """published: largest absolute weight of the critic."""

    critic_every: int = 500
    """published: every so many steps, the critic trains alone for `critic_steps`."""

    critic_steps: int = 100
    """published: see `critic_every`; 0: never alone."""

    judged_under: Literal["target", "donor"] = "target"
    """Labels under which the discriminator sees a swapped picture. target: its own with the
    exchanged one; donor: all of the donor's, which is a fault of the published program."""

    reconstruction: float = 20.0
    """Weight of the mean absolute error of a pixel, whose range is 1; published: 1."""

    adversarial: float = 1.0
    """Weight of the discriminator's verdict on swapped pictures."""

    classification: float = 1.0
    """Weight of the cross-entropy of each attribute, of real and of swapped pictures; published:
    0."""

    discriminator_rate: float = 4.0
    """Learning rate of the discriminator as a factor of the schedule's; published: 1."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=20.0, learning_rate=2e-4, kind="constant", warmup=0.0
        )
    )
    """Length and learning rate; published: 200,000 steps of 64 pictures at 5e-5."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(weight_decay=0.0))
    """The published program names a weight decay and never applies it: 0 is what it trained with,
    and `weight_decay` of a recipe is applied."""

    def __post_init__(self) -> None:
        """Check what the settings say together.

        Raises:
            UserError: a setting does not fit the others; names it.
        """
        if self.image_size < 16 or self.image_size % 16:
            raise UserError(
                f"image_size: expected a multiple of 16 pixels, as the discriminator halves a side "
                f"four times, found {self.image_size}"
            )
        for name, least in (("width", 1), ("piece", 1), ("rest", 0), ("critic_every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.gan == "published" and self.classification:
            raise UserError(
                f"classification: expected 0 with gan = 'published', whose critic is told the "
                f"labels, found {self.classification}"
            )
        self.data.require_uncached()
        if self.data.batch_size < 2 * self.data.accumulation:
            raise UserError(
                f"data.batch_size: expected at least 2 items in each of data.accumulation "
                f"{self.data.accumulation} parts, as items exchange pieces, found "
                f"{self.data.batch_size}"
            )

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term."""
        return {
            "reconstruction": self.reconstruction,
            "adversarial": self.adversarial,
            "swapped_classes": self.classification,
            "discriminator": 1.0,
            "classes": self.classification,
        }

    def stage(self) -> Stage:
        """The one stage of a run."""
        betas = HINGE_BETAS if self.gan == "hinge" else Rate.betas
        rates = {"": Rate(1.0, betas), "discriminator": Rate(self.discriminator_rate, betas)}
        return Stage("dna_gan", self.schedule, self.weights, rates=rates)
