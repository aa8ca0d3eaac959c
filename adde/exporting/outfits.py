"""The outfit head of a bundle."""

from pathlib import Path

from adde.errors import UserError
from adde.exporting.additions import open_addition
from adde.exporting.export import OutfitHead
from adde.methods.outfits.model import Bilinear


def load_head(run: Path, encoder: str) -> OutfitHead:
    """Open the best checkpoint of an outfit head's run.

    Args:
        run: folder of the run.
        encoder: sha256 of the checkpoint that is exported.

    Raises:
        UserError: the run is of another method or form, or was trained on another checkpoint.
    """
    head, config, source = open_addition(run, "outfits", "head", encoder)
    if not isinstance(head, Bilinear):
        raise UserError(
            f"{run}: expected an outfit head of the form 'bilinear', which a gallery answers by "
            f"what it stores already, found {config.form!r}; train one with form = 'bilinear'"
        )
    return OutfitHead(head, config.category, source)
