"""Any timm backbone, from its hub, from a file, or fresh."""

import timm
import torch
from torch import nn

from adde.errors import UserError, did_you_mean, foreign, reason
from adde.model import alexnet as _registered  # noqa: F401 - among timm's models from here on
from adde.model.settings import ModelSettings


def build_backbone(settings: ModelSettings) -> nn.Module:
    """A timm model without its classifier: (B, 3, S, S) float -> (B, F) float,
    or the last map (B, C, H, W) where pooling is "flatten".

    Raises:
        UserError: timm has no such model or refuses its options, its hub cannot be reached, the
            weight file is missing or does not fit.
    """
    if not timm.is_model(settings.backbone):
        raise UserError(
            f"model.backbone: expected the name of a timm model, found {settings.backbone!r}; "
            f"{did_you_mean(settings.backbone, timm.list_models())}"
        )
    options = dict(settings.backbone_options)
    if settings.pooling == "flatten":
        options["global_pool"] = ""
    try:
        backbone = timm.create_model(
            settings.backbone, pretrained=settings.pretrained, num_classes=0, **options
        )
    except Exception as error:
        found = reason(error)
        if settings.pretrained and not isinstance(error, TypeError):
            # The hub client raises its own, urllib's or the file system's errors.
            raise UserError(
                f"model.pretrained: could not get the weights of {settings.backbone!r} from timm's "
                f"hub ({found}); give a local file as model.weights"
            ) from error
        raise UserError(
            f"model.backbone_options: {settings.backbone!r} does not take {options}: {found}"
        ) from error
    if settings.weights is not None:
        _load_weights(backbone, settings)
    return backbone


def num_features(backbone: nn.Module, settings: ModelSettings) -> int:
    """F, found by one forward pass: some timm models report another number than they return.

    Raises:
        UserError: the backbone does not take pictures of `image_size`, or gives no features of a
            picture; names the size that it was made for.
    """
    side = settings.image_size
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, side, side))
        backbone.train()
        return features.flatten(1).shape[1]
    except Exception as error:  # timm's models check their input in many ways, or not at all
        made_for = getattr(backbone, "default_cfg", {}).get("input_size", (3, side, side))[-1]
        what = f"{settings.backbone!r}, made for pictures of {made_for} px, cannot encode one of "
        what += f"{side} px: {reason(error)}"
        if made_for == side:
            raise UserError(
                f"model.backbone_options: {what}; leave out what it needs not"
            ) from error
        raise UserError(
            f"model.image_size: {what}; set model.image_size to {made_for}, or in "
            f"model.backbone_options what this backbone may have for it, such as img_size = {side}"
        ) from error


def _load_weights(backbone: nn.Module, settings: ModelSettings) -> None:
    path = settings.weights
    assert path is not None
    if not path.exists():
        raise UserError(f"model.weights: {path}: no such file")
    with foreign(f"model.weights: {path}", f"weights of {settings.backbone!r}"):
        state = timm.models.load_state_dict(str(path), weights_only=True)
        missing, unexpected = backbone.load_state_dict(state, strict=False)
    # A file with a classifier is welcome; a file that leaves the backbone at random is not.
    if missing:
        raise UserError(
            f"model.weights: {path}: expected weights of {settings.backbone!r}, found none for "
            f"{missing[:5]} and {len(unexpected)} unknown ones such as {unexpected[:5]}"
        )
