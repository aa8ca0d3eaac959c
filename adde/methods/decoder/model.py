"""The decoder: pictures from the embeddings of a frozen ADDE and a style."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adde.errors import UserError
from adde.methods.adde.model import ADDE, Encoding
from adde.methods.adde.opening import FrozenEncoder
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.networks import REDUCED, Painter, style_network
from adde.methods.pictures import scaled
from adde.model.settings import ModelSettings
from adde.preprocess import Preprocess


class Forward(NamedTuple):
    """Outputs of one forward pass, a row per item."""

    mean: Tensor
    """Mean of the style's posterior, (b, L) float32."""
    log_variance: Tensor
    """(b, L) float32."""
    logits: Tensor
    """Pixels drawn from `embeddings`, as logits (b, 3, S, S) float32."""
    edited_logits: Tensor
    """Pixels drawn from the n edited embeddings, as logits (n, 3, S, S) float32."""


class StyledDecoder(nn.Module):
    """The network that finds the style s of a picture, and what both forms of a decoder share.

    Only the direction of a whole embedding matters: r is scaled to length sqrt(A D), as queries of
    an exported memory have length 1.

    Raises:
        UserError: the size of drawn pictures is not a multiple of 16.
    """

    encoder: Tensor
    """(32,) uint8 sha256 of the encoder's checkpoint."""

    starts_from_pictures: bool
    """Whether `drawn` uses pictures and their own embeddings."""

    frozen: FrozenEncoder | None = None
    """The encoder of a run that trains; not part of a checkpoint."""

    def __init__(self, config: DecoderConfig, seen: ModelSettings, attributes: int) -> None:
        super().__init__()
        self.side, rest = divmod(seen.image_size, config.shrink)
        if rest or self.side % REDUCED:
            raise UserError(
                f"shrink: expected drawn pictures with a side that is a multiple of {REDUCED}, "
                f"found {seen.image_size} px of the encoder's pictures / {config.shrink}; set "
                "shrink, or model.image_size of the encoder"
            )
        self.shrink, self.numbers = config.shrink, config.style
        self.width = attributes * seen.width
        # The pictures that the encoder sees.
        self.preprocess = Preprocess(seen.image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seen.fit)
        self.styles = style_network(self.side, config.style)
        self.register_buffer("encoder", torch.zeros(32, dtype=torch.uint8))

    def style(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances (b, L) of the style of pictures (b, S, S, 3) uint8."""
        mean, log_variance = self.styles(as_drawn(images, self.shrink)).float().chunk(2, dim=1)
        return mean, log_variance

    def scaled(self, embeddings: Tensor) -> Tensor:
        """Scale embeddings (b, A, D) to length sqrt(A D)."""
        flat = F.normalize(embeddings.flatten(1), dim=1) * math.sqrt(self.width)
        return flat.unflatten(1, embeddings.shape[1:])

    def drawn(self, pictures: Tensor, own: Tensor, edited: Tensor, style: Tensor) -> Tensor:
        """Draw edits of pictures.

        Args:
            pictures: (b, 3, S, S) in 0..1, as drawn.
            own: their embeddings, (b, A, D) float32.
            edited: embeddings to draw, (b, A, D) float32.
            style: of the pictures, (b, L) float32.

        Returns:
            (b, 3, S, S) float32 in 0..1.
        """
        raise NotImplementedError


class PictureDecoder(StyledDecoder):
    """A decoder dec([r; s]) -> picture, the form `vae`."""

    starts_from_pictures = False

    def __init__(self, config: DecoderConfig, seen: ModelSettings, attributes: int) -> None:
        super().__init__(config, seen, attributes)
        self.painter = Painter(self.side, self.width + config.style, config.width)

    def forward(
        self, images: Tensor, embeddings: Tensor, edited: Tensor, rows: Tensor, noise: Tensor
    ) -> Forward:
        """Draw an embedding of each picture in its style, and edits of some.

        Args:
            images: (b, S, S, 3) uint8 whose style is drawn.
            embeddings: (b, A, D) float32.
            edited: (n, A, D) float32.
            rows: (n,) int64, the pictures that are edited.
            noise: eps of the style s = mean + sigma eps, (b, L) float32.
        """
        mean, log_variance = self.style(images)
        style = mean + (log_variance / 2).exp() * noise
        both = self.draw(torch.cat([embeddings, edited]), torch.cat([style, style[rows]]))
        return Forward(mean, log_variance, *both.split([len(style), len(rows)]))

    def draw(self, embeddings: Tensor, style: Tensor) -> Tensor:
        """Return logits (b, 3, S, S) of the pixels of embeddings (b, A, D) in styles (b, L)."""
        # Both have one length, though a style has fewer numbers.
        style = style * math.sqrt(self.width / self.numbers)
        return self.painter(torch.cat([self.scaled(embeddings).flatten(1), style], 1)).float()

    def drawn(self, pictures: Tensor, own: Tensor, edited: Tensor, style: Tensor) -> Tensor:
        """As `StyledDecoder.drawn`; only `edited` and `style` are used."""
        return self.draw(edited, style).sigmoid()


def as_drawn(images: Tensor, shrink: int) -> Tensor:
    """Return pictures (b, S, S, 3) uint8 as (b, 3, S / shrink, S / shrink) float32 in 0..1."""
    pixels = scaled(images)
    return pixels if shrink == 1 else F.avg_pool2d(pixels, shrink)


def see(encoder: ADDE, pictures: Tensor, shrink: int) -> Encoding:
    """Encode drawn pictures (b, 3, s, s) in 0..1, enlarged to the size that the encoder takes."""
    if shrink > 1:
        pictures = F.interpolate(pictures, scale_factor=shrink, mode="bilinear")
    return encoder.encode(255 * pictures)
