"""A method that is not the package's own: a plain autoencoder of small pictures.

What tests/training/test_method.py trains, and docs/extending.md explains.
"""

import io
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from adde.distributed import RankRows, rank
from adde.losses import Term
from adde.preprocess import Preprocess
from adde.training.config import Config, Schedule
from adde.training.method import Method, Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.displays import Evaluated, PictureRow, Pictures
from adde.training.watching.panels import Panel


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """One run of an autoencoder."""

    image_size: int = 32
    """Side of the pictures, in pixels."""

    width: int = 16
    """Numbers in a code."""

    schedule: Schedule = field(default_factory=Schedule)


class Outputs(NamedTuple):
    """What a forward pass gives."""

    codes: Tensor
    """(B, width) float32."""
    pictures: Tensor
    """(B, 3, S, S) float32, reconstructed, 0..1."""


class Autoencoder(nn.Module):
    """Pictures to codes and back, by one hidden layer each."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.preprocess = Preprocess(side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "pad")
        self.shape = (3, side, side)
        pixels = 3 * side * side
        self.encoder = nn.Sequential(nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, width))
        self.decoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, pixels))

    def forward(self, images: Tensor) -> Outputs:
        """Encodes and decodes pictures (B, S, S, 3) uint8."""
        codes = self.encoder(scaled(images).flatten(1))
        return Outputs(codes, self.decoder(codes).sigmoid().view(-1, *self.shape))


def scaled(images: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 as (B, 3, S, S) float32 in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255


class Reconstruction(Objective):
    """The squared error of a reconstruction, summed over pixels."""

    def plan(self, stage, batch, draws, ranks=None):
        """Nothing is drawn."""
        return ranks or RankRows.equal(len(batch.labels))

    def encode(self, model, plan, images, rows=slice(None)):
        """As `Objective.encode`."""
        return model(images[rows])

    def terms(self, stage, out, batch, plan):
        """As `Objective.terms`."""
        finite = finite_rows(out)
        errors = (out.pictures - scaled(batch.images)).square().flatten(1).sum(1)
        items = torch.full((1,), float(len(errors)), device=errors.device)
        return Terms({"error": Term(errors.sum()[None], items)}, item_shares(batch, finite))


class AutoencoderMethod(Method):
    """An autoencoder; the best checkpoint has the smallest error."""

    title = "Autoencoder"
    Config = AutoencoderConfig
    best_metrics = ("psnr",)
    terminal_metrics = ("psnr",)
    panels = (
        Panel("Validation", "Peak signal-to-noise ratio, dB", r"val/psnr"),
        Panel("Losses", "Squared error", r"autoencoder/error", wide_range=True),
    )

    def build(self, config, schema, start=True):
        """As `Method.build`."""
        return Autoencoder(config.image_size, config.width)

    def stages(self, config):
        """One stage."""
        return (Stage("autoencoder", config.schedule, {"error": 1.0}),)

    def objective(self, config, schema, device):
        """As `Method.objective`."""
        return Reconstruction()

    def represent(self, model, images):
        """The pictures before and after."""
        return {"before": scaled(images), "after": model(images).pictures}

    def evaluate(self, stage, model, evaluator, settings):
        """As `Method.evaluate`."""
        found = evaluator.encode(self.represent, model, "val").outputs
        error = ((found["before"] - found["after"]) ** 2).mean()
        figures = {"psnr": float(-10 * torch.tensor(error).log10())}
        if rank() > 0:
            return Evaluated(figures)
        pairs = zip(found["before"][: settings.rows], found["after"])
        rows = [PictureRow("", png(a), {"reconstructed": [(png(b), False)]}) for a, b in pairs]
        return Evaluated(figures, Pictures("Reconstructions", "Of the validation split.", rows))


def png(picture) -> bytes:
    """An encoded picture from (3, S, S) float in 0..1."""
    content = io.BytesIO()
    Image.fromarray((255 * picture.transpose(1, 2, 0)).astype("uint8")).save(content, "PNG")
    return content.getvalue()


METHOD = AutoencoderMethod()
