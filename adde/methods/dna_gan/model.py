"""Encoder, decoder and discriminator in one module, and the exchange of pieces."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adde.distributed import RankRows
from adde.errors import UserError
from adde.methods.dna_gan.config import DNAGANConfig
from adde.methods.dna_gan.networks import Critic, Discriminator, build_decoder, build_encoder
from adde.methods.pictures import scaled
from adde.methods.players import with_fixed_weights
from adde.preprocess import Preprocess
from adde.schema import UNKNOWN, Schema

NO_VALUE = UNKNOWN - 1
"""In place of a recessive value where an attribute has none; no label equals it."""


class Exchange(NamedTuple):
    """What b items take from others of the global batch."""

    attribute: Tensor
    """(b,) int64, the attribute whose piece is exchanged."""
    donor: Tensor
    """(b,) int64, row in the global batch of the item that gives its piece."""
    conditions: Tensor
    """(b, A) int64, labels under which the swapped picture is judged."""


class Forward(NamedTuple):
    """Outputs of a forward pass, a row per item; pictures are (b, 3, S, S) in -1..1."""

    reconstructed: Tensor
    swapped: Tensor
    """Decoded with the donor's piece."""
    judged: Tensor
    """Verdict on the swapped picture, (b, 1) float32; its gradient is encoder's and decoder's."""
    real: Tensor
    """Verdict on the picture, (b, 1) float32; its gradient is the discriminator's alone."""
    fake: Tensor
    """Verdict on the swapped picture, (b, 1) float32; its gradient is the discriminator's alone."""
    swapped_classes: Tensor | None = None
    """Logits of the swapped picture's values, (b, V) float32, with the gradient of `judged`."""
    classes: Tensor | None = None
    """Logits of the picture's values, (b, V) float32, with the gradient of `real`."""


class DNAGAN(nn.Module):
    """Pictures as pieces, one an attribute, and the rest.

    Symbols: A learned attributes with V values in all, P numbers of a piece, R of the rest; with
    `spatial` each is a map.

    Raises:
        UserError: an attribute or a recessive value is not in the schema.
    """

    recessive: Tensor
    columns: Tensor

    def __init__(self, config: DNAGANConfig, schema: Schema) -> None:
        super().__init__()
        self.names = tuple(config.attributes) or schema.names
        rows = [schema.attribute_index(name) for name in self.names]
        self.sizes = tuple(schema.sizes[row] for row in rows)
        self.values = tuple(schema.attributes[row].values for row in rows)
        for name in config.recessive:
            schema.attribute_index(name)
            if name not in self.names:
                raise UserError(
                    f"recessive: expected learned attributes, {', '.join(self.names)}, found "
                    f"{name!r}"
                )
        recessive = [
            schema.value_index(name, config.recessive[name])
            if name in config.recessive
            else NO_VALUE
            for name in self.names
        ]
        self.piece, self.rest = config.piece, config.rest
        side = config.image_size
        self.clip = config.clip if config.gan == "published" else None
        self.preprocess = Preprocess(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad")
        numbers = len(rows) * config.piece + config.rest
        self.encoder = build_encoder(side, config.width, numbers, config.spatial)
        self.decoder = build_decoder(side, config.width, numbers, config.spatial)
        judge = Critic if config.gan == "published" else Discriminator
        self.discriminator = judge(side, config.width, self.sizes)
        self.register_buffer("columns", torch.tensor(rows), persistent=False)
        self.register_buffer("recessive", torch.tensor(recessive), persistent=False)

    def forward(
        self, images: Tensor, labels: Tensor, exchange: Exchange, ranks: RankRows
    ) -> Forward:
        """Reconstruct pictures, exchange pieces, and judge.

        Args:
            images: (b, S, S, 3) uint8.
            labels: (b, A) int64 of the learned attributes.
            exchange: of these items.
            ranks: rows of the global batch on each rank.
        """
        if self.clip is not None and self.training:
            assert isinstance(self.discriminator, Critic)
            self.discriminator.clip(self.clip)
        pictures = 2 * scaled(images) - 1
        pieces, rest = self.encode(images)
        pieces = self.annihilate(pieces, labels)
        # An item that is not finite is found by its own row, and must not spoil those of others.
        everyone = ranks.gather(pieces.nan_to_num(0.0, 0.0, 0.0))
        mixed = put(pieces, exchange.attribute, everyone[exchange.donor, exchange.attribute])
        decoded = self.decode(torch.cat([pieces, mixed]), torch.cat([rest, rest]))
        reconstructed, swapped = decoded.chunk(2)
        own, theirs = self.hot(labels), self.hot(exchange.conditions)
        # The discriminator's own terms, then those of the others, for whom it is fixed.
        verdicts, classes = self.discriminator(
            torch.cat([pictures, swapped.detach()]), torch.cat([own, theirs])
        )
        judged, swapped_classes = with_fixed_weights(self.discriminator, swapped, theirs)
        pair = exchange.attribute[:, None]
        real, fake = verdicts.chunk(2)
        return Forward(
            reconstructed,
            swapped,
            judged.gather(1, pair),
            real.gather(1, pair),
            fake.gather(1, pair),
            swapped_classes,
            None if classes is None else classes[: len(images)],
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures (b, S, S, 3) uint8: pieces (b, A, P, ...) and the rest (b, R, ...)."""
        codes = self.encoder(2 * scaled(images) - 1)
        pieces, rest = codes.split([len(self.names) * self.piece, self.rest], dim=1)
        return pieces.unflatten(1, (len(self.names), self.piece)), rest

    def annihilate(self, pieces: Tensor, labels: Tensor) -> Tensor:
        """Set the pieces of recessive values to zero; labels are (b, A) int64."""
        dominant = (labels != self.recessive).to(pieces.dtype)
        return pieces * dominant.view(*dominant.shape, *[1] * (pieces.ndim - 2))

    def decode(self, pieces: Tensor, rest: Tensor) -> Tensor:
        """Decode pieces (b, A, P, ...) and rest (b, R, ...): (b, 3, S, S) float32 in -1..1."""
        return self.decoder(torch.cat([pieces.flatten(1, 2), rest], dim=1)).float()

    def hot(self, labels: Tensor) -> Tensor:
        """Return labels (b, A) as multi-hot (b, V) float32; unknown ones have no value."""
        known = [
            F.one_hot(column.clamp(min=0), size) * (column != UNKNOWN)[:, None]
            for column, size in zip(labels.unbind(1), self.sizes)
        ]
        return torch.cat(known, dim=1).float()

    def seen(self, pictures: Tensor) -> Tensor | None:
        """Classify pictures (b, 3, S, S) in -1..1: (b, A) int64; None without classes."""
        blank = pictures.new_zeros(len(pictures), sum(self.sizes))
        _, classes = self.discriminator(pictures, blank)
        if classes is None:
            return None
        return torch.stack([c.argmax(1) for c in classes.split(self.sizes, dim=1)], dim=1)


def put(pieces: Tensor, attribute: Tensor, given: Tensor) -> Tensor:
    """Return pieces (b, A, P, ...) with an attribute's (b,) replaced by `given` (b, P, ...)."""
    chosen = F.one_hot(attribute, pieces.shape[1]).bool()
    chosen = chosen.view(*chosen.shape, *[1] * (pieces.ndim - 2))
    return torch.where(chosen, given[:, None], pieces)
