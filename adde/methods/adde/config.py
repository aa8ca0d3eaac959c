"""Settings of an ADDE run in addition to those of every run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from adde.errors import UserError
from adde.loading.augment import Augmentation
from adde.methods.adde.cross_batch import CrossBatch
from adde.methods.adde.pseudo import PseudoLabels
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
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type in (float, "float")}


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

    adversary: float = 0.0
    """Weight of the gradient reversal that removes other attributes from each subspace, summed;
    for labels that go together in the catalogue and not in the world."""

    pseudo: PseudoLabels = field(default_factory=PseudoLabels)
    """Labels from the averaged weights."""

    @property
    def weights(self) -> Mapping[str, float]:
        """As `_Terms.weights`."""
        return {**super().weights, "pseudo": self.pseudo.weight}


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
    """Weight of the triplet of edited query, positive and negative; 0 mines no negatives."""

    score: float = 0.0
    """Weight of the softmax of the match score over the batch (equation 17); 0 does without."""

    consistency: float = 1.0
    """Weight of the L1 distances between embeddings and their prototypes."""

    memory: float = 0.4
    """Weight of the L1 norm of the prototype memory's off-block entries."""

    adversary: float = 0.0
    """Weight of the gradient reversal, as in `encoder`."""

    edits: int = 1
    """Maximum number of attributes that a drawn edit changes at once."""

    prototypes: Literal["means", "classifier"] = "means"
    """Start of the memory: the mean subspace of each value (equation 9), or the weights of the
    value's classifier, scaled to the length of that mean."""

    train_memory: bool = True
    """Whether the memory is trained; if not, it stays at its start."""

    def __post_init__(self) -> None:
        """Check the number of edits. Raises UserError."""
        if self.edits < 1:
            raise UserError(f"adde.edits: expected at least 1, found {self.edits}")


@dataclass(frozen=True)
class FirstStage(Stage):
    """Stage 1, with its settings besides weights."""

    pseudo: PseudoLabels = field(default_factory=PseudoLabels)
    """See `EncoderStage`."""


@dataclass(frozen=True)
class ManipulationStage(Stage):
    """Stage 3, with its settings besides weights."""

    edits: int = 1
    """See `AddeStage`."""
    prototypes: Literal["means", "classifier"] = "means"
    """See `AddeStage`."""


@dataclass(frozen=True, kw_only=True)
class AddeConfig(Config):
    """One run of ADDE."""

    precision: Precision = "auto"
    """As in `Config`; heads, classifiers and memory compute in float32 whatever it is."""

    margin: float = 0.5
    """m of all triplet losses."""

    logit_adjustment: float = 0.0
    """tau of the cross-entropies of pictures: logits are trained with tau log(share of the value
    in the training split) added, so that rare values are predicted more often; 1 balances the
    error, 0 is off. All labels are read at the start."""

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

    @property
    def has_adversary(self) -> bool:
        """Whether a stage trains with gradient reversal."""
        return self.encoder.adversary > 0 or self.adde.adversary > 0

    def stages(self) -> tuple[Stage, ...]:
        """Return stage 1 (encoder and classifiers) and stage 3 (with the prototype memory)."""
        first, last = self.encoder, self.adde
        # DDP would wait for gradients that a stage does not compute.
        return (
            FirstStage(
                "encoder",
                first.schedule,
                first.weights,
                ("memory", *self._frozen(first)),
                pseudo=first.pseudo,
            ),
            ManipulationStage(
                "adde",
                last.schedule,
                last.weights,
                (*(() if last.train_memory else ("memory",)), *self._frozen(last)),
                edits=last.edits,
                prototypes=last.prototypes,
            ),
        )

    def __post_init__(self) -> None:
        """Check what pseudo-labels need. Raises UserError."""
        if not self.encoder.pseudo.weight:
            return
        if not self.optimizer.ema:
            raise UserError(
                "encoder.pseudo.weight: expected averaged weights, which give pseudo-labels, found "
                "optimizer.ema = 0; set it to 0.998 or so"
            )
        if not self.model.presence:
            raise UserError(
                "encoder.pseudo.weight: expected model.presence, which tells an attribute without "
                "a label from one that is absent, found it off"
            )

    def _frozen(self, stage: EncoderStage | AddeStage) -> tuple[str, ...]:
        return ("adversary",) if self.has_adversary and not stage.adversary else ()
