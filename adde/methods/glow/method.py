"""Glow as a method: one stage, one loss."""

import torch
from torch import Tensor, nn

from adde.distributed import rank
from adde.methods.glow.config import GlowConfig
from adde.methods.glow.directions import write_directions
from adde.methods.glow.evaluation import directions_of, likelihood, picture_rows, start
from adde.methods.glow.model import Glow
from adde.methods.glow.objective import GlowObjective
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.recipes import config_of_run
from adde.training.watching.displays import Evaluated, Pictures
from adde.training.watching.panels import Panel

SHOWN = (
    "Ten items of the validation split as they are and as they are decoded from their latents; "
    "pictures of drawn latents; then items whose latents are moved along the directions of one "
    "attribute to each of its values."
)


class GlowMethod(Method):
    """Glow (Kingma and Dhariwal 2018): an invertible flow with exact likelihood."""

    title = "Glow"
    Config = GlowConfig
    best_metrics = ("log_likelihood",)
    terminal_metrics = ("bits_per_dim",)
    metrics_are_shares = False
    supervision = "taught by pictures alone, no labels"
    panels = (
        Panel("Validation", "Bits per dimension", r"val/bits_per_dim"),
        Panel("Validation", "Log-likelihood of a picture, nats", r"val/log_likelihood"),
        Panel("Losses", "Bits per dimension", r"glow/bits"),
        Panel("Likelihood", "Volume of the flow, bits per dimension", r"glow/volume"),
        Panel("Likelihood", "Density of latents, mean of the levels", r"glow/prior"),
        Panel("Likelihood", "Density of each level's latents", r"glow/prior/.+"),
    )

    def build(self, config: GlowConfig, schema: Schema, start: bool = True) -> Glow:
        """As `Method.build`.

        Raises:
            UserError: an attribute may have several values, for which there are no directions.
        """
        schema.require_single_values("method glow")
        return Glow(config)

    def stages(self, config: GlowConfig) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (config.stage(),)

    def objective(self, config: GlowConfig, schema: Schema, device: torch.device) -> GlowObjective:
        """As `Method.objective`."""
        return GlowObjective(config)

    def before(self, stage: Stage, model: nn.Module, evaluator: Evaluator) -> bool:
        """Start the activation norms from training items."""
        assert isinstance(model, Glow)
        start(model, evaluator.index, model.start_items)
        return True

    def represent(self, model: Glow, images: Tensor) -> dict[str, Tensor]:
        """As `codes`."""
        return self.codes(model, images)

    def codes(self, model: Glow, images: Tensor) -> dict[str, Tensor]:
        """As `Method.codes`: the mean over positions of each channel of the normalised latents.

        All latents are as many as a picture has colours, more than scores of codes can read.
        """
        latents, _ = model.flow(model.scaled(images))
        means = [
            part.unflatten(1, (shape[0], -1)).mean(2)
            for part, shape in zip(model.flow.split(latents), model.flow.shapes)
        ]
        return {"codes": torch.cat(means, dim=1)}

    def evaluate(
        self, stage: Stage, model: Glow, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Compute the likelihood; show reconstructions, samples and edits."""
        found, directions = likelihood(model, evaluator, "val", model.ridge)
        if rank() > 0:
            return Evaluated(found)
        rows = picture_rows(model, directions, evaluator.index, "val", settings.rows)
        return Evaluated(found, Pictures("Latents", SHOWN, rows) if rows else None)

    def finish(self, model: Glow, checkpoint: Checkpoint, evaluator: Evaluator) -> None:
        """Write the directions of all attribute values, from training items."""
        config = config_of_run(self, checkpoint.state["config"])
        assert isinstance(config, GlowConfig)
        count = config.direction_items or evaluator.index.count("train")
        found = directions_of(model, evaluator.index, count, config.ridge)
        if rank() == 0:
            write_directions(checkpoint.path, found)


METHOD = GlowMethod()
