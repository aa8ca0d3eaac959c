"""Build a W&B workspace with the panels of a run."""

import warnings
from typing import Any

from adde.errors import UserError
from adde.training.method import Method
from adde.training.watching.panels import PANELS, Panel, sections


def build_workspace(method: Method, entity: str, project: str, run: str | None = None) -> Any:
    """Build a workspace without saving it; does not use the network.

    Args:
        method: adds its panels and tables to those of every run.
        entity: user or team.
        project: that the runs are logged to.
        run: name of the only run to show; None: all runs of the project.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():
            # It uses deprecated names of pydantic at import.
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
            from wandb_workspaces import expr
    except ImportError:
        raise UserError(
            "wandb-workspaces cannot be imported: pip install 'adde[train,dashboard]'"
        ) from None

    def plot(panel: Panel) -> Any:
        return reports.LinePlot(
            title=panel.title,
            x="step",
            metric_regex=f"^(?:{panel.keys})$",
            log_y=panel.wide_range or None,
        )

    found = [
        workspaces.Section(name=name, panels=[plot(panel) for panel in panels], is_open=True)
        for name, panels in sections((*method.panels, *PANELS)).items()
    ]
    tables = ("pictures", *method.tables)
    shown: list[Any] = [reports.WeavePanelSummaryTable(table_name=name) for name in tables]
    shown.append(reports.MediaBrowser(title="Matrix", media_keys=["matrix"]))
    found.insert(1, workspaces.Section(name="Evaluation", panels=shown, is_open=True))
    only = expr.And(workspaces.Metric("Name") == run) if run else ""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"ADDE: {run}" if run else "ADDE",
        sections=found,
        settings=workspaces.WorkspaceSettings(x_axis="step"),
        runset_settings=workspaces.RunsetSettings(filters=only),
    )
