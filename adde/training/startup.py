"""Everything before the first step: check the inputs, open the run's folder, build the model."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from adde.distributed import broadcast_from_main, rank, world_size
from adde.errors import UserError
from adde.files import this_process
from adde.schema import UNKNOWN, Rows, Schema
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.reader import split_labels
from adde.training.batch_size import micro_batch
from adde.training.checkpoints.checkpoint import Checkpoint, open_checkpoint
from adde.training.config import Config
from adde.training.method import Method
from adde.training.recipes import CONFIG_NAME, read_settings
from adde.training.resilience.preflight import preflight
from adde.training.resilience.requirements import (
    on_gpus,
    require_room,
    require_shared,
    require_split,
    warn_early,
)
from adde.training.run_folder import is_finished, open_folder, open_shards, print_unfilled_batches
from adde.training.strategies.batch_norm import synchronise


@dataclass(frozen=True)
class Startup:
    """The inputs and the model of a run, before its first step."""

    index: ShardIndex
    order: SampleOrder
    checkpoint: Checkpoint | None
    """To resume from."""
    finished: bool
    """Whether the run that is resumed has nothing left to do; there is then no model."""
    model: Any = None
    """With initial weights, or those of the checkpoint."""
    writer: str = ""
    """Rank 0's process (`adde.files.this_process`)."""
    launch: dict[str, Any] | None = None
    """The line of preflight.jsonl about this start, on rank 0."""


def choose_precision(config: Config, resume: bool) -> Config:
    """Replace the precision `auto`: by that of the run to resume, or by what the device has."""
    if config.precision != "auto":
        return config
    recorded = config.run / CONFIG_NAME
    if resume and recorded.exists():
        return replace(config, precision=read_settings(recorded).get("precision", "fp32"))
    bf16 = on_gpus() and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, precision="bf16" if bf16 else "fp32")


def start(method: Method, config: Config, resume: bool, device: torch.device) -> Startup:
    """Open a run, on all ranks.

    Raises:
        UserError: the run's folder holds another run, ranks differ, or the shards, their schema,
            the batch size or the disk do not fit the run.
    """
    index = open_shards(config, flag="--data.shards")
    for split in ("train", "val"):
        require_split(index, split, training=True)
    checked = preflight(config, index, device)
    data = config.data
    order = SampleOrder(
        index.split("train"),
        data.batch_size,
        config.seed,
        data.window,
        data.last_batch,
        _labels_to_balance(index, data.balance) if data.balance else None,
    )
    micro_batch(data, world_size())  # raises if the batch does not divide among the ranks
    resume = resume or checked.resumes(config.run)
    found, writer = broadcast_from_main(
        lambda: (open_folder(method, config, resume), this_process())
    )
    require_shared(config.run, writer)
    checkpoint = open_checkpoint(found) if found else None
    if checkpoint is not None:
        _require_same_data(checkpoint, index, config)
        step = checkpoint.position.step
        if broadcast_from_main(lambda: is_finished(config, step)):
            if rank() == 0:
                print(f"{config.run}: finished at step {step}, nothing to do")
            return Startup(index, order, checkpoint, finished=True)

    torch.manual_seed(config.seed)
    model: Any = method.build(config, index.schema)
    synchronise(model, config, device)
    broadcast_from_main(lambda: require_room(config, model))
    launch = None
    if rank() == 0:
        launch = checked.write(config.run, checkpoint.position.step if checkpoint else 0)
        warn_early(index)
        print_unfilled_batches(order)
    if checkpoint is not None:
        model.load_state_dict(checkpoint.load("model"))
        if rank() == 0:
            print(f"resuming at step {checkpoint.position.step} from {checkpoint.path}")
    return Startup(index, order, checkpoint, False, model, writer, launch)


def _labels_to_balance(index: ShardIndex, name: str) -> list[Rows]:
    """Read the labels of the attribute that is balanced, by shard; on all ranks.

    Raises:
        UserError: there is no such attribute, or all its labels are unknown.
    """
    try:
        column = index.schema.attribute_index(name)
    except UserError as error:
        raise UserError(f"data.balance: {error}") from None
    found = broadcast_from_main(
        lambda: [labels[:, column] for labels in split_labels(index, "train")]
    )
    if all((values == UNKNOWN).all() for values in found):
        raise UserError(
            f"data.balance: expected an attribute with known labels in the training split of "
            f"{index.root}, found none of {name!r}; name another attribute, or leave it out"
        )
    return found


def _require_same_data(checkpoint: Checkpoint, index: ShardIndex, config: Config) -> None:
    where, trained_on = str(checkpoint.path), checkpoint.state["shards"]
    schema = Schema.from_json(checkpoint.state["schema"], where)
    schema.require_same(index.schema, where, str(index.root))
    if (found := index.fingerprint("train")) != trained_on:
        raise UserError(
            f"{where}: expected the shards it was trained on (fingerprint {trained_on}), found "
            f"others in {index.root} ({found}); to train on these from the start, delete "
            f"{config.run} or name another --run"
        )
