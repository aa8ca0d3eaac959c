"""Plots of a run: curves and heat map as SVG, and heat map as PNG.

The SVGs take their colours from classes and variables of report.html.j2 (`line`, `band`, `tick`,
`rule`, `--series-0` ...), so that they suit the light and the dark page.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating]

WIDTH, HEIGHT = 360, 170  # of a panel, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 8, 20
MAX_POINTS = 120
"""More values than this are drawn as the means of this many bins, in a band of their spread."""

LOG_RATIO = 30.0
"""Values that differ by more than this factor take a logarithmic axis."""

SMALLEST = 1e-4
"""Lower end of a logarithmic axis, as a share of the largest value."""

CELL = 11  # px per row of a heat map, so that its label is legible
MAX_LABELLED = 150
"""Number of attribute values up to which each row of the heat map has a label."""

POSITIVE, NEGATIVE = (47, 111, 222), (217, 121, 38)


@dataclass(frozen=True)
class Series:
    """Values of a scalar by step, in the order in which they were logged; all are finite."""

    name: str
    steps: list[int]
    values: list[float]


def curves_svg(
    series: Sequence[Series], boundary: int | None = None, wide_range: bool = False
) -> str:
    """Draw a panel with a curve per series, in the order of the page's series colours.

    Args:
        series: at least one, none empty.
        boundary: the step at which another stage begins; marked if the panel spans it.
        wide_range: use a logarithmic axis for positive values of different orders of magnitude.
    """
    binned = [_binned(s) for s in series]
    steps = np.concatenate([b.steps for b in binned])
    middle = np.concatenate([b.middle for b in binned])
    log = wide_range and _needs_log_axis(middle)
    first, last = float(steps.min()), float(steps.max())
    low = _floor(middle) if log else min(float(b.low.min()) for b in binned)
    high = max(float(b.high.max()) for b in binned)
    ticks = _log_ticks(low, high) if log else tick_values(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(step: Floats) -> Floats:
        return LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: Floats) -> Floats:
        bottom, top = (math.log(low), math.log(high)) if log else (low, high)
        at = np.log(np.maximum(value, low)) if log else value
        return HEIGHT - BOTTOM - (at - bottom) / (top - bottom or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks:
        at = float(y(np.asarray(tick)))
        parts.append(
            f'<path class="rule" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{at + 3.5:.1f}">{tick_label(tick)}</text>'
        )
    shown = [t for t in tick_values(first, last, 5) if first <= t <= last and t == int(t)]
    for tick in shown or [first]:
        at = float(x(np.asarray(tick)))
        label = tick_label(tick)
        parts.append(f'<text class="tick mid" x="{at:.1f}" y="{HEIGHT - 5}">{label}</text>')
    if boundary is not None and first < boundary < last:
        at = float(x(np.asarray(float(boundary))))
        parts.append(f'<path class="boundary" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for number, curve in enumerate(binned):
        colour = f'style="color:var(--series-{number % 6})"'
        # There are six colours; further curves are dashed.
        dashed = ' class="dashed"' if number >= 6 else ""
        parts.append(f"<g {colour}{dashed}>{_curve(curve, x(curve.steps), y)}</g>")
    return "".join(parts) + "</svg>"


@dataclass(frozen=True)
class _Binned:
    steps: Floats
    low: Floats
    middle: Floats
    high: Floats
    sparse: bool


def _binned(series: Series) -> _Binned:
    steps = np.asarray(series.steps, dtype=np.float64)
    values = np.asarray(series.values, dtype=np.float64)
    if len(values) <= MAX_POINTS:
        return _Binned(steps, values, values, values, True)
    bins = [b for b in np.array_split(np.arange(len(values)), MAX_POINTS) if len(b)]
    # Percentiles, because one outlier would set the scale of the panel.
    low, high = np.array([np.percentile(values[b], (10, 90)) for b in bins]).T
    middle = np.array([values[b].mean() for b in bins])
    at = np.array([steps[b].mean() for b in bins])
    return _Binned(at, np.minimum(low, middle), middle, np.maximum(high, middle), False)


def _curve(curve: _Binned, x: Floats, y: Callable[[Floats], Floats]) -> str:
    middle = y(curve.middle)
    line = f'<path class="line" d="M{_points(x, middle)}"/>'
    if curve.sparse and len(x) <= 30:
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in zip(x, middle))
        return line + dots
    if curve.sparse:
        return line
    around = _points(
        np.concatenate([x, x[::-1]]), np.concatenate([y(curve.high), y(curve.low)[::-1]])
    )
    return f'<path class="band" d="M{around}Z"/>{line}'


def _points(x: Floats, y: Floats) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))


def _needs_log_axis(values: Floats) -> bool:
    positive = values[values > 0]
    return bool((values >= 0).all() and len(positive)) and bool(
        positive.max() > LOG_RATIO * positive.min()
    )


def _floor(values: Floats) -> float:
    """Return the lower end of a logarithmic axis; smaller values are drawn there."""
    positive = values[values > 0]
    return max(float(positive.min()), float(positive.max()) * SMALLEST)


def number(value: float) -> str:
    """Format a value for a legend."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def tick_values(low: float, high: float, about: int = 4) -> list[float]:
    """Return about that many round numbers that span low..high."""
    if not high - low > max(1e-4 * max(abs(low), abs(high)), 1e-300):  # the same when rounded
        low, high = low - abs(low) / 2, high + (abs(high) / 2 or 1)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that span low..high, at most about six."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = max(1, (last - first) // 5)
    return [10.0**k for k in range(first, last + every, every)]


