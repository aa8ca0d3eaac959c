"""Settings of a decoder in addition to those of every run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adde.errors import UserError
from adde.training.config import Config, Schedule


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """One run of a decoder; docs/drawing.md has the formulas."""

    run: Path = Path("runs/decoder")
    """Folder of the run: checkpoints, log, metrics, report."""

    encoder: Path = Path("runs/adde")
    """Folder of the trained ADDE run; its best checkpoint encodes, and is not changed."""

    form: Literal["vae", "flow"] = "vae"
    """vae: one pass of a small network, for drawn things and CPUs; flow: a rectified flow, for
    photographs on a GPU, which is not exported."""

    style: int = 16
    """Numbers that describe what the attributes do not: pose, background, face."""

    shrink: int = 1
    """Side of the encoder's pictures divided by that of drawn ones, which is a multiple of 16."""

    width: int = 64
    """Channels of the decoder's layers at its largest side; there are four times as many at its
    smallest. A flow's is a multiple of 8."""

    steps: int = 12
    """Euler steps of a flow in each direction."""

    unconditional: float = 0.1
    """Share of pictures whose flow learns without attributes and style."""

    loss: Literal["l1", "bce"] = "l1"
    """Reconstruction, summed over pixels and channels. l1: sharper edges; bce: the VAE's."""

    beta: float = 1.0
    """Weight of the style's KL in nats. Too small: style repeats attributes, and edits do nothing;
    too large: drawn pictures lose pose and background."""

    cycle: float = 500.0
    """Weight of the mean absolute difference between the edited embedding and that which the
    encoder finds in its drawn picture."""

    cycle_every: int = 4
    """One in so many pictures of a batch is also drawn with the edit and encoded again, which
    takes most of a step's time."""

    exchange: float = 0.5
    """Share of pictures that are reconstructed from the embedding of another item, edited by the
    memory to the picture's own labels."""

    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=20.0, learning_rate=1e-3))
    """Length and learning rate."""

    def __post_init__(self) -> None:
        """Check settings that must fit together.

        Raises:
            UserError: names the setting.
        """
        for name in ("style", "shrink", "width", "cycle_every", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("exchange", "unconditional"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: expected a share of 0 to 1, found {getattr(self, name)}")
        if self.form == "flow" and self.width % 8:
            raise UserError(f"width: expected a multiple of 8 of a flow, found {self.width}")
        self.data.require_uncached()

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the loss terms, by name."""
        if self.form == "flow":
            return {"velocity": 1.0, "kl": self.beta}
        return {"reconstruction": 1.0, "kl": self.beta, "cycle": self.cycle}
