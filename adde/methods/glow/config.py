"""The settings of a Glow besides those that every run has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adde.errors import UserError
from adde.training.config import Config, Optimizer, Schedule
from adde.training.method import Stage


@dataclass(frozen=True, kw_only=True)
class GlowConfig(Config):
    """One run of a Glow (Kingma and Dhariwal 2018); docs/generative.md explains its parts."""

    image_size: int = 32
    """Side of the pictures, in pixels; a multiple of 2 to the power of `levels`."""

    bits: int = 8
    """Bits of a colour that are modelled, 1 to 8; published: 8, and 5 for pictures to look at."""

    levels: int = 3
    """Levels L; each halves the side, and all but the last release half of the channels."""

    steps: int = 32
    """Steps of flow K of each level; published: 32 for CIFAR-10, 48 for ImageNet."""

    width: int = 512
    """Channels of the networks in couplings; published: 512."""

    coupling: Literal["affine", "additive"] = "affine"
    """affine: shift and scale half of the channels; additive: shift alone."""

    convolution: Literal["plain", "lu"] = "plain"
    """Weights of the invertible 1x1 convolutions: the matrix itself, or its LU decomposition, whose
    determinant costs nothing."""

    start_items: int = 256
    """Training items whose statistics the activation norms start from."""

    ridge: float = 1.0
    """Penalty of the regression that finds attribute directions, in items."""

    direction_items: int = 5000
    """Training items from which the end of a run computes these directions; 0: all."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=40.0, learning_rate=1e-3, kind="constant", warmup=0.05
        )
    )
    """Length and learning rate; published: 1e-3 after a warm-up of 10 epochs."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(weight_decay=0.0))
    """Published: Adam without decay, which AdamW is at 0, and averaged weights."""

    def __post_init__(self) -> None:
        """Check what the settings say together.

        Raises:
            UserError: a setting does not fit the others; names it.
        """
        if not 1 <= self.bits <= 8:
            raise UserError(f"bits: expected 1 to 8, found {self.bits}")
        for name in ("levels", "steps", "width", "start_items"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, found {getattr(self, name)}")
        side, factor = self.image_size, 2**self.levels
        if side < factor or side % factor:
            near = max(1, round(side / factor)) * factor
            raise UserError(
                f"image_size: expected a multiple of {factor} pixels, as each of {self.levels} "
                f"levels halves the side, found {side}; use image_size = {near} or fewer levels"
            )
        if self.ridge <= 0:
            raise UserError(f"ridge: expected more than 0, found {self.ridge}")
        self.data.require_uncached()

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of the loss term."""
        return {"bits": 1.0}

    def stage(self) -> Stage:
        """The one stage of a run."""
        return Stage("glow", self.schedule, self.weights)
