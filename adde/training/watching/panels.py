"""The panels of a run, which both W&B's workspace and report.html draw."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Panel:
    """Scalars of the log that share a plot.

    Args:
        section: heading of the panel.
        title: of the plot.
        keys: regular expression for complete keys, in RE2's syntax, which W&B uses.
        wide_range: use a logarithmic axis for values of different orders of magnitude.
    """

    section: str
    title: str
    keys: str
    wide_range: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.keys)

    def shows(self, key: str) -> bool:
        """Whether the panel plots a scalar of this name."""
        return self._pattern.fullmatch(key) is not None

    def label(self, key: str) -> str:
        """Return a scalar's name without its stage and the prefix that all of the panel share."""
        # An attribute or a value may hold a slash of its own: `sleeve=3/4`.
        common = self.keys.removesuffix(".+") if self.keys.endswith(".+") else ".*/"
        return re.sub(f"^{common}", "", key)


STAGE = "[^/]+"
"""Matches the name of any stage."""

PANELS = (
    Panel("Losses", "Loss", rf"{STAGE}/loss", wide_range=True),
    Panel("Optimisation", "Gradient norm", r"grad_norm", wide_range=True),
    Panel("Optimisation", "Gradient norm by block", r"grad_norm/.+", wide_range=True),
    Panel("Optimisation", "Learning rate", r"lr"),
    Panel("Optimisation", "Steps skipped for NaN or infinity", r"bad_steps"),
    Panel("Speed", "Images per second", r"images_per_second"),
    Panel("Speed", "Share of time waiting for data", r"data_wait"),
    Panel("Speed", "Peak memory, GB", r"memory_gb"),
    Panel("Speed", "Seconds that checkpoints took", r"checkpoint_stall"),
    Panel("Speed", "Epochs", r"data/epoch"),
    Panel("Speed", "Skipped samples, share of the batch", rf"{STAGE}/skipped"),
    Panel(
        "Ranks",
        "Images per second of each, without waiting for others",
        r"ranks/images_per_second/.+",
    ),
    Panel(
        "Ranks",
        "Images per second, without waiting for others",
        r"ranks/images_per_second_(min|median)",
    ),
    Panel("Ranks", "Share of time waiting for data", r"ranks/data_wait/.+"),
    Panel("Ranks", "Peak memory, GB", r"ranks/memory_gb/.+"),
    Panel("Ranks", "Slowest rank", r"ranks/slowest"),
    Panel("Ranks", "Lead of the median rank over the slowest", r"ranks/slowest_lag"),
)
"""Panels of every run; a method adds its own (`Method.panels`)."""

NOT_SHOWN = (
    r"data/(samples|repeated|dropped)",
    rf"{STAGE}/nonfinite",
    r"ranks/(data_wait|memory_gb)_max",
)
"""Scalars of the log that no panel plots; a test compares the log with these and the panels."""


def sections(panels: Iterable[Panel]) -> dict[str, list[Panel]]:
    """Group panels by heading, in order."""
    found: dict[str, list[Panel]] = {}
    for panel in panels:
        found.setdefault(panel.section, []).append(panel)
    return found
