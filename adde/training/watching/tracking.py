"""Log a run: log.jsonl, evaluations as files, and W&B unless it is off.

Files in the run's folder:

    log.jsonl                 a JSON object per line: step, time, scalars; or step, time, alert
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
"""W&B project, unless WANDB_PROJECT is set."""


class Tracker:
    """Log, evaluations and dashboard of a run; does nothing unless `main`.

    Args:
        run: folder of the run.
        config: the complete configuration, and how the run was launched.
        mode: "auto" is online if there is a W&B login, else offline; "off" does not use W&B.
        resume_step: later lines of an existing log are dropped.
        main: whether this is rank 0.
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
        """Write one line, unbuffered."""
        if not self._main:
            return
        # JSON has neither NaN nor infinity, so they become null.
        finite = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._write(step, finite)
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log({**scalars, "step": step}))

    def alert(self, step: int, alert: Alert) -> None:
        """Print and log an alert, and send it by W&B."""
        if not self._main:
            return
        tqdm.write(f"alert: {alert.title} at step {step}: {alert.text}")
        self._write(step, {"alert": alert._asdict()})
        self._notify(step, alert, "WARN")

    def log_evaluation(self, step: int, evaluated: Evaluated) -> None:
        """Log a validation's metrics as `val/<name>`, and store its displays.

        Displays that it lacks stay those of the previous validation.
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
        """End the W&B run and close the log; may be called again.

        An error is logged as an alert, sent by W&B, and marks the W&B run as failed. The program
        prints it.
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
            if alert is None:  # else a full disk may be the error itself
                raise

    def _open_wandb(self, config: dict[str, Any], mode: str) -> None:
        import wandb  # not needed by a run with W&B off

        online = mode == "auto" and has_login()
        identity = self._run / "wandb_id.txt"
        known = identity.read_text().strip() if identity.exists() else secrets.token_hex(4)
        if "WANDB_SWEEP_ID" in os.environ:  # a sweep agent chooses the id
            known = os.environ.get("WANDB_RUN_ID", known)
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._run.name,
            id=known,
            # Groups the run with its resumptions.
            group=f"{self._run.name}-{known}",
            job_type="train",
            resume="allow" if online else None,
            dir=self._run,
            config=config,
            mode="online" if online else "offline",
            settings=wandb.Settings(console="off"),  # do not log the progress bar
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
        """Call W&B; if it fails, print a warning and continue without it."""
        try:
            action()
        except Exception as error:  # from W&B, the network or the disk
            print(f"warning: W&B failed and is off from now on: {error}", file=sys.stderr)
            self._wandb = None


def has_login() -> bool:
    """Whether there is a W&B login; does not prompt."""
    import wandb

    return bool(wandb.login(prompt=False))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log's lines; none if it is missing. Skips a line that a kill cut short."""
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
    """Drop the log's lines after a step; those steps are repeated."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(kept))
