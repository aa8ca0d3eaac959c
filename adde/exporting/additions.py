"""Open models that stand on the exported ADDE, and refuse those that stand on another."""

from pathlib import Path
from typing import Any

from torch import nn

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.methods.adde.opening import digest
from adde.training.checkpoints.checkpoint import STATE_NAME
from adde.training.opening import load_model


def open_addition(
    run: Path, method: str, what: str, encoder: str
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Open the best checkpoint of a run that stands on a run of ADDE.

    Args:
        run: folder of the run.
        method: its method.
        what: names the model, such as `head`.
        encoder: sha256 of the checkpoint of ADDE that is exported.

    Returns:
        The model, its configuration, and what names the checkpoint in bundle.json.

    Raises:
        UserError: the run is of another method, or was trained on another checkpoint.
    """
    model, found, checkpoint = load_model(run)
    config: Any = found
    if config.method != method:
        raise UserError(
            f"{run}: expected a run of the method {method!r}, found one of {config.method!r}"
        )
    if not model.get_buffer("encoder").equal(digest(encoder)):
        raise UserError(
            f"{run}: expected a {what} that was trained on the checkpoint which is exported, found "
            f"one of another; export {config.encoder} with its best checkpoint, or train the "
            f"{what} again"
        )
    source = {
        "run": run.resolve().name,
        "checkpoint": checkpoint.path.name,
        "weights": sha256_of_file(checkpoint.path / STATE_NAME),
    }
    return model, config, source
