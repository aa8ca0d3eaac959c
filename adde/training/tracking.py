"""What a run says while it runs: log.jsonl always, W&B where wanted, evaluations as files.

Written into the run folder:

    log.jsonl                   one JSON object a line: step, time, scalars
    evaluation/rows.json        query -> answers rows of the last evaluation, pictures inline
    evaluation/prototypes.json  cosine similarity of the prototypes, with names and block sizes
"""

import base64
import io
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from adde.files import write_json, write_text
from adde.schema import Vector

LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class PictureRow:
    """One query and its answers: encoded pictures, and whether all attributes match."""

    query: bytes
    edit: str
    answers: list[tuple[bytes, bool]]


class Tracker:
    """Log, evaluations and dashboard of a run; does nothing on ranks other than the main one.

    Args:
        run: the run's folder.
        config: the complete configuration.
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
        _drop_after(run / LOG_NAME, resume_step)
        self._log = (run / LOG_NAME).open("a", encoding="utf-8")
        if mode != "off":
            self._guarded(lambda: self._open_wandb(config, mode))

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line, at once."""
        if not self._main:
            return
        line = {"step": step, "time": round(time.time(), 3), **scalars}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log({**scalars, "step": step}))

    def log_evaluation(
        self,
        step: int,
        scalars: dict[str, float],
        rows: list[PictureRow],
        prototypes: Vector,
        names: list[str],
        sizes: tuple[int, ...],
    ) -> None:
        """Logs an evaluation's figures, its picture rows, and how alike the prototypes are.

        Args:
            step: global step.
            scalars: figures by name.
            rows: queries with their answers; none leaves those of the last evaluation.
            prototypes: (V, A D) float32, one row per attribute value.
            names: V names of the form attribute=value.
            sizes: V_a of each attribute, for the blocks of the heat map.
        """
        if not self._main:
            return
        self.log(step, scalars)
        folder = self._run / "evaluation"
        if rows:
            write_json(folder / "rows.json", {"step": step, "rows": [_row_json(r) for r in rows]})
        lengths = np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-12)
        similarity = (prototypes / lengths) @ (prototypes / lengths).T
        heat_map = {"names": names, "sizes": sizes, "similarity": similarity.round(4).tolist()}
        write_json(folder / "prototypes.json", heat_map, indent=None)
        if self._wandb is not None:
            self._guarded(lambda: self._wandb_evaluation(step, rows, heat_map))

    def close(self) -> None:
        """Ends the W&B run and closes the log; more than once does no harm."""
        if not self._main or self._log.closed:
            return
        if self._wandb is not None:
            self._guarded(self._wandb.finish)
        self._log.close()

    def _open_wandb(self, config: dict[str, Any], mode: str) -> None:
        import wandb  # a run with W&B off does without it

        online = mode == "auto" and _has_login()
        identity = self._run / "wandb_id.txt"
        known = identity.read_text().strip() if identity.exists() else secrets.token_hex(4)
        self._wandb = wandb.init(
            project="adde",
            name=self._run.name,
            id=known,
            resume="allow" if online else None,
            dir=self._run,
            config=config,
            mode="online" if online else "offline",
        )
        self._wandb.define_metric("*", step_metric="step")
        write_text(identity, known)

    def _wandb_evaluation(
        self, step: int, rows: list[PictureRow], heat_map: dict[str, Any]
    ) -> None:
        import wandb

        from adde.training.report import heat_map_png  # matplotlib is slow to load

        content: dict[str, Any] = {
            "step": step,
            "prototypes": _wandb_picture(heat_map_png(heat_map)),
        }
        if rows:
            answers = max(len(row.answers) for row in rows)
            columns = ["query", "edit", *(f"answer {i + 1}" for i in range(answers))]
            table = wandb.Table(columns=columns)
            for row in rows:
                pictures = [_wandb_picture(p, "match" if ok else "") for p, ok in row.answers]
                pictures += [None] * (answers - len(pictures))
                table.add_data(_wandb_picture(row.query), row.edit, *pictures)
            content["answers"] = table
        self._wandb.log(content)

    def _guarded(self, action: Callable[[], object]) -> None:
        """A dashboard that fails is given up with one line; the training goes on."""
        try:
            action()
        except Exception as error:  # whatever W&B, the network or the disk raises
            print(f"warning: W&B failed and is left out from here: {error}", file=sys.stderr)
            self._wandb = None


def _has_login() -> bool:
    import wandb

    return bool(wandb.login(prompt=False))


def _wandb_picture(encoded: bytes, caption: str = "") -> Any:
    import wandb

    return wandb.Image(Image.open(io.BytesIO(encoded)), caption=caption or None)


def _row_json(row: PictureRow) -> dict[str, Any]:
    answers = [{"picture": _inline(picture), "match": ok} for picture, ok in row.answers]
    return {"query": _inline(row.query), "edit": row.edit, "answers": answers}


def _inline(picture: bytes) -> str:
    """A data URL; the first bytes of a picture tell its kind."""
    kind = {b"\x89P": "png", b"RI": "webp"}.get(picture[:2], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _drop_after(path: Path, step: int) -> None:
    """Drops the log's lines beyond a step, and a last line that was cut short."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))
