"""The settings of an outfit head beside those that every run has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adde.training.config import Config, Schedule

Form = Literal["bilinear", "distance"]


@dataclass(frozen=True, kw_only=True)
class OutfitsConfig(Config):
    """One run of an outfit head."""

    run: Path = Path("runs/outfits")
    """Folder of the run: checkpoints, log, metrics, report, and the encoded items."""

    encoder: Path = Path("runs/adde")
    """Folder of the trained ADDE run that the head stands on; its best checkpoint encodes."""

    category: str = "category"
    """Attribute that says what kind of thing an item is."""

    form: Form = "bilinear"
    """bilinear: a table of how attribute values of two categories go together, which starts from
    their co-occurrence; distance: the paper's, projected subspaces weighted by the categories."""

    width: int = 32
    """Width D' of a projected subspace. Used by the form distance only."""

    category_projections: bool = False
    """Whether each category has projections of its own. Used by the form distance only."""

    loss: Literal["softmax", "all", "min"] = "softmax"
    """softmax: cross-entropy of the missing item among the negatives; all: the mean hinge over all
    negatives; min: the hinge of the nearest negative (CSA-Net)."""

    margin: float = 0.3
    """Margin of the hinge losses, a squared distance."""

    negatives: int = 10
    """Random items of the missing item's category that it is compared with."""

    drift: float = 1e-4
    """Weight of the squared distance from the co-occurrence table; bilinear only."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(epochs=10.0, learning_rate=3e-3, warmup=0.05)
    )
    """Length and learning rate; an epoch asks for every training item once."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term."""
        return {"ranking": 1.0, "drift": self.drift}
