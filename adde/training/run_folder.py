"""The folder of a run: open it, resume from it, complete it."""

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
from adde.training.watching.report import write_report

FINISHED_NAME = "finished.json"


def open_folder(method: Method, config: Config, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, or write config.toml for a new run; on rank 0.

    Raises:
        UserError: there is a checkpoint without `resume`, or one of another configuration; or
            `checkpoints.upload` holds another run's checkpoints.
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
            f"{config.run}: expected an empty run folder, found {found.path.name}; continue that "
            "run with --resume, or name another folder with --run"
        )
    theirs = config_of_run(method, found.state["config"]).to_json()
    if difference := first_difference(config.to_json(), theirs):
        raise UserError(
            f"{found.path}: expected the configuration of this run, found another: {difference} "
            f"(requested, and in the checkpoint); use the run's own {config.run / CONFIG_NAME}, or "
            f"to train anew delete {config.run} or name another --run"
        )
    if not (config.run / CONFIG_NAME).exists():  # the checkpoint was downloaded
        write_config(config, config.run)
    return found.path


def finish_folder(run: Path, step: int) -> None:
    """Write the report, and record that training ended after `step` steps."""
    report = write_report(run)
    write_json(run / FINISHED_NAME, {"step": step})
    print(f"report: {report}")


def is_finished(config: Config, step: int) -> bool:
    """Whether a run that stands at `step` has nothing left to do.

    With `checkpoints.upload` it never has: uploads may have failed.
    """
    path = config.run / FINISHED_NAME
    return not config.checkpoints.upload and path.exists() and read_json(path)["step"] == step


def open_shards(config: Config, named: str | None = None, flag: str = "--shards") -> ShardIndex:
    """Open the shards named on the command line, else those of a configuration.

    Args:
        config: of a run or a recipe.
        named: folder or address from the command line.
        flag: the option that names it there.

    Raises:
        UserError: as `ShardIndex.read`. For a configuration's shards the message adds where
            relative paths start, because the run may have started in another folder.
    """
    if named is not None:
        return ShardIndex.read(named)
    shards = config.data.shards
    try:
        return ShardIndex.read(shards)
    except UserError as error:
        local = "://" not in shards and not Path(shards).is_absolute()
        where = f", relative to {Path.cwd()}" if local else ""
        raise UserError(
            f"{error}; the path is data.shards of the configuration, {shards!r}{where}: name the "
            f"folder with {flag} if it is elsewhere"
        ) from None


def print_unfilled_batches(order: SampleOrder) -> None:
    """Print what happens to items of an epoch that do not fill its last batch."""
    size = order.batch_size
    if left := order.dropped_per_epoch:
        print(f"each epoch skips {left} items that do not fill a batch of {size}, each time others")
    if left := order.repeated_per_epoch:
        print(f"each epoch repeats {left} items to fill its last batch of {size}")
