"""What a run says while it runs: log.jsonl always, W&B where wanted, evaluations as files.

Written into the run folder:

    log.jsonl                 one JSON object a line: step, time, scalars; or step, time, alert
    evaluation/displays.json  what the last evaluation shows (`displays.py`), pictures inline
"""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from adde.files import naming, read_json, write_json, write_text
from adde.training.watching.alarms import Alert
from adde.training.watching.displays import Evaluated

LOG_NAME = "log.jsonl"
DISPLAYS_NAME = "evaluation/displays.json"

PROJECT = "adde"
"""W&B's project, where WANDB_PROJECT names no other."""


class Tracker:
    """Log, evaluations and dashboard of a run; does nothing on ranks other than the main one.

    Args:
        run: the run's folder.
        config: the complete configuration, and what the run was started with.
        mode: "auto" is online where a W&B login is found, else offline; "off" leaves W&B out.
        resume_step: lines of an earlier log beyond this step are dropped.
        main: whether this is the main rank.
    """

    def __init__(
        self,
        run: Path,
        config: dict[str, Any],
        mode: Literal["auto", "offline", "off"],
        resume_step: int,
        main: bool,
    ) -> None:
        self._run, self._main = run, main
        self._wandb: Any = None
        if not main:
            return
        run.mkdir(parents=True, exist_ok=True)
        _drop_after(run / LOG_NAME, resume_step)
        self._log = (run / LOG_NAME).open("a", encoding="utf-8")
        if mode != "off":
            self._guarded(lambda: self._open_wandb(config, mode))

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line, at once."""
        if not self._main:
            return
        # JSON has neither NaN nor infinity: a figure that became one is null.
        finite = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._write(step, finite)
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log({**scalars, "step": step}))

    def alert(self, step: int, alert: Alert) -> None:
        """Says what is wrong: on the terminal, in the log, and by W&B to whom it notifies."""
        if not self._main:
            return
        tqdm.write(f"alert: {alert.title} at step {step}: {alert.text}")
        self._write(step, {"alert": alert._asdict()})
        self._notify(step, alert, "WARN")

    def log_evaluation(self, step: int, evaluated: Evaluated) -> None:
        """Logs a validation's figures as `val/<name>`, and what it shows.

        Pictures that it leaves out are those of the validation before.
        """
        if not self._main:
            return
        self.log(step, {f"val/{name}": value for name, value in evaluated.figures.items()})
        shown, path = evaluated.to_json(), self._run / DISPLAYS_NAME
        if shown:
            before = read_json(path) if path.exists() else {}
            write_json(path, {**before, "step": step, **shown}, indent=None)
        if shown and self._wandb is not None:
            self._guarded(lambda: self._wandb.log({"step": step, **evaluated.to_wandb()}))

    def close(self, step: int = 0, error: BaseException | None = None) -> None:
        """Ends the W&B run and closes the log; more than once does no harm.

        What the training has failed with stands in the log as an alert, W&B notifies of it, and
        shows the run as failed. The person at the terminal is told by the program.
        """
        if not self._main or self._log.closed:
            return
        alert = error and Alert("failed", (str(error) or type(error).__name__)[:2000])
        if alert is not None:
            self._notify(step, alert, "ERROR")
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.finish(exit_code=int(alert is not None)))
        try:
            with naming(self._run / LOG_NAME), self._log:
                if alert is not None:
                    self._write(step, {"alert": alert._asdict()})
        except OSError:
            if alert is None:  # else a full disk may be what it failed with
                raise

    def _open_wandb(self, config: dict[str, Any], mode: str) -> None:
        import wandb  # a run with W&B off does without it

        online = mode == "auto" and has_login()
        identity = self._run / "wandb_id.txt"
        known = identity.read_text().strip() if identity.exists() else secrets.token_hex(4)
        if "WANDB_SWEEP_ID" in os.environ:  # an agent has named the run
            known = os.environ.get("WANDB_RUN_ID", known)
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._run.name,
            id=known,
            # What a resumption, the other ranks or an evaluation add stands with it.
            group=f"{self._run.name}-{known}",
            job_type="train",
            resume="allow" if online else None,
            dir=self._run,
            config=config,
            mode="online" if online else "offline",
            settings=wandb.Settings(console="off"),  # a progress bar is no log
        )
        self._wandb.define_metric("*", step_metric="step")
        write_text(identity, known)

    def _notify(self, step: int, alert: Alert, level: str) -> None:
        if self._wandb is not None:
            title, text = f"{self._run.name}: {alert.title}", f"Step {step}: {alert.text}"
            self._guarded(lambda: self._wandb.alert(title=title, text=text, level=level))

    def _write(self, step: int, content: dict[str, Any]) -> None:
        line = {"step": step, "time": round(time.time(), 3), **content}
        with naming(self._run / LOG_NAME):
            self._log.write(json.dumps(line, allow_nan=False) + "\n")
            self._log.flush()

    def _guarded(self, action: Callable[[], object]) -> None:
        """A dashboard that fails is given up with one line; the training goes on."""
        try:
            action()
        except Exception as error:  # whatever W&B, the network or the disk raises
            print(f"warning: W&B failed and is left out from here: {error}", file=sys.stderr)
            self._wandb = None


def has_login() -> bool:
    """Whether W&B knows who this is; asks nobody."""
    import wandb

    return bool(wandb.login(prompt=False))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; none where it is missing, and without one that a kill cut short."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _drop_after(path: Path, step: int) -> None:
    """Drops the log's lines beyond a step, whose steps are about to be done again."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(kept))
