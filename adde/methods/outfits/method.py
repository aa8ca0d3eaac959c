"""Outfit completion as a method: a head on an ADDE that is trained already and stays as it is.

Its batches are training items, each of which is missing in one of its outfits. The engine reads no
pictures for them: the items were encoded once, before the first step.
"""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adde.distributed import broadcast_from_main
from adde.errors import UserError
from adde.methods.adde.opening import adde_config, digest, require_trained_on
from adde.methods.outfits.config import OutfitsConfig
from adde.methods.outfits.evaluation import (
    cooccurrence_of,
    figures_of,
    representation,
    table,
)
from adde.methods.outfits.features import Items, features_of
from adde.methods.outfits.model import Bilinear, Distance, Head
from adde.methods.outfits.objective import OutfitObjective
from adde.outfits import as_text
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Measured, Method, Stage
from adde.training.recipes import config_of_run
from adde.training.run_folder import open_shards
from adde.training.watching.displays import Evaluated, Summary
from adde.training.watching.panels import Panel


def measure(
    model: Head, checkpoint: Checkpoint, evaluator: Evaluator, split: str, queries: int
) -> Measured:
    """FITB, AUC and recall of a split beside the baselines; see `Task`. All questions are asked."""
    config = config_of_run(METHOD, checkpoint.state["config"])
    assert isinstance(config, OutfitsConfig)
    features = features_of(checkpoint.path.parents[1], config.encoder, evaluator)
    require_trained_on(model.encoder, features.encoder, "head", str(config.encoder))
    given = features.outfits(evaluator, split, config.category)
    figures = figures_of(model, features, given, evaluator.index.schema)
    return Measured(figures, as_text(figures))


def _head(config: OutfitsConfig, schema: Schema) -> Head:
    schema.require_single_values("method outfits")
    category = schema.attribute_index(config.category)
    if config.form == "bilinear":
        return Bilinear(schema, category)
    width = adde_config(config.encoder).model.width
    return Distance(schema, category, width, config.width, config.category_projections)


def _items(config: OutfitsConfig) -> Items:
    """The encoded items, and the outfits with the questions of the validation split."""
    index = open_shards(config, flag="--data.shards")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, settings = config.data, config.evaluation
    evaluator = Evaluator(
        index, settings.batch_size, data.workers, device, data.on_fault, data.timeout
    )
    features = features_of(config.run, config.encoder, evaluator)
    given = features.outfits(evaluator, "val", config.category)
    if not given.outfits.get("train"):
        raise UserError(f"{index.root}: expected outfits of split 'train', found none")
    return Items(features, given)


class Outfits(Method):
    """A head that completes outfits, on a frozen ADDE."""

    title = "Outfit head"
    Config = OutfitsConfig
    best_metrics = ("recall@10", "recall@30", "fitb")
    terminal_metrics = ("fitb", "auc", "recall@10")
    reads_pictures = False
    tasks = MappingProxyType({"outfits": measure})
    panels = (
        Panel("Validation", "Fill in the blank", r"val/fitb"),
        Panel("Validation", "Compatibility, AUC", r"val/auc"),
        Panel("Validation", "Recall of the missing item", r"val/recall@.+"),
        Panel("Losses", "Terms", r"outfits/(ranking|drift)", wide_range=True),
        Panel("Training", "Missing item before all negatives", r"outfits/first"),
        Panel("Training", "Items that are in an outfit", r"outfits/questions"),
    )

    def build(self, config: OutfitsConfig, schema: Schema, start: bool = True) -> Head:
        """As `Method.build`; a bilinear head starts from the training outfits' co-occurrence."""
        head = _head(config, schema)
        if start:
            items = _items(config)
            head.items = items
            head.encoder.copy_(digest(items.features.encoder))
            if isinstance(head, Bilinear):
                table = cooccurrence_of(items.features, items.given, schema)
                head.begin(torch.from_numpy(table))
        return head

    def stages(self, config: OutfitsConfig) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("outfits", config.schedule, config.weights),)

    def objective(
        self, config: OutfitsConfig, schema: Schema, device: torch.device
    ) -> OutfitObjective:
        """As `Method.objective`."""
        features, given = _items(config)
        rows = representation(_head(config, schema), features, schema)
        return OutfitObjective(config, features.item_ids, rows, given, device)

    def before(self, stage: Stage, model: Any, evaluator: Evaluator) -> bool:
        """A head that starts from co-occurrence is worth keeping before its first step."""
        return isinstance(model, Bilinear)

    def represent(self, model: Head, images: Tensor) -> dict[str, Tensor]:
        """Nothing: a head takes what an ADDE makes of pictures."""
        return {}

    def evaluate(
        self, stage: Stage, model: Head, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """FITB, AUC and recall on the validation outfits."""
        items = model.items
        assert items is not None  # this is the model of a run that trains
        encoder = items.features.encoder
        require_trained_on(model.encoder, encoder, "head", "this run's encoder")
        schema = evaluator.index.schema
        found = broadcast_from_main(lambda: figures_of(model, *items, schema, only=("head",)))
        return Evaluated(found["scorers"]["head"])

    def summary(self, metrics: dict[str, Any]) -> Summary:
        """The test figures beside the baselines."""
        if (found := metrics.get("outfits")) is None:
            return Summary()
        head = found["scorers"]["head"]
        return Summary(list(head.items()), [table(found)])


METHOD = Outfits()
