"""The VAE family as a method: one stage, one model, a loss of the recipe's."""

import torch
from torch import Tensor

from adde.distributed import rank
from adde.methods.vae.config import VAEConfig
from adde.methods.vae.evaluation import figures, picture_rows, represent
from adde.methods.vae.model import VAE
from adde.methods.vae.objective import VAEObjective
from adde.schema import Schema
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.watching.displays import Evaluated, Pictures
from adde.training.watching.panels import Panel

MOVED = (
    "Ten items of the validation split as they are and as they are decoded from their codes; then "
    "items whose latents are moved one at a time from -2 to 2, those that say most first."
)


class Variational(Method):
    """Variational auto-encoders that are to find factors without labels."""

    title = "Variational auto-encoder"
    Config = VAEConfig
    best_metrics = ("elbo",)
    terminal_metrics = ("elbo", "reconstruction", "kl", "total_correlation", "active", "relevant")
    metrics_are_shares = False
    supervision = "taught by pictures alone, no labels"
    panels = (
        Panel("Validation", "Evidence lower bound, nats", r"val/elbo"),
        Panel("Validation", "Reconstruction, nats", r"val/reconstruction", wide_range=True),
        Panel("Validation", "KL and total correlation, nats", r"val/(kl|total_correlation)"),
        Panel("Validation", "Active and relevant latents", r"val/(active|relevant)"),
        Panel("Validation", "KL of each latent, nats", r"val/kl/.+"),
        Panel("Validation", "Relevance of each latent", r"val/relevance/.+"),
        Panel("Losses", "Reconstruction, nats", r"vae/reconstruction", wide_range=True),
        Panel("Losses", "KL or its distance to the capacity, nats", r"vae/(kl|capacity)"),
        Panel("Losses", "Total correlation, but for a constant", r"vae/total_correlation"),
        Panel("Losses", "Discriminator's cross-entropy", r"vae/discriminator"),
        Panel("Losses", "Covariance", r"vae/(off_)?diagonal", wide_range=True),
        Panel("Losses", "Sparsity and entropy of relevances", r"vae/(sparsity|entropy)"),
        Panel("Latents", "KL, mean of the latents", r"vae/latent_kl"),
        Panel("Latents", "KL of each, nats", r"vae/latent_kl/.+"),
        Panel("Latents", "Relevance, mean of the latents", r"vae/relevance"),
        Panel("Latents", "Relevance of each", r"vae/relevance/.+"),
    )

    def build(self, config: VAEConfig, schema: Schema, start: bool = True) -> VAE:
        """As `Method.build`; nothing depends on the schema."""
        return VAE(config)

    def stages(self, config: VAEConfig) -> tuple[Stage, ...]:
        """One."""
        return (config.stage(),)

    def objective(self, config: VAEConfig, schema: Schema, device: torch.device) -> VAEObjective:
        """As `Method.objective`."""
        return VAEObjective(config)

    def represent(self, model: VAE, images: Tensor) -> dict[str, Tensor]:
        """As `Method.represent`."""
        return represent(model, images)

    def codes(self, model: VAE, images: Tensor) -> dict[str, Tensor]:
        """As `Method.codes`: the posterior's means and log-variances."""
        mean, log_variance = model.encode(images)
        return {"codes": mean, "log_variance": log_variance}

    def evaluate(
        self, stage: Stage, model: VAE, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Figures without labels, reconstructions and traversals."""
        found = figures(model, evaluator.encode(represent, model, "val"))
        if rank() > 0:
            return Evaluated(found)
        rows = picture_rows(model, evaluator.index, "val", settings.rows)
        return Evaluated(found, Pictures("What it sees", MOVED, rows) if rows else None)


METHOD = Variational()
