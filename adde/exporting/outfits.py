"""The outfit head of a bundle: opened, and refused where it does not belong to the encoder."""

from pathlib import Path

from adde.errors import UserError
from adde.exporting.export import OutfitHead
from adde.files import sha256_of_file
from adde.methods.outfits.config import OutfitsConfig
from adde.methods.outfits.model import Bilinear, digest
from adde.training.checkpoints.checkpoint import STATE_NAME
from adde.training.opening import load_model


def load_head(run: Path, encoder: str) -> OutfitHead:
    """Open the best checkpoint of an outfit head's run.

    Args:
        run: folder of the run.
        encoder: sha256 of the checkpoint that is exported.

    Raises:
        UserError: the run is of another method or form, or was trained on another checkpoint.
    """
    head, config, checkpoint = load_model(run)
    if not isinstance(config, OutfitsConfig):
        raise UserError(
            f"{run}: expected a run of the method 'outfits', found one of {config.method!r}"
        )
    if not isinstance(head, Bilinear):
        raise UserError(
            f"{run}: expected an outfit head of the form 'bilinear', which a gallery answers by "
            f"what it stores already, found {config.form!r}; train one with form = 'bilinear'"
        )
    if not head.encoder.equal(digest(encoder)):
        raise UserError(
            f"{run}: expected a head that was trained on the checkpoint which is exported, found "
            f"one of another; export {config.encoder} with its best checkpoint, or train the head "
            "again"
        )
    source = {
        "run": run.resolve().name,
        "checkpoint": checkpoint.path.name,
        "weights": sha256_of_file(checkpoint.path / STATE_NAME),
    }
    return OutfitHead(head, config.category, source)
