"""Open a run of ADDE: for evaluation, for export, and for models that are trained on top of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adde.errors import UserError
from adde.files import sha256_of_file
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.model import ADDE
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import STATE_NAME, Checkpoint
from adde.training.opening import load_model
from adde.training.recipes import CONFIG_NAME, read_recipe


def load_adde(run: Path, which: str = "best") -> tuple[ADDE, AddeConfig, Checkpoint]:
    """As `load_model`.

    Raises:
        UserError: as `load_model`, or the run is of another method.
    """
    model, config, checkpoint = load_model(run, which)
    if not isinstance(model, ADDE) or not isinstance(config, AddeConfig):
        raise UserError(
            f"{run}: expected a run of the method 'adde', found one of {config.method!r}"
        )
    return model, config, checkpoint


def adde_config(run: Path) -> AddeConfig:
    """Read the configuration of the ADDE run that another model's setting `encoder` names.

    Raises:
        UserError: it is none, or a run of another method.
    """
    if not (run / CONFIG_NAME).exists():
        raise UserError(f"encoder: expected the folder of a run of 'adde', found none in {run}")
    config = read_recipe(run / CONFIG_NAME)
    if not isinstance(config, AddeConfig):
        raise UserError(
            f"encoder: expected a run of the method 'adde', found {run}, which is one of "
            f"{config.method!r}"
        )
    return config


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """The best checkpoint of an ADDE run, for a model that is trained on top of it."""

    model: ADDE
    """In eval mode; its weights take no gradient."""
    checkpoint: Checkpoint
    weights: str
    """sha256 of the checkpoint."""

    @classmethod
    def open(cls, run: Path, schema: Schema, where: str) -> "FrozenEncoder":
        """Open it on the CPU.

        Args:
            run: folder of the ADDE run.
            schema: that it must have.
            where: names the catalogue with this schema.

        Raises:
            UserError: as `load_adde`, or the schemas differ.
        """
        model, _, checkpoint = load_adde(run)
        model.schema.require_same(schema, str(checkpoint.path), where)
        weights = sha256_of_file(checkpoint.path / STATE_NAME)
        return cls(model.requires_grad_(False), checkpoint, weights)

    def __deepcopy__(self, memo: object) -> "FrozenEncoder":
        """Return itself: it does not change, and is large."""
        return self


def digest(sha256: str) -> Tensor:
    """Return (32,) uint8 of a hash in hexadecimal digits."""
    return torch.tensor([*bytes.fromhex(sha256)], dtype=torch.uint8)


def require_trained_on(encoder: Tensor, weights: str, what: str, where: str) -> None:
    """Check that a model was trained on a checkpoint of ADDE.

    Args:
        encoder: (32,) uint8 sha256 of the checkpoint that the model was trained on.
        weights: sha256 of the checkpoint that there is.
        what: names the model, such as `head`.
        where: names the checkpoint.

    Raises:
        UserError: it was trained on another.
    """
    if not encoder.cpu().equal(digest(weights)):
        raise UserError(
            f"{where}: expected the checkpoint that the {what} was trained on, found another; "
            f"train the {what} again, in a new --run"
        )
