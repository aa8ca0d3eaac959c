"""What a run leaves to look at while it goes: log.jsonl, evaluation/, and W&B.

Everything is in the run folder, with or without an account::

    log.jsonl        {"step": ..., "time": ..., "<scalar>": ...}, one object per line
    evaluation/      of the newest evaluation: rows.json with its pictures, similarity.npy
                     (V, V) float32 and names.json, where there are prototypes
    wandb/           W&B's own files; wandb_id.txt says which of its runs this is
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adde.files import atomic_path, write_json, write_text
from adde.schema import Vector

LOG_NAME = "log.jsonl"
EVALUATION_NAME = "evaluation"
ROWS_NAME = "rows.json"
SIMILARITY_NAME = "similarity.npy"
NAMES_NAME = "names.json"
WANDB_ID_NAME = "wandb_id.txt"
WANDB_PROJECT = "adde"  # WANDB_PROJECT in the environment names another


@dataclass(frozen=True)
class PictureRow:
    """A query and its answers: encoded pictures, best first, and which match all attributes."""

    query: bytes
    edit: str
    """In words, as `top_colour: blue -> red`."""

    answers: list[tuple[bytes, bool]]


class Tracker:
    """Writes a run's scalars and evaluations; on other ranks than the main one, nothing.

    Args:
        run: the run folder.
        config: every setting, nested, for the dashboard.
        wandb: auto is online where a login is found, else offline; off never imports wandb.
        resume_step: steps done already; what the log holds beyond them is dropped, since those
            steps are about to be done again.
        main: whether this is the rank that writes.
    """

    def __init__(
        self,
        run: Path,
        config: dict[str, Any],
        wandb: Literal["auto", "offline", "off"],
        resume_step: int,
        main: bool,
    ) -> None:
        self._run, self._main = run, main
        self._dashboard: _Dashboard | None = None
        if not main:
            return
        run.mkdir(parents=True, exist_ok=True)
        _drop_beyond(run / LOG_NAME, resume_step)
        self._log = (run / LOG_NAME).open("a", encoding="utf-8")
        if wandb != "off":
            self._dashboard = _Dashboard(run, config, wandb)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line to the log, and the same to W&B."""
        if not self._main:
            return
        self._append(step, scalars)
        if self._dashboard is not None:
            self._dashboard.log(step, scalars)

    def log_evaluation(
        self,
        step: int,
        scalars: dict[str, float],
        rows: list[PictureRow],
        prototypes: Vector,
        names: list[str],
        blocks: Sequence[int],
    ) -> None:
        """Logs an evaluation's figures, and replaces evaluation/ where there is something to see.

        Args:
            step: steps done.
            scalars: figures by name.
            rows: queries with their answers; may be empty.
            prototypes: (V, width) float32, one row per attribute value; all zero where there is
                no memory yet.
            names: the V values as `attribute=value`.
            blocks: number of values of each attribute, in order; their sum is V.
        """
        if not self._main:
            return
        self._append(step, scalars)
        similarity = cosine_similarity(prototypes) if np.any(prototypes) else None
        if rows or similarity is not None:
            with atomic_path(self._run / EVALUATION_NAME) as folder:
                _write_evaluation(folder, step, rows, similarity, names, blocks)
        if self._dashboard is not None:
            self._dashboard.log_evaluation(step, scalars, rows, similarity, names, blocks)

    def close(self) -> None:
        """Ends the log and the W&B run; may be called again."""
        if not self._main:
            return
        self._log.close()
        if self._dashboard is not None:
            self._dashboard.close()
            self._dashboard = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, step: int, scalars: dict[str, float]) -> None:
        # JSON has no NaN and no infinity; a loss that became one is null in the log.
        values = {k: float(v) if np.isfinite(v) else None for k, v in scalars.items()}
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._log.write(json.dumps(line, allow_nan=False) + "\n")
        self._log.flush()


def cosine_similarity(prototypes: Vector) -> Vector:
    """(V, V) float32 cosines between the rows of (V, width) float32; 0 where a row is zero."""
    norms = np.linalg.norm(prototypes, axis=1, keepdims=True)
    unit = prototypes / np.maximum(norms, 1e-12)
    return np.clip(unit @ unit.T, -1, 1).astype(np.float32)


def picture_suffix(picture: bytes) -> str:
    """`png`, `webp` or `jpg`, by how the encoded picture begins."""
    if picture.startswith(b"\x89PNG"):
        return "png"
    return "webp" if picture[8:12] == b"WEBP" else "jpg"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _drop_beyond(path: Path, step: int) -> None:
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(kept))


