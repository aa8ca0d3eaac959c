"""A plain classifier as a method: ADDE's network without anything that keeps its blocks apart.

Its penultimate layer has ADDE's A x D numbers, but each attribute is classified from all of them,
and cross-entropy is the only loss. Cut into A blocks, the layer shows what supervision alone does.
"""

from types import MappingProxyType

from torch import Tensor, nn

from adde.methods.adde.config import AddeConfig
from adde.methods.adde.evaluation import attribute_accuracy, encode_split
from adde.methods.adde.method import Adde
from adde.methods.adde.model import ADDE
from adde.schema import Schema
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.watching.displays import Evaluated
from adde.training.watching.panels import STAGE, Panel


class WholeClassifiers(nn.Module):
    """Logits (B, V) of all attributes from all of the embeddings (B, A, D)."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(schema.sizes) * width, schema.num_values)

    def forward(self, embeddings: Tensor) -> Tensor:
        """See the class."""
        return self.linear(embeddings.flatten(1)).float()


class Classifier(Adde):
    """Backbone, a layer of A x D numbers, and linear classifiers of each attribute on all of it."""

    title = "Plain classifier"
    best_metrics = ("accuracy",)
    terminal_metrics = ("accuracy",)
    supervision = "taught by the labels that are scored here, by cross-entropy alone"
    tables = ()
    tasks = MappingProxyType({})
    panels = (
        Panel("Validation", "Attribute accuracy, mean", r"val/accuracy"),
        Panel("Validation", "Attribute accuracy", r"val/accuracy/.+"),
        Panel("Attributes", "Training accuracy, mean", r"encoder/accuracy"),
        Panel("Attributes", "Training accuracy", r"encoder/accuracy/.+"),
        Panel("Attributes", "Cross-entropy", rf"{STAGE}/cls/.+", wide_range=True),
    )
    hidden_metrics = (r"encoder/((presence|local_triplet|global_triplet)(/.+)?|(pairs|active)_.+)",)

    def build(self, config: AddeConfig, schema: Schema, start: bool = True) -> ADDE:
        """As `Method.build`."""
        model = super().build(config, schema, start)
        model.classifiers = WholeClassifiers(schema, config.model.width)  # pyright: ignore[reportAttributeAccessIssue]
        return model

    def stages(self, config: AddeConfig) -> tuple[Stage, ...]:
        """One: that of ADDE's encoder, with the cross-entropy alone."""
        weights = {name: float(name == "cls") for name in config.encoder.weights}
        return (Stage("encoder", config.encoder.schedule, weights, frozen=("memory",)),)

    def blocks(self, model: ADDE) -> tuple[str, ...]:
        """As `Method.blocks`: A contiguous blocks, which belong to no attribute."""
        width, count = model.settings.width, len(model.schema.names)
        return tuple(f"block {block}" for block in range(count) for _ in range(width))

    def evaluate(
        self, stage: Stage, model: ADDE, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Compute the accuracy."""
        return Evaluated(attribute_accuracy(encode_split(evaluator, model, "val"), model.schema))

    # Without prototypes there is no edit to calibrate or to summarise.
    finish = Method.finish
    summary = Method.summary


METHOD = Classifier()
