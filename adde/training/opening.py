"""A run's model from its checkpoint, for whoever evaluates or exports it."""

from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from adde.errors import UserError
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import (
    STATE_NAME,
    Checkpoint,
    best_checkpoint,
    last_checkpoint,
)
from adde.training.config import Config
from adde.training.method import find_method
from adde.training.recipes import CONFIG_NAME, read_recipe


def load_model(run: Path, which: str = "best") -> tuple[nn.Module, Config, Checkpoint]:
    """The model of a run's best or last checkpoint (averaged weights where it has them).

    Returns:
        The model in eval mode on the CPU, the run's configuration, and the checkpoint.

    Raises:
        UserError: `run` is no run folder or has no such checkpoint, or it is damaged.
    """
    if not (run / CONFIG_NAME).exists():
        raise UserError(f"{run}: expected a run folder with {CONFIG_NAME}, found none")
    config = read_recipe(run / CONFIG_NAME)
    checkpoint = last_checkpoint(run) if which == "last" else best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: expected a checkpoint, found none; train first")
    schema = Schema.from_json(checkpoint.state["schema"], str(checkpoint.path / STATE_NAME))
    model = find_method(config.method).build(config, schema, start=False)
    tensors = checkpoint.tensors("ema") or checkpoint.tensors("model")
    try:
        model.load_state_dict({name: stored.whole() for name, stored in tensors.items()})
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint.path}: expected weights of the model that {run / CONFIG_NAME} "
            f"describes, found: {error}"
        ) from None
    return model.eval(), config, checkpoint


def count_parameters(config: Config, schema: Schema) -> int:
    """Of the model that a recipe describes."""
    model = find_method(config.method).build(config, schema, start=False)
    return sum(p.numel() for p in model.parameters())