def _write_evaluation(
    folder: Path,
    step: int,
    rows: list[PictureRow],
    similarity: Vector | None,
    names: list[str],
    blocks: Sequence[int],
) -> None:
    folder.mkdir()

    def store(name: str, picture: bytes) -> str:
        file = f"{name}.{picture_suffix(picture)}"
        (folder / file).write_bytes(picture)
        return file

    stored = [
        {
            "query": store(f"{number}-query", row.query),
            "edit": row.edit,
            "answers": [
                {"picture": store(f"{number}-answer-{rank}", picture), "matches": matches}
                for rank, (picture, matches) in enumerate(row.answers, 1)
            ],
        }
        for number, row in enumerate(rows)
    ]
    write_json(folder / ROWS_NAME, {"step": step, "rows": stored})
    if similarity is not None:
        np.save(folder / SIMILARITY_NAME, similarity)
        write_json(folder / NAMES_NAME, {"names": names, "blocks": list(blocks)})


class _Dashboard:
    """W&B, kept from ending a run: whatever it raises is said once, and it is left alone."""

    def __init__(
        self, run: Path, config: dict[str, Any], wandb: Literal["auto", "offline"]
    ) -> None:
        self._wandb_run: Any = None
        self._guard(lambda: self._open(run, config, wandb))

    def log(self, step: int, scalars: dict[str, Any]) -> None:
        # A step of our own: W&B's may not go back, as it does after a resumption.
        self._guard(lambda: self._wandb_run.log({"step": step, **scalars}))

    def log_evaluation(
        self,
        step: int,
        scalars: dict[str, float],
        rows: list[PictureRow],
        similarity: Vector | None,
        names: list[str],
        blocks: Sequence[int],
    ) -> None:
        def log() -> None:
            shown: dict[str, Any] = {}
            if rows:
                shown["val/answers"] = _table(rows)
            if similarity is not None:
                shown["val/prototypes"] = _image(heat_map_png(similarity, names, blocks))
            self._wandb_run.log({"step": step, **scalars, **shown})

        self._guard(log)

    def close(self) -> None:
        self._guard(lambda: self._wandb_run.finish())
        self._wandb_run = None

    def _open(self, run: Path, config: dict[str, Any], mode: str) -> None:
        import wandb  # not at the top: a run without W&B does not need it installed

        id_path = run / WANDB_ID_NAME
        if not id_path.exists():
            write_text(id_path, wandb.util.generate_id() + "\n")
        online = mode == "auto" and _logged_in()
        self._wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            name=run.name,
            id=id_path.read_text(encoding="utf-8").strip(),
            # Offline files of one id are joined when they are synced.
            resume="allow" if online else None,
            mode="online" if online else "offline",
            dir=str(run),
            config=config,
            # The progress bar would be sent a hundred times a minute.
            settings=wandb.Settings(console="off"),
        )
        self._wandb_run.define_metric("*", step_metric="step")

    def _guard(self, action: Callable[[], object]) -> None:
        if self._wandb_run is None and self._opened:
            return
        try:
            action()
        except Exception as error:  # of any kind: none of them is worth the training
            self._wandb_run = None
            print(
                f"warning: W&B failed ({type(error).__name__}: {error}); training goes on without "
                "it, log.jsonl has everything",
                file=sys.stderr,
            )
        self._opened = True

    _opened = False


def _logged_in() -> bool:
    """Whether W&B has a key; WANDB_MODE=offline or disabled counts as none."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)


def _image(picture: bytes, caption: str | None = None) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(picture)), caption=caption)


def _table(rows: list[PictureRow]) -> Any:
    import wandb

    answers = max(len(row.answers) for row in rows)
    table = wandb.Table(columns=["query", "edit", *(str(n + 1) for n in range(answers))])
    for row in rows:
        shown = [_image(p, "match" if matches else "no match") for p, matches in row.answers]
        missing = [None] * (answers - len(shown))
        table.add_data(_image(row.query), row.edit, *shown, *missing)
    return table


def heat_map_png(
    similarity: npt.NDArray[np.float32], names: list[str], blocks: Sequence[int]
) -> bytes:
    """PNG of the (V, V) cosines, attributes' blocks marked by lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = max(5.0, 0.17 * len(names) + 2)  # inches: a label is as high as its row
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
    for edge in np.cumsum(blocks)[:-1] - 0.5:
        axes.axhline(edge, color="black", linewidth=0.6)
        axes.axvline(edge, color="black", linewidth=0.6)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="cosine similarity of prototypes")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
