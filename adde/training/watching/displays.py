"""Displays of an evaluation besides its metrics: rows of pictures, a matrix, tables.

The method creates them, `evaluation/displays.json` stores them, and W&B and report.html draw them.
"""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from adde.schema import Vector
from adde.training.watching.figures import heat_map_png

Cell = str | int | float | None


@dataclass(frozen=True)
class PictureRow:
    """A picture, and named lines of other pictures that belong to it, such as a query's answers."""

    title: str
    """Such as `top_colour: blue -> red`."""

    picture: bytes
    """Encoded file content."""

    lines: dict[str, list[tuple[bytes, bool]]]
    """By the line's name: encoded pictures, and whether each is marked as correct."""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures under a heading."""

    title: str
    text: str
    rows: list[PictureRow]


@dataclass(frozen=True)
class Matrix:
    """An (n, n) matrix in [-1, 1], such as cosines, drawn as a heat map."""

    title: str
    text: str
    values: Vector
    names: list[str]
    """Names of the n rows, as `block=name`."""
    sizes: tuple[int, ...]
    """Number of rows of each block; blocks are outlined in the picture."""


@dataclass(frozen=True)
class Table:
    """Rows under column headings. A float is a share, shown in percent; None, a dash."""

    name: str
    title: str
    text: str
    columns: list[str]
    rows: list[list[Cell]]
    bars: bool = False
    """Draw shares as bars."""
    best: bool = False
    """Set the largest share of each column in bold."""


@dataclass(frozen=True)
class Evaluated:
    """The result of a validation: metrics on every rank, and displays on rank 0."""

    figures: dict[str, float]
    pictures: Pictures | None = None
    matrix: Matrix | None = None
    tables: tuple[Table, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the displays, with pictures as data URLs."""
        found: dict[str, Any] = {}
        if self.tables:
            found["tables"] = [vars(table) for table in self.tables]
        if self.pictures is not None:
            rows = [_row_json(row) for row in self.pictures.rows]
            found["pictures"] = {**vars(self.pictures), "rows": rows}
        if self.matrix is not None:
            values = self.matrix.values.round(4).tolist()
            found["matrix"] = {**vars(self.matrix), "values": values}
        return found

    def to_wandb(self) -> dict[str, Any]:
        """Return the displays as W&B media: `pictures`, `matrix`, and each table by its name."""
        found: dict[str, Any] = {table.name: _wandb_table(table) for table in self.tables}
        if self.pictures is not None:
            found["pictures"] = _pictures_table(self.pictures.rows)
        if self.matrix is not None:
            drawn = heat_map_png(self.matrix.values, self.matrix.names, self.matrix.sizes)
            found["matrix"] = _wandb_picture(drawn)
        return found


@dataclass(frozen=True)
class Summary:
    """The part of a final evaluation that the report shows."""

    headline: list[tuple[str, float | str]] = field(default_factory=list)
    """The main metrics: labels with shares, shown in percent, or with text."""
    tables: list[Table] = field(default_factory=list)
    matrix: Matrix | None = None


def _row_json(row: PictureRow) -> dict[str, Any]:
    lines = {
        name: [{"picture": _inline(picture), "good": good} for picture, good in found]
        for name, found in row.lines.items()
    }
    return {"title": row.title, "picture": _inline(row.picture), "lines": lines}


def _inline(picture: bytes) -> str:
    """Return a data URL; the kind follows from the picture's first bytes."""
    kind = {b"\x89P": "png", b"RI": "webp"}.get(picture[:2], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _pictures_table(rows: list[PictureRow]) -> Any:
    import wandb

    most = max((len(found) for row in rows for found in row.lines.values()), default=0)
    numbers = [str(i + 1) for i in range(most)]
    table = wandb.Table(columns=["picture", "title", "line", *numbers])
    for row in rows:
        for line, found in row.lines.items():
            cells = [_wandb_picture(p, "right" if good else "wrong") for p, good in found]
            cells += [None] * (most - len(cells))
            table.add_data(_wandb_picture(row.picture), row.title, line, *cells)
    return table


def _wandb_table(table: Table) -> Any:
    import wandb

    found = wandb.Table(columns=[*table.columns])
    for row in table.rows:
        found.add_data(*row)
    return found


def _wandb_picture(encoded: bytes, caption: str = "") -> Any:
    import wandb

    return wandb.Image(Image.open(io.BytesIO(encoded)), caption=caption or None)
