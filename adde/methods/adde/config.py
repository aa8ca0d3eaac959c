"""Settings of an ADDE run in addition to those of every run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from adde.loading.augment import Augmentation
from adde.methods.adde.cross_batch import CrossBatch
from adde.model import ModelSettings
from adde.training.config import Config, Precision, Schedule
from adde.training.method import Stage


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """A stage's schedule and the weights of its loss terms."""

    schedule: Schedule

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the loss terms, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "schedule"}


@dataclass(frozen=True, kw_only=True)
class EncoderStage(_Terms):
    """Stage 1: encoder and classifiers (docs/architecture.md, equation 8)."""

    schedule: Schedule = field(default_factory=Schedule)
    """Length and learning rate."""

    cls: float = 0.2
    """Weight of the cross-entropy, summed over attributes."""

    presence: float = 0.2
    """Weight of the binary cross-entropy of presence, summed over attributes."""

    local_triplet: float = 0.2
    """Weight of the semi-hard triplets within each attribute's subspace, summed."""

    global_triplet: float = 1.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels."""


@dataclass(frozen=True, kw_only=True)
class AddeStage(_Terms):
    """Stage 3: encoder and memory together on manipulation triplets (equation 12)."""

    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=5.0, learning_rate=3e-4))
    """Length and learning rate."""

    cls: float = 0.2
    """Weight of the cross-entropies of reference, positive, negative and edited query."""

    presence: float = 0.2
    """Weight of the binary cross-entropy of presence, summed over attributes."""

    local_triplet: float = 1.0
    """Weight of the semi-hard triplets within each attribute's subspace, summed."""

    global_triplet: float = 0.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels."""

    edited_triplet: float = 0.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels, with items
    and edited queries together as anchors, positives and negatives."""

    compositional: float = 1.0
    """Weight of the triplet of edited query, positive and negative."""

    consistency: float = 1.0
    """Weight of the L1 distances between embeddings and their prototypes."""

    memory: float = 0.4
    """Weight of the L1 norm of the prototype memory's off-block entries."""


@dataclass(frozen=True, kw_only=True)
class AddeConfig(Config):
    """One run of ADDE."""

    precision: Precision = "auto"
    """As in `Config`; heads, classifiers and memory compute in float32 whatever it is."""

    margin: float = 0.5
    """m of all triplet losses."""

    model: ModelSettings = field(default_factory=ModelSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    encoder: EncoderStage = field(default_factory=EncoderStage)
    adde: AddeStage = field(default_factory=AddeStage)
    cross_batch: CrossBatch = field(default_factory=CrossBatch)

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """As `Config.upgrade`: older runs cropped pictures and had no presence head."""
        model = {"fit": "crop", "presence": False, **settings.get("model", {})}
        return {**super().upgrade(settings), "model": model}

    def stages(self) -> tuple[Stage, ...]:
        """Return stage 1 (encoder and classifiers) and stage 3 (with the prototype memory)."""
        # DDP would wait for a gradient of the prototypes, which stage 1 does not compute.
        first = Stage("encoder", self.encoder.schedule, self.encoder.weights, frozen=("memory",))
        return first, Stage("adde", self.adde.schedule, self.adde.weights)
