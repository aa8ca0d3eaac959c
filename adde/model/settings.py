"""Model settings of a recipe."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adde.preprocess import Fit


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Backbone and widths; A and V come from the schema."""

    backbone: str = "resnet18"
    """Name of any timm model."""

    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model, such as {channels = [32, 64, 128, 256]}."""

    pooling: Literal["timm", "flatten", "attention"] = "timm"
    """timm: the backbone's own, usually the mean over the last feature map; flatten: all positions
    of the map, for pictures in which attributes have fixed positions; attention: a weighted mean
    over the map per attribute, whose weights are learned, so that each attribute is read where it
    can be seen."""

    pretrained: bool = False
    """Start from the weights timm's hub has for this backbone."""

    weights: Path | None = None
    """Start from this file of backbone weights (.safetensors, .pth) instead: timm's, or an original
    that timm can convert, such as the ViTs of OpenCLIP and DINOv2. Position embeddings are resized
    to image_size."""

    image_size: int = 224
    """Side of the square input, in pixels; learned position embeddings depend on it."""

    fit: Fit = "pad"
    """How pictures become square: crop takes the central square, which loses the top and bottom of
    a portrait picture; pad keeps the whole picture and adds bars in the colours of its border;
    squash distorts it. The bundle uses the same setting."""

    width: int = 340
    """D, the width of one attribute's subspace."""

    hidden: int = 512
    """Width of the hidden layer of each attribute's MLP."""

    equal_subspaces: bool = False
    """Scale every subspace to length sqrt(D), so that each attribute has the same weight in a
    distance, which then counts differing attributes. The published model learns the lengths."""

    presence: bool = True
    """Predict whether each attribute is present, trained on which labels are known. An attribute
    that is not visible is then compared as absent instead of by the content of its subspace. The
    published model has no such output."""

    dropout: float = 0.0
    """Share of backbone features dropped before the heads, in training."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("image_size", "width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, found {self.dropout}")
        if self.pretrained and self.weights is not None:
            raise ValueError("expected pretrained or weights, found both; leave one out")

    def without_start_weights(self) -> "ModelSettings":
        """Return the settings without pretrained weights, for a model loaded from a checkpoint."""
        return replace(self, pretrained=False, weights=None)
