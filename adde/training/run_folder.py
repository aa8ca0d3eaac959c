"""The folder of a run, fresh or with something to go on from."""

from pathlib import Path

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints.upload import Bucket, fetch, require_empty
from adde.training.config import Config
from adde.training.method import Method
from adde.training.recipes import CONFIG_NAME, config_of_run, first_difference, write_config

FINISHED_NAME = "finished.json"


def open_folder(method: Method, config: Config, resume: bool) -> Path | None:
    """The checkpoint to go on from; a fresh run's folder gets its config.toml. On the main rank.

    Raises:
        UserError: there is a checkpoint and it is not to be gone on from, or of another
            configuration; a fresh run's `checkpoints.upload` holds another run's.
    """
    checkpoints.delete_unfinished(config.run)
    bucket = Bucket(config.checkpoints.upload) if config.checkpoints.upload else None
    if bucket is not None and resume:
        fetch(bucket, config.run)
    found = checkpoints.last_checkpoint(config.run)
    if found is None:
        if bucket is not None:
            require_empty(bucket)
        write_config(config, config.run)
        return None
    if not resume:
        raise UserError(
            f"{config.run}: expected an empty run folder, found {found.path.name}; go on with "
            "--resume, or name another folder with --run"
        )
    theirs = config_of_run(method, found.state["config"]).to_json()
    if difference := first_difference(config.to_json(), theirs):
        raise UserError(
            f"{found.path}: is of another configuration; {difference} (asked for, and in the "
            f"checkpoint); use the run's own {config.run / CONFIG_NAME}, or to train anew delete "
            f"{config.run} or name another --run"
        )
    if not (config.run / CONFIG_NAME).exists():  # the checkpoint was fetched
        write_config(config, config.run)
    return found.path


def mark_finished(run: Path, step: int) -> None:
    """Note in `run` that its training has ended, after `step` steps, and its report is written."""
    write_json(run / FINISHED_NAME, {"step": step})


def is_finished(config: Config, step: int) -> bool:
    """Whether a run that stands at `step` has nothing left to do.

    A run with `checkpoints.upload` always has: what could not be uploaded before.
    """
    path = config.run / FINISHED_NAME
    return not config.checkpoints.upload and path.exists() and read_json(path)["step"] == step


def open_shards(config: Config, named: str | None = None, flag: str = "--shards") -> ShardIndex:
    """The shards that are named, or those of a configuration.

    Args:
        config: of a run or a recipe.
        named: on the command line.
        flag: that names them there.

    Raises:
        UserError: as `ShardIndex.read`; of a configuration's also where relative paths start from,
            as a run may be used from another folder than it was started in.
    """
    if named is not None:
        return ShardIndex.read(named)
    shards = config.data.shards
    try:
        return ShardIndex.read(shards)
    except UserError as error:
        local = "://" not in shards and not Path(shards).is_absolute()
        where = f", from {Path.cwd()}" if local else ""
        raise UserError(
            f"{error}; this is data.shards of the configuration, {shards!r}{where}: name the "
            f"folder with {flag} if it is elsewhere"
        ) from None


def report_incomplete_batches(order: SampleOrder) -> None:
    """Prints how an epoch's items that fill no batch are dealt with."""
    if order.dropped_per_epoch:
        print(
            f"{order.dropped_per_epoch} items at the end of each epoch's order fill no batch of "
            f"{order.batch_size} and wait for the next epoch"
        )
    if order.repeated_per_epoch:
        print(
            f"{order.repeated_per_epoch} items of each epoch are shown again to fill its last "
            f"batch of {order.batch_size}"
        )
