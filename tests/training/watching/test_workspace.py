"""The W&B workspace, built without network, and launch/dashboard.py."""

import runpy
import sys
from pathlib import Path

import pytest

from adde.methods.adde.method import METHOD
from adde.training.watching.panels import PANELS, sections
from adde.training.watching.workspace import build_workspace

PROGRAM = str(Path(__file__).parents[3] / "launch" / "dashboard.py")


def test_the_workspace_has_the_panels_of_the_page() -> None:
    workspace = build_workspace(METHOD, "team", "adde", "my-run")
    content = workspace._to_model().model_dump(by_alias=True)  # what W&B receives
    banks = content["spec"]["section"]["panelBankConfig"]["sections"]
    by_name = {bank["name"]: bank["panels"] for bank in banks}
    shown = (*METHOD.panels, *PANELS)
    for name, panels in sections(shown).items():
        assert [p["config"]["chartTitle"] for p in by_name[name]] == [p.title for p in panels]
        for found, panel in zip(by_name[name], panels):
            assert found["config"]["metricRegex"] == f"^(?:{panel.keys})$"
            assert found["config"]["useMetricRegex"]
            assert found["config"]["xAxis"] == "step"
    assert len(shown) == sum(len(panels) for panels in sections(shown).values())
    answers = str(by_name["Evaluation"])
    assert all(name in answers for name in ("pictures", "matrix", *METHOD.tables))
    assert "my-run" in str(content["spec"]["section"]["runSets"])


def dashboard(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", *words])
    runpy.run_path(PROGRAM, run_name="__main__")


def test_without_a_login_the_page_is_written(tmp_path, monkeypatch, capsys) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "time": 1.0, "lr": 0.5}\n')
    dashboard(monkeypatch, f"--run={tmp_path}")
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert "Learning rate" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "project adde: expected a W&B login, found none"),
        (("--run=nowhere",), "nowhere: expected a run folder with log.jsonl, found none"),
    ],
)
def test_what_cannot_be_shown_is_told(words, message, monkeypatch, capsys) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(SystemExit):
        dashboard(monkeypatch, *words)
    assert message in capsys.readouterr().err


def test_with_a_login_the_link_is_printed(tmp_path, monkeypatch, capsys) -> None:
    import wandb
    import wandb_workspaces.workspaces as workspaces

    saved = []

    class Saved(workspaces.Workspace):
        def save(self):
            saved.append(self)
            return self

        url = "https://wandb.ai/me/shoes?nw=1"

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", lambda: type("Api", (), {"default_entity": "me"}))
    monkeypatch.setattr(workspaces, "Workspace", Saved)
    dashboard(monkeypatch, "--project=shoes")
    assert "https://wandb.ai/me/shoes?nw=1" in capsys.readouterr().out
    assert (saved[0].entity, saved[0].project, saved[0].name) == ("me", "shoes", "ADDE")
