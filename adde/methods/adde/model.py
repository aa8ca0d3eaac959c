"""The whole model in one module, so that wrappers such as DDP see every use of a parameter."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adde.methods.adde.heads import (
    AttributeClassifiers,
    AttributeHeads,
    AttributePooling,
    PresenceHead,
)
from adde.methods.adde.memory import PrototypeMemory
from adde.model.backbone import build_backbone, feature_shape, positions
from adde.model.settings import ModelSettings
from adde.preprocess import Preprocess
from adde.schema import Schema


class Encoding(NamedTuple):
    """Outputs for pictures without an edit."""

    embeddings: Tensor
    """r, (B, A, D) float32."""
    logits: Tensor
    """(B, V) float32."""
    presence: Tensor | None
    """(B, A) float32 logits of an attribute being present; None without `model.presence`."""


class Forward(NamedTuple):
    """Outputs of one forward pass; the fields after `presence` are None without an edit."""

    embeddings: Tensor
    """See `Encoding`."""
    logits: Tensor
    presence: Tensor | None
    edited: Tensor | None = None
    """r' = r + M i, (B, A, D) float32."""
    edited_logits: Tensor | None = None
    """Logits of r', (B, V) float32."""
    own_prototypes: Tensor | None = None
    """M v for each item's own labels, (B, A, D) float32."""
    target_prototypes: Tensor | None = None
    """M v for each item's target labels, (B, A, D) float32."""
    off_block: Tensor | None = None
    """||N o M||_1, scalar."""


class ADDE(nn.Module):
    """Attribute-Driven Disentangled Encoder with its memory (Hou et al., ICCV 2021).

    Raises:
        UserError: see `build_backbone`.
    """

    def __init__(self, settings: ModelSettings, schema: Schema) -> None:
        super().__init__()
        self.settings, self.schema = settings, schema
        # Pictures arrive as NHWC, and convolutions are faster in that layout.
        self.backbone = build_backbone(settings).to(memory_format=torch.channels_last)
        published: dict[str, Any] = self.backbone.default_cfg  # pyright: ignore[reportAssignmentType]
        mean, std = published["mean"], published["std"]
        self.preprocess = Preprocess(settings.image_size, tuple(mean), tuple(std), settings.fit)
        shape = feature_shape(self.backbone, settings)
        features, self.pooling = math.prod(shape), None
        if settings.pooling == "attention":
            places, features = positions(torch.empty(1, *shape), self.backbone).shape[1:]
            self.pooling = AttributePooling(schema, places, features)
        self.dropout = nn.Dropout(settings.dropout)
        self.heads = AttributeHeads(
            schema, features, settings.hidden, settings.width, settings.equal_subspaces
        )
        self.classifiers = AttributeClassifiers(schema, settings.width)
        self.memory = PrototypeMemory(schema, settings.width)
        self.presence = PresenceHead(schema, settings.width) if settings.presence else None
        # (x / 255 - mean) / std as one multiply-add.
        scale = 1 / (255 * torch.tensor(std))
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        shift = -torch.tensor(mean) / torch.tensor(std)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(
        self,
        images: Tensor,
        own_hot: Tensor | None = None,
        target_hot: Tensor | None = None,
    ) -> Forward:
        """Encode pictures and, if targets are given, edit them.

        Args:
            images: (B, S, S, 3) uint8, or (B, 3, S, S) float on the 0..255 scale.
            own_hot: (B, V) float, multi-hot labels.
            target_hot: (B, V) float, multi-hot labels after the edit.
        """
        encoding = embeddings, _, _ = self.encode(images)
        if own_hot is None or target_hot is None:
            return Forward(*encoding)
        own, target = self.memory(own_hot), self.memory(target_hot)
        # M is linear: M i = M v_target - M v_own, so two products with M are enough.
        edited = embeddings + (target - own)
        edited_logits = self.classifiers(edited)
        off_block = self.memory.off_block_l1()
        return Forward(*encoding, edited, edited_logits, own, target, off_block)

    def encode(self, images: Tensor) -> Encoding:
        """Encode pictures as in `forward`."""
        if images.dtype == torch.uint8:
            # Cast first: TensorRT supports uint8 only as the input of a cast (TensorRT 3985).
            images = images.to(self.scale.dtype).permute(0, 3, 1, 2)
        images = (images * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        features = self.backbone(images)
        if self.pooling is None:
            features = features.flatten(1)
        else:
            features = self.pooling(positions(features, self.backbone))
        embeddings = self.heads(self.dropout(features))
        presence = None if self.presence is None else self.presence(embeddings)
        return Encoding(embeddings, self.classifiers(embeddings), presence)

    def edit(self, embeddings: Tensor, indicator: Tensor) -> Tensor:
        """Compute r' = r + M i from embeddings (B, A, D) and indicator (B, V) in {-1, 0, 1}."""
        return embeddings + self.memory(indicator)
