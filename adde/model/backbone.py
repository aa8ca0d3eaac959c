"""timm backbones with weights from timm's hub, from a file, or initialised at random."""

import sys
from typing import Any

import timm
import torch
from torch import Tensor, nn

from adde.errors import UserError, did_you_mean, reason, untrusted
from adde.model import alexnet as _registered  # noqa: F401 - registers the model
from adde.model.settings import ModelSettings


def build_backbone(settings: ModelSettings) -> nn.Module:
    """Build a timm model without its classifier: (B, 3, S, S) float -> (B, F) float.

    With another `pooling` than "timm" it returns the last feature map: (B, C, H, W), (B, H, W, C),
    or the tokens (B, P, C) of a transformer.

    Raises:
        UserError: timm has no such model or rejects its options, its hub cannot be reached, or the
            weight file is missing or does not match.
    """
    if not timm.is_model(settings.backbone):
        raise UserError(
            f"model.backbone: expected the name of a timm model, found {settings.backbone!r}; "
            f"{did_you_mean(settings.backbone, timm.list_models())}"
        )
    options = dict(settings.backbone_options)
    published = timm.models.get_pretrained_cfg(settings.backbone)
    if (
        published is not None and published.fixed_input_size
    ):  # such as a model with position embeddings
        options.setdefault("img_size", settings.image_size)
    if settings.pooling != "timm":
        options["global_pool"] = ""
    try:
        backbone = timm.create_model(
            settings.backbone, pretrained=settings.pretrained, num_classes=0, **options
        )
    except Exception as error:
        found = reason(error)
        if settings.pretrained and not isinstance(error, TypeError):
            # The hub client raises its own errors, those of urllib and of the file system.
            raise UserError(
                f"model.pretrained: could not get the weights of {settings.backbone!r} from timm's "
                f"hub ({found}); give a local file: --model.no-pretrained --model.weights FILE"
            ) from error
        raise UserError(
            f"model.backbone_options: {settings.backbone!r} does not take {options}: {found}"
        ) from error
    if settings.weights is not None:
        _load_weights(backbone, settings)
    if settings.checkpointing:
        _checkpoint_gradients(backbone, settings)
    return backbone


def feature_shape(backbone: nn.Module, settings: ModelSettings) -> tuple[int, ...]:
    """Return the shape of one picture's features, measured by a forward pass.

    What timm models report about themselves is wrong for some.

    Raises:
        UserError: the backbone cannot encode pictures of `image_size`, or returns no features;
            names the size that it was made for.
    """
    side = settings.image_size
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, side, side))
        backbone.train()
        return tuple(features.shape[1:])
    except Exception as error:  # timm models raise many types of errors
        made_for = getattr(backbone, "default_cfg", {}).get("input_size", (3, side, side))[-1]
        if cut := cut_patches(backbone, settings):
            raise UserError(cut) from error
        what = f"{settings.backbone!r}, made for pictures of {made_for} px, cannot encode one of "
        what += f"{side} px: {reason(error)}"
        if made_for == side:
            raise UserError(
                f"model.backbone_options: {what}; remove the options that it does not need"
            ) from error
        raise UserError(
            f"model.image_size: {what}; set model.image_size to {made_for}, or in "
            f"model.backbone_options this backbone's option for it, such as img_size = {side}"
        ) from error


def cut_patches(backbone: Any, settings: ModelSettings) -> str | None:
    """Return a message if no whole number of a ViT's patches fills the picture; else None.

    Some ViTs raise an error then, others ignore what is left over at the right and the bottom.
    """
    patches: Any = getattr(backbone, "patch_embed", None)
    sides, side = getattr(patches, "patch_size", None), settings.image_size
    if not isinstance(sides, tuple) or getattr(patches, "dynamic_img_pad", False):
        return None
    patch = int(sides[0])
    if not side % patch:
        return None
    near = " or ".join(str(n * patch) for n in (side // patch, side // patch + 1) if n)
    return (
        f"model.image_size: expected a multiple of {patch}, the side of a patch of "
        f"{settings.backbone!r}, found {side}; set model.image_size to {near}"
    )


def _checkpoint_gradients(backbone: Any, settings: ModelSettings) -> None:
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:  # timm's way to say that it has none
        raise UserError(
            f"model.checkpointing: expected false, because {settings.backbone!r} cannot recompute "
            f"its activations, found true ({reason(error)})"
        ) from None


def positions(features: Tensor, backbone: nn.Module) -> Tensor:
    """Return a feature map, or a transformer's tokens, as (B, P, C): P positions."""
    if features.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") == "NCHW":
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, -2)


def _load_weights(backbone: nn.Module, settings: ModelSettings) -> None:
    path = settings.weights
    assert path is not None
    if not path.exists():
        raise UserError(f"model.weights: {path}: no such file")
    with untrusted(f"model.weights: {path}", f"weights of {settings.backbone!r}"):
        state = _converted(timm.models.load_state_dict(str(path), weights_only=True), backbone)
    own = backbone.state_dict()
    # A classifier in the file is ignored; backbone weights that are missing are an error.
    if missing := [name for name in own if name not in state]:
        unknown = [name for name in state if name not in own]
        raise UserError(
            f"model.weights: {path}: expected weights of {settings.backbone!r}, found none for "
            f"{missing[:5]} and {len(unknown)} unknown ones such as {unknown[:5]}; give a file "
            f"with the keys of timm.create_model({settings.backbone!r}).state_dict(), or the "
            "original file of OpenCLIP (keys visual.*) or DINOv2 with timm's model of the same name"
        )
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"model.weights: {path}: {name}: expected shape {tuple(value.shape)} of "
                f"{settings.backbone!r} at model.image_size {settings.image_size}, found "
                f"{tuple(state[name].shape)}; the file is of another model, or of an image size "
                "that timm cannot convert"
            )
    backbone.load_state_dict(state, strict=False)


def _converted(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Convert weights to timm's names and the model's image size by timm's own conversion.

    Weights that already match are returned unchanged, because the conversion would mistake some of
    them for an older format.
    """
    if all(n in state and state[n].shape == v.shape for n, v in backbone.state_dict().items()):
        return state
    family = sys.modules[type(backbone).__module__]
    convert = getattr(family, "checkpoint_filter_fn", None)
    return state if convert is None else convert(dict(state), backbone)
