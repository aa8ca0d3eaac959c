"""ADDE as a method: encoder and classifiers, then prototypes, then encoder and memory jointly.

Stage 2, the prototypes, is one pass over the training split before the stage `adde` begins.
"""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adde.distributed import broadcast_from_main, rank
from adde.losses import normalise
from adde.methods.adde import manipulation, report, similarity
from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.config import AddeConfig, ManipulationStage
from adde.methods.adde.cross_batch import CrossBatchQueue
from adde.methods.adde.evaluation import (
    attribute_accuracy,
    encode_split,
    picture_rows,
    prototypes,
    represent,
    retrieval,
)
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.methods.adde.priors import log_priors
from adde.model.backbone import cut_patches
from adde.schema import Schema
from adde.shards.index import ShardIndex
from adde.shards.reader import split_labels
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.watching.displays import Evaluated, Pictures, Summary
from adde.training.watching.panels import STAGE, Panel

TERMS = (
    "(cls|presence|local_triplet|global_triplet|edited_triplet|compositional|score|consistency"
    "|memory|adversary|pseudo)"
)

CALIBRATION_METRICS = ("hit@1", "hit@10", "hit@30", "ndcg@30", "first_wanted", "wanted@10")
"""Validation metrics printed after the calibration."""


class Adde(Method):
    """Attribute-Driven Disentangled Encoder with its prototype memory (Hou et al., ICCV 2021)."""

    title = "Attribute-Driven Disentangled Encoder"
    Config = AddeConfig
    best_metrics = ("hit@30", "hit@10", "hit@1")
    terminal_metrics = ("hit@1", "hit@10", "hit@30", "ndcg@30", "accuracy")
    supervision = "taught by the labels that are scored here"
    tables = ("nearest_prototypes",)
    tasks = MappingProxyType(
        {"manipulation": manipulation.measure, "similarity": similarity.measure}
    )
    panels = (
        Panel("Validation", "Retrieval", r"val/hit@(1|10|30)"),
        Panel("Validation", "NDCG@30", r"val/ndcg(_target|_others)?@30"),
        Panel("Validation", "Attribute accuracy, mean", r"val/accuracy"),
        Panel("Validation", "Attribute accuracy", r"val/accuracy/.+"),
        Panel("Losses", "Encoder stage: terms", rf"encoder/{TERMS}", wide_range=True),
        Panel("Losses", "ADDE stage: terms", rf"adde/{TERMS}", wide_range=True),
        Panel("Attributes", "Training accuracy, mean", r"(encoder|adde)/accuracy"),
        Panel("Attributes", "Training accuracy", r"(encoder|adde)/accuracy/.+"),
        Panel("Attributes", "Cross-entropy", rf"{STAGE}/cls/.+", wide_range=True),
        Panel("Attributes", "Cross-entropy of presence", rf"{STAGE}/presence/.+", wide_range=True),
        Panel(
            "Attributes",
            "Cross-entropy of the adversary",
            rf"{STAGE}/adversary/.+",
            wide_range=True,
        ),
        Panel(
            "Attributes", "Cross-entropy of pseudo-labels", r"encoder/pseudo/.+", wide_range=True
        ),
        Panel("Attributes", "Pseudo-labels: share of unknown labels", r"encoder/pseudo_labels"),
        Panel("Attributes", "Local triplets", rf"{STAGE}/local_triplet/.+", wide_range=True),
        Panel("Mining", "Pairs per item", rf"{STAGE}/pairs_(local|global)", wide_range=True),
        Panel("Mining", "Share of active triplets", rf"{STAGE}/active_(local|global)"),
        Panel(
            "Mining", "References with a target in the batch", r"adde/(exact_targets|usable_edits)"
        ),
        Panel("Memory", "Block energy of the prototypes", r"(val|prototypes)/block_energy"),
        Panel("Memory", "Block energy by value", r"(val|prototypes)/block_energy/.+"),
    )
    hidden_metrics = (r"val/(queries|hit@(20|40|50))",)

    def build(self, config: AddeConfig, schema: Schema, start: bool = True) -> ADDE:
        """As `Method.build`."""
        settings = config.model if start else config.model.without_start_weights()
        model = ADDE(settings, schema, config.has_adversary)
        if start and rank() == 0 and (cut := cut_patches(model.backbone, settings)):
            print(f"warning: the backbone ignores a border of every picture: {cut}")
        return model

    def stages(self, config: AddeConfig) -> tuple[Stage, ...]:
        """Return stages 1 and 3 of the paper."""
        return config.stages()

    def objective(self, config: AddeConfig, schema: Schema, device: torch.device) -> AddeObjective:
        """As `Method.objective`."""
        config.augmentation.require_colours_kept(schema)
        queue = None
        if config.cross_batch.size:
            shape = (len(schema.sizes), config.model.width)
            queue = CrossBatchQueue(config.cross_batch, config.data.batch_size, shape, device)
        adjustment = None
        if config.logit_adjustment:
            index = ShardIndex.read(config.data.shards)
            labels = broadcast_from_main(lambda: split_labels(index, "train"))
            adjustment = config.logit_adjustment * log_priors(labels, schema).to(device)
        edited = config.adde.edited_triplet > 0
        return AddeObjective(schema, config.augmentation, config.margin, queue, edited, adjustment)

    def before(self, stage: Stage, model: Any, evaluator: Evaluator) -> bool:
        """Run stage 2: set the memory to the prototypes of the current encoder."""
        if not isinstance(stage, ManipulationStage):
            return False
        found, counts = prototypes(evaluator, model)
        if stage.prototypes == "classifier":
            lengths = found.norm(dim=1, keepdim=True)
            found = lengths * normalise(model.classifiers.directions.detach().float())
        model.memory.set_prototypes(found)
        empty = [n for n, c in zip(model.schema.value_names, counts.tolist()) if not c]
        if empty and rank() == 0:
            print(f"warning: no training item has {', '.join(empty)}: these prototypes are zero")
        return True

    def represent(self, model: ADDE, images: Tensor) -> dict[str, Tensor]:
        """As `Method.represent`."""
        return represent(model, images)

    def codes(self, model: ADDE, images: Tensor) -> dict[str, Tensor]:
        """As `Method.codes`: the subspaces one after another."""
        return {"codes": model.encode(images).embeddings.flatten(1)}

    def blocks(self, model: ADDE) -> tuple[str, ...]:
        """As `Method.blocks`: the attribute of each number."""
        width = model.settings.width
        return tuple(name for name in model.schema.names for _ in range(width))

    def evaluate(
        self, stage: Stage, model: ADDE, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Compute the accuracy, and in stage 3, where the memory is trained, also retrieval."""
        encoded = encode_split(evaluator, model, "val")
        figures = attribute_accuracy(encoded, model.schema)
        if stage.name != "adde":
            return Evaluated(figures)
        figures |= retrieval(model, encoded, evaluator.device, settings.queries)
        if rank() > 0:
            return Evaluated(figures)
        rows = picture_rows(evaluator.index, "val", model.schema, encoded, settings.rows)
        pictures = Pictures("What it answers", report.ANSWERS, rows) if rows else None
        matrix, table, energy = report.prototypes(model)
        return Evaluated(figures | energy, pictures, matrix, (table,))

    def finish(self, model: ADDE, checkpoint: Checkpoint, evaluator: Evaluator) -> None:
        """Calibrate the match score of the best checkpoint."""
        found, figures = calibration_of(checkpoint, model, evaluator)
        if rank() == 0:
            shown = ", ".join(f"{k} {figures[k]:.4f}" for k in CALIBRATION_METRICS if k in figures)
            print(
                f"calibrated {checkpoint.path.name}: epsilon {found.epsilon:g}, weight of an edit "
                f"{found.edit_weight:g}, presence is {'used' if found.presence else 'not used'}; "
                f"validation: {shown}"
            )

    def summary(self, metrics: dict[str, Any]) -> Summary:
        """Summarise retrieval and baselines, obedience to edits, attributes, and similarity."""
        return report.summary(metrics)


METHOD = Adde()
