"""Open a run of ADDE for evaluation or export."""

from pathlib import Path

from adde.errors import UserError
from adde.methods.adde.config import AddeConfig
from adde.methods.adde.model import ADDE
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.opening import load_model


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