def tick_label(value: float) -> str:
    """Format a tick's label in at most five characters."""
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    if abs(value) >= 1e3:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def heat_map_svg(similarity: Floats, names: Sequence[str], sizes: Sequence[int]) -> str:
    """Draw cosines (V, V), transparent at 0, with attributes outlined.

    Args:
        similarity: (V, V) float in [-1, 1].
        names: the V values as `attribute=value`.
        sizes: number of values of each attribute, in order; their sum is V.
    """
    count = len(names)
    labelled = count <= MAX_LABELLED
    cell = CELL if labelled else max(2.0, 900 / count)
    left = 12 + (6 * max(len(_value(n)) for n in names) if labelled else 0)
    side = cell * count
    starts = [sum(sizes[:block]) for block in range(len(sizes))]
    attributes = [names[start].partition("=")[0] for start in starts]
    width = left + side + 16 + 7 * max(map(len, attributes))
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {side + 8:.0f}" style="min-width:{0.8 * width:.0f}px;'
        f'max-width:{1.2 * width:.0f}px" role="img"><g transform="translate({left} 4)">'
        f'<image width="{side:.0f}" height="{side:.0f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{_cells(similarity)}"/>'
    ]
    if labelled:
        for row, name in enumerate(names):
            at = cell * row + 8.5
            parts.append(
                f'<text class="tick end" x="-6" y="{at:.1f}">{escape(_value(name))}</text>'
            )
    for start, size, attribute in zip(starts, sizes, attributes):
        corner, edge = cell * start, cell * size
        parts.append(
            f'<rect class="block" x="{corner:.1f}" y="{corner:.1f}" width="{edge:.1f}" '
            f'height="{edge:.1f}"/><text class="name" x="{side + 8:.0f}" '
            f'y="{corner + edge / 2 + 4:.1f}">{escape(attribute)}</text>'
        )
    frame = f'<rect class="frame" width="{side:.0f}" height="{side:.0f}"/>'
    return "".join(parts) + frame + "</g></svg>"


def _value(name: str) -> str:
    return name.partition("=")[2]


def _cells(similarity: Floats) -> str:
    """Return a PNG as a data URL, a pixel per cell: hue by sign, opacity by magnitude."""
    pixels = np.zeros((*similarity.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(similarity[..., None] < 0, NEGATIVE, POSITIVE)
    pixels[..., 3] = np.round(255 * np.clip(np.abs(similarity), 0, 1))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def heat_map_png(similarity: Floats, names: Sequence[str], sizes: Sequence[int]) -> bytes:
    """Draw the heat map on white with a colour bar, as an encoded PNG for a dashboard."""
    from matplotlib.figure import Figure  # slow to import, and the report does not need it

    side = min(14.0, 2.2 + 0.14 * len(names))  # inches
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(similarity, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    for edge in np.cumsum(sizes)[:-1] - 0.5:
        axes.axhline(edge, color="#444", linewidth=0.6)
        axes.axvline(edge, color="#444", linewidth=0.6)
    if len(names) <= MAX_LABELLED:
        axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.5, label="cosine similarity")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor="white")
    return content.getvalue()
