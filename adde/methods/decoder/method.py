"""The decoder as a method: one stage on an ADDE that is trained already and stays as it is."""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adde.methods.adde.opening import FrozenEncoder, adde_config, digest, require_trained_on
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.drawing import measure, tables
from adde.methods.decoder.evaluation import validate
from adde.methods.decoder.flow import FlowDecoder, FlowObjective
from adde.methods.decoder.model import PictureDecoder, StyledDecoder
from adde.methods.decoder.objective import DecoderObjective
from adde.schema import Schema
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Objective, Stage
from adde.training.watching.displays import Evaluated, Pictures, Summary
from adde.training.watching.panels import Panel

DRAWN = (
    "Items of the validation split as they are, as they are drawn from embedding and style, and "
    "with one attribute edited. A frame says whether the frozen encoder sees the new value."
)


class Decoder(Method):
    """A decoder that draws embeddings of a frozen ADDE."""

    title = "Decoder on a frozen encoder"
    Config = DecoderConfig
    best_metrics = ("score",)
    terminal_metrics = ("psnr", "wanted", "unchanged", "kl")
    metrics_are_shares = False
    tasks = MappingProxyType({"drawing": measure})
    panels = (
        Panel("Validation", "PSNR of reconstructions, dB", r"val/psnr"),
        Panel(
            "Validation", "Drawn edits, as the frozen encoder sees them", r"val/(wanted|unchanged)"
        ),
        Panel("Validation", "KL of the style, nats", r"val/kl"),
        Panel("Validation", "Mean of wanted and unchanged plus PSNR / 100", r"val/score"),
        Panel("Losses", "Reconstruction", r"decoder/reconstruction", wide_range=True),
        Panel("Losses", "Velocity", r"decoder/velocity", wide_range=True),
        Panel("Losses", "KL of the style, nats", r"decoder/kl"),
        Panel("Losses", "Cycle through the frozen encoder", r"decoder/cycle"),
        Panel("Training", "Items with an edit", r"decoder/edits"),
    )

    def build(self, config: DecoderConfig, schema: Schema, start: bool = True) -> StyledDecoder:
        """As `Method.build`."""
        schema.require_single_values("method decoder")
        seen = adde_config(config.encoder).model
        form = FlowDecoder if config.form == "flow" else PictureDecoder
        model = form(config, seen, len(schema.sizes))
        if start:
            model.frozen = self._frozen(config, schema)
            model.encoder.copy_(digest(model.frozen.weights))
        return model

    def _frozen(self, config: DecoderConfig, schema: Schema) -> FrozenEncoder:
        return FrozenEncoder.open(config.encoder, schema, config.data.shards)

    def stages(self, config: DecoderConfig) -> tuple[Stage, ...]:
        """Return one stage."""
        return (Stage("decoder", config.schedule, config.weights),)

    def objective(self, config: DecoderConfig, schema: Schema, device: torch.device) -> Objective:
        """As `Method.objective`."""
        frozen = self._frozen(config, schema)
        frozen.model.to(device)
        if config.form == "flow":
            side = frozen.model.preprocess.size // config.shrink
            return FlowObjective(config, side, frozen)
        return DecoderObjective(config, schema, frozen)

    def represent(self, model: StyledDecoder, images: Tensor) -> dict[str, Tensor]:
        """As `Method.represent`: the style's means and log-variances."""
        mean, log_variance = model.style(images)
        return {"mean": mean, "log_variance": log_variance}

    def evaluate(
        self, stage: Stage, model: StyledDecoder, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Compute figures of reconstructions and edits; on rank 0 draw some."""
        frozen = model.frozen
        assert frozen is not None  # this is the model of a run that trains
        require_trained_on(model.encoder, frozen.weights, "decoder", str(frozen.checkpoint.path))
        frozen.model.to(evaluator.device)
        found, rows = validate(model, frozen.model, evaluator, "val", settings.rows)
        return Evaluated(found, Pictures("What it draws", DRAWN, rows) if rows else None)

    def summary(self, metrics: dict[str, Any]) -> Summary:
        """Summarise what the judge sees in drawn edits."""
        if (found := metrics.get("drawing")) is None:
            return Summary()
        drawn = next(iter(found["edits"].values()))["overlaid"]
        return Summary([*drawn.items()][:2], tables(found))


METHOD = Decoder()
