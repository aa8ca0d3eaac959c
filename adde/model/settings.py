"""What a model is made of, as a recipe states it."""

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

    pooling: Literal["timm", "flatten"] = "timm"
    """timm: the backbone's own, mostly the mean over the last map; flatten: every place of the
    last map apart, for pictures in which an attribute has its place."""

    pretrained: bool = False
    """Start from the weights timm's hub has for this backbone."""

    weights: Path | None = None
    """Start from this file of backbone weights (.safetensors, .pth) instead: timm's, or the
    original of what timm converts, such as OpenCLIP's and DINOv2's ViTs. Positions are resized to
    image_size."""

    image_size: int = 224
    """Side of the square input, in pixels; models whose positions are learned are made for it."""

    fit: Fit = "pad"
    """How pictures become square: crop cuts the square from the centre, which takes a portrait
    picture's top and bottom; pad keeps all of it, with bars in the colours of its border; squash
    keeps all of it and distorts it. The bundle and all that is served follow."""

    width: int = 340
    """D, the width of one attribute's subspace."""

    hidden: int = 512
    """Width of the hidden layer of each attribute's MLP."""

    equal_subspaces: bool = False
    """Scale every subspace to length sqrt(D), so that each attribute weighs the same in a
    distance, which then counts differing attributes. Off as published: lengths are learned."""

    presence: bool = True
    """Predict for each attribute whether it is there at all, from which labels are known: an
    attribute that cannot be seen is then compared as absent, not by what else is in its subspace.
    The published model has no such output."""

    dropout: float = 0.0
    """Share of backbone features dropped before the heads, in training."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("image_size", "width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, found {self.dropout}")
        if self.pretrained and self.weights is not None:
            raise ValueError("expected pretrained or weights, found both; leave one out")

    def without_start_weights(self) -> "ModelSettings":
        """The same model, for weights that come from elsewhere."""
        return replace(self, pretrained=False, weights=None)
