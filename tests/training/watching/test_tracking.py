import builtins
import io
import json
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from adde.errors import UserError
from adde.training.resilience.git_info import git_state
from adde.training.watching.alarms import Alert
from adde.training.watching.displays import Evaluated, Matrix, PictureRow, Pictures, Table
from adde.training.watching.tracking import Tracker, read_log

NAMES = ["top=red", "top=blue", "hat=none", "hat=cap"]


def picture(colour: str, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, kind)
    return content.getvalue()


def evaluated(figures: dict[str, float]) -> Evaluated:
    answers = [(picture("blue", "WEBP"), True), (picture("green", "JPEG"), False)]
    lines = {"before": answers[::-1], "after": answers}
    rows = [PictureRow("top: red -> blue", picture("red"), lines)]
    matrix = Matrix("Cosines", "Between values.", np.eye(4, dtype="f"), NAMES, (2, 2))
    table = Table(
        "nearest", "Nearest", "", ["value", "energy"], [["top=red", 0.5], ["hat=cap", None]]
    )
    return Evaluated(figures, Pictures("Answers", "", rows), matrix, (table,))


def open_tracker(run, wandb="off", resume_step=0, main=True) -> Tracker:
    return Tracker(run, {"seed": 1}, wandb, resume_step, main)


def test_a_full_disk_is_told_with_the_logs_name(tmp_path, little_room) -> None:
    tracker = open_tracker(tmp_path / "run")
    little_room(100)
    with pytest.raises(OSError, match="File too large") as failure:
        for step in range(9):
            tracker.log(step, {"encoder/loss": 0.5})
    assert failure.value.filename == str(tmp_path / "run/log.jsonl")
    little_room(100_000)
    tracker.close()
    steps = [line["step"] for line in read_log(tmp_path / "run/log.jsonl")]
    assert steps == list(range(len(steps)))


def test_each_line_is_json_and_there_at_once(tmp_path) -> None:
    with closing(open_tracker(tmp_path / "run")) as tracker:
        tracker.log(1, {"encoder/loss": 0.5, "lr": float("nan")})
        tracker.log(2, {"encoder/loss": np.float32(0.25)})
        text = (tmp_path / "run/log.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert (first["step"], first["encoder/loss"], first["lr"]) == (1, 0.5, None)
    assert (second["step"], second["encoder/loss"]) == (2, 0.25)
    assert 0 <= second["time"] - first["time"] < 60


def test_resuming_drops_what_will_be_done_again_and_a_torn_line(tmp_path) -> None:
    with closing(open_tracker(tmp_path)) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"a": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "a":')
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    with closing(open_tracker(tmp_path, resume_step=3)) as tracker:
        tracker.log(4, {"a": 40})
    log = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["a"]) for line in log] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_other_ranks_write_nothing(tmp_path) -> None:
    with closing(open_tracker(tmp_path / "run", wandb="offline", main=False)) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.log_evaluation(1, evaluated({"a": 1.0}))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_leaves_what_it_shows(tmp_path) -> None:
    with closing(open_tracker(tmp_path)) as tracker:
        tracker.log_evaluation(7, evaluated({"hit@30": 0.5}))
        tracker.log_evaluation(8, Evaluated({"hit@30": 0.6}))  # without displays
    stored = json.loads((tmp_path / "evaluation/displays.json").read_text())
    (row,) = stored["pictures"]["rows"]
    assert stored["step"] == 7
    assert row["title"] == "top: red -> blue"
    assert row["picture"].startswith("data:image/png;base64,")
    kinds = [answer["picture"].partition(";")[0] for answer in row["lines"]["after"]]
    assert kinds == ["data:image/webp", "data:image/jpeg"]
    good = {name: [answer["good"] for answer in found] for name, found in row["lines"].items()}
    assert good == {"before": [False, True], "after": [True, False]}
    assert (stored["matrix"]["names"], stored["matrix"]["sizes"]) == (NAMES, [2, 2])
    assert stored["matrix"]["values"] == np.eye(4).tolist()
    assert stored["tables"][0]["rows"] == [["top=red", 0.5], ["hat=cap", None]]
    assert [line["val/hit@30"] for line in read_log(tmp_path / "log.jsonl")] == [0.5, 0.6]


def test_an_alert_is_told_everywhere(tmp_path, monkeypatch, capsys) -> None:
    import wandb

    told = []

    class Telling(Failing):
        def alert(self, **named) -> None:
            told.append(named)

    monkeypatch.setattr(wandb, "init", lambda **_: Telling())
    with closing(open_tracker(tmp_path / "shoes", wandb="offline")) as tracker:
        tracker.alert(7, Alert("throughput drop", "40 images/s"))
    assert "alert: throughput drop at step 7: 40 images/s" in capsys.readouterr().out
    (line,) = read_log(tmp_path / "shoes/log.jsonl")
    assert (line["step"], line["alert"]) == (7, {"title": "throughput drop", "text": "40 images/s"})
    assert told == [
        {"title": "shoes: throughput drop", "text": "Step 7: 40 images/s", "level": "WARN"}
    ]


