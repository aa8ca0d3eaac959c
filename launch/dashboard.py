"""Create the dashboard of a run or project: a W&B workspace, or a page if there is no login.

python launch/dashboard.py --run runs/quickstart
python launch/dashboard.py --project adde --entity my-team
"""

import os
from pathlib import Path

import tyro

from adde.errors import UserError, run_program
from adde.training.method import Method
from adde.training.recipes import CONFIG_NAME, method_of, read_settings
from adde.training.watching.report import write_report
from adde.training.watching.tracking import LOG_NAME, PROJECT, has_login
from adde.training.watching.workspace import build_workspace


def dashboard(
    run: Path | None = None,
    project: str = os.environ.get("WANDB_PROJECT", PROJECT),
    entity: str | None = os.environ.get("WANDB_ENTITY"),
    method: str = "adde",
) -> None:
    """Print the link of a new workspace, or the path of the page.

    Args:
        run: folder of the run; None: all runs of the project.
        project: W&B project.
        entity: user or team; default: that of the login.
        method: method of the project's runs, for its panels.
    """
    if run is not None and not (run / LOG_NAME).exists():
        raise UserError(f"{run}: expected a run folder with {LOG_NAME}, found none")
    if not has_login():
        if run is None:
            raise UserError(
                f"project {project}: expected a W&B login, found none; run `wandb login`, or use "
                "--run FOLDER for a page of one run"
            )
        print(f"no W&B login: {write_report(run)} shows the same panels")
        return
    settings = read_settings(run / CONFIG_NAME) if run else {"method": method}
    print(_save(method_of(settings), project, entity, run.name if run else None))


def _save(method: Method, project: str, entity: str | None, run: str | None) -> str:
    import wandb

    entity = entity or wandb.Api().default_entity
    if not entity:
        raise UserError("expected a W&B user or team, found none; name one with --entity")
    return build_workspace(method, entity, project, run).save().url


if __name__ == "__main__":
    run_program(lambda: tyro.cli(dashboard))
