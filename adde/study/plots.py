"""Plots of a study as SVG, in the report's style (`adde.training.watching.figures`)."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from adde.disentanglement.coded import Floats
from adde.training.watching.figures import tick_label, tick_values

WIDTH, HEIGHT = 360, 210  # of a plot, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 8, 62

OUTLINED = 5
"""Models from which a violin has an outline."""
LEVELS = 60
"""Points of an outline."""


def violins_svg(groups: Sequence[tuple[str, Floats, str]]) -> str:
    """Draw the values of each group as dots, a line at their median, and an outline of density.

    Args:
        groups: name, finite values (n,), and colour in CSS.
    """
    values = np.concatenate([found for _, found, _ in groups])
    marks = tick_values(float(values.min()), float(values.max()))
    low, high = min(marks[0], values.min()), max(marks[-1], values.max())

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in marks:
        parts.append(
            f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">'
            f"{tick_label(tick)}</text>"
        )
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    for place, (name, found, colour) in enumerate(groups):
        middle = LEFT + step * (place + 0.5)
        label = f"{middle + 3:.1f} {HEIGHT - BOTTOM + 12}"
        parts.append(
            f'<g style="color:{colour}">{_violin(found, middle, 0.42 * step, y)}</g>'
            f'<text class="tick end" transform="translate({label}) rotate(-40)">'
            f"{escape(name)}</text>"
        )
    return "".join(parts) + "</svg>"


def _violin(values: Floats, middle: float, half: float, y: Callable[[float], float]) -> str:
    """One group around `middle`, `half` wide to both sides."""
    parts: list[str] = []
    if len(values) >= OUTLINED and np.ptp(values) > 0:
        levels, widths = _density(values)
        right = [(middle + half * w, y(v)) for v, w in zip(levels, widths)]
        left = [(middle - half * w, y(v)) for v, w in zip(levels, widths)][::-1]
        outline = "L".join(f"{a:.1f} {b:.1f}" for a, b in (*right, *left))
        parts.append(f'<path class="band" d="M{outline}Z"/>')
    at = y(float(np.median(values)))
    parts.append(f'<path class="line" d="M{middle - half:.1f} {at:.1f}h{2 * half:.1f}"/>')
    # Side by side, in their order, so that equal ones are seen.
    aside = np.linspace(-0.5, 0.5, len(values)) * half if len(values) > 1 else [0.0]
    radius = 2.2 if len(values) < 30 else 1.2
    parts += [
        f'<circle cx="{middle + dx:.1f}" cy="{y(v):.1f}" r="{radius}"/>'
        for dx, v in zip(aside, values.tolist())
    ]
    return "".join(parts)


def _density(values: Floats) -> tuple[Floats, Floats]:
    """Levels between the extremes, and the density there relative to the largest.

    A Gaussian kernel of Silverman's width.
    """
    levels = np.linspace(values.min(), values.max(), LEVELS)
    width = 1.06 * values.std() * len(values) ** -0.2
    density = np.exp(-(((levels[:, None] - values) / width) ** 2) / 2).sum(axis=1)
    return levels, density / density.max()
