"""Load a run's model from its checkpoints, for evaluation and export."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from adde.distributed import broadcast_from_main
from adde.errors import UserError
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import (
    BEST_NAME,
    STATE_NAME,
    Checkpoint,
    best_checkpoint,
    last_checkpoint,
)
from adde.training.config import Config
from adde.training.evaluation import Evaluator
from adde.training.method import Method, find_method
from adde.training.recipes import CONFIG_NAME, read_recipe


def load_model(run: Path, which: str = "best") -> tuple[nn.Module, Config, Checkpoint]:
    """Load the model of a run's best or last checkpoint, with averaged weights if it has them.

    Returns:
        The model in eval mode on the CPU, the run's configuration, and the checkpoint.

    Raises:
        UserError: `run` is not a run folder, or has no such checkpoint, or it is damaged.
    """
    if not (run / CONFIG_NAME).exists():
        raise UserError(f"{run}: expected a run folder with {CONFIG_NAME}, found none")
    config = read_recipe(run / CONFIG_NAME)
    checkpoint = last_checkpoint(run) if which == "last" else best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: expected a checkpoint, found none; train first")
    schema = Schema.from_json(checkpoint.state["schema"], str(checkpoint.path / STATE_NAME))
    model = find_method(config.method).build(config, schema, start=False)
    try:
        model.load_state_dict(checkpoint.load("ema") or checkpoint.load("model"))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint.path}: expected weights of the model that {run / CONFIG_NAME} "
            f"describes, found: {error}"
        ) from None
    return model.eval(), config, checkpoint


def finish_best(method: Method, run: Path, device: torch.device, evaluator: Evaluator) -> None:
    """Let the method complete a run's best checkpoint; on all ranks."""
    if not broadcast_from_main((run / "checkpoints" / BEST_NAME).exists):
        return  # the user has deleted it from a finished run
    model, _, checkpoint = load_model(run)
    method.finish(model.to(device), checkpoint, evaluator)


def count_parameters(config: Config, schema: Schema) -> int:
    """Count the parameters of the model that a recipe describes."""
    model = find_method(config.method).build(config, schema, start=False)
    return sum(p.numel() for p in model.parameters())