def test_a_sweeps_agent_names_the_run_and_all_starts_stand_in_one_group(
    tmp_path, opened, monkeypatch
) -> None:
    for _ in range(2):
        with closing(open_tracker(tmp_path, wandb="offline")):
            pass
    assert len({call["group"] for call in opened}) == 1
    assert opened[0]["config"] == {"seed": 1}
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    with closing(open_tracker(tmp_path / "other", wandb="offline")):
        pass
    assert opened[-1]["id"] == "given"


def test_the_state_of_the_code_is_that_of_git(tmp_path) -> None:
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path)["dirty"] is True


def test_without_a_memory_and_rows_only_figures_are_logged(tmp_path) -> None:
    with closing(open_tracker(tmp_path)) as tracker:
        tracker.log_evaluation(7, Evaluated({"accuracy": 0.5}))
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [7]
    assert not (tmp_path / "evaluation").exists()


def test_off_never_imports_wandb(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def guarded(name, *arguments, **named):
        assert name.partition(".")[0] != "wandb"
        return real(name, *arguments, **named)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", guarded)
    with closing(open_tracker(tmp_path)) as tracker:
        tracker.log_evaluation(1, evaluated({"a": 1.0}))
    assert not (tmp_path / "wandb").exists()


class Failing:
    """A W&B that starts and then fails."""

    def __init__(self) -> None:
        self.logged = 0

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, _: object) -> None:
        self.logged += 1
        raise RuntimeError("the network is down")

    def finish(self, exit_code: int) -> None: ...


def test_a_run_that_failed_is_told_so(tmp_path, monkeypatch) -> None:
    import wandb

    told = []

    class Telling(Failing):
        def alert(self, **named) -> None:
            told.append(named)

        def finish(self, exit_code: int) -> None:
            told.append(exit_code)

    monkeypatch.setattr(wandb, "init", lambda **_: Telling())
    open_tracker(tmp_path / "well", wandb="offline").close()
    assert (told, read_log(tmp_path / "well/log.jsonl")) == ([0], [])
    told.clear()
    tracker = open_tracker(tmp_path / "shoes", wandb="offline")
    tracker.close(7, UserError("rank 1 ended with: no picture"))
    tracker.close(7, UserError("and again"))
    text = "Step 7: rank 1 ended with: no picture"
    assert told == [{"title": "shoes: failed", "text": text, "level": "ERROR"}, 1]
    (line,) = read_log(tmp_path / "shoes/log.jsonl")
    assert line["alert"] == {"title": "failed", "text": "rank 1 ended with: no picture"}


def test_a_full_disk_does_not_hide_what_a_run_failed_with(tmp_path, little_room) -> None:
    tracker = open_tracker(tmp_path)
    little_room(10)
    tracker.close(7, UserError("no room for a checkpoint"))


def test_a_failing_wandb_is_said_once_and_training_goes_on(tmp_path, monkeypatch, capsys) -> None:
    import wandb

    failing = Failing()
    monkeypatch.setattr(wandb, "init", lambda **_: failing)
    with closing(open_tracker(tmp_path, wandb="offline")) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"a": 1.0})
    assert failing.logged == 1
    assert capsys.readouterr().err.count("the network is down") == 1
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]


@pytest.fixture
def opened(monkeypatch) -> list[dict]:
    """The arguments of `wandb.init`, which starts nothing."""
    import wandb

    calls: list[dict] = []

    class Quiet(Failing):
        def log(self, _: object) -> None: ...

    monkeypatch.setattr(wandb, "init", lambda **named: calls.append(named) or Quiet())
    return calls


def test_resuming_goes_on_with_the_same_wandb_run(tmp_path, opened) -> None:
    for resume_step in (0, 5):
        with closing(open_tracker(tmp_path, wandb="offline", resume_step=resume_step)):
            pass
    assert opened[0]["id"] == opened[1]["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert str(opened[0]["dir"]) == str(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "login", "mode"),
    [("auto", True, "online"), ("auto", False, "offline"), ("offline", True, "offline")],
)
def test_auto_is_online_only_with_a_login(tmp_path, opened, monkeypatch, wanted, login, mode):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: login)
    with closing(open_tracker(tmp_path, wandb=wanted)):
        pass
    assert [call["mode"] for call in opened] == [mode]


def test_offline_wandb_leaves_its_files_in_the_run_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with closing(open_tracker(tmp_path, wandb="offline")) as tracker:
        tracker.log(1, {"encoder/loss": 1.0})
        tracker.log_evaluation(1, evaluated({"hit@1": 1.0}))
    assert "warning" not in capsys.readouterr().err
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # W&B's process writes it later on a busy machine
    while b"val/hit@1" not in stored.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    media = tmp_path / "wandb" / stored.parent.name / "files" / "media"
    assert list(media.rglob("*.table.json")), "the table of answers is missing"
    assert list(media.rglob("matrix*.png")), "the heat map is missing"
