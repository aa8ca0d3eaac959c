"""What is shown of a run, declared once: W&B's workspace and report.html draw the same panels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Panel:
    """Figures of the log that share one plot.

    Args:
        section: heading that it stands under.
        title: of the plot.
        keys: regular expression (RE2's syntax, which W&B reads too) that all of a key matches.
        wide_range: whether values may lie far apart, and then take a logarithmic axis.
    """

    section: str
    title: str
    keys: str
    wide_range: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.keys)

    def shows(self, key: str) -> bool:
        """Whether a figure of this name belongs here."""
        return self._pattern.fullmatch(key) is not None

    def label(self, key: str) -> str:
        """A figure's name without what the panel's all have in common, whatever their stage."""
        # An attribute or a value may hold a slash of its own: `sleeve=3/4`.
        common = self.keys.removesuffix(".+") if self.keys.endswith(".+") else ".*/"
        return re.sub(f"^{common}", "", key)


STAGE = "[^/]+"
"""Name of any stage."""

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
    Panel("Ranks", "Images per second of each, waiting for none", r"ranks/images_per_second/.+"),
    Panel("Ranks", "Images per second, waiting for none", r"ranks/images_per_second_(min|median)"),
    Panel("Ranks", "Share of time waiting for data", r"ranks/data_wait/.+"),
    Panel("Ranks", "Peak memory, GB", r"ranks/memory_gb/.+"),
    Panel("Ranks", "Number of the slowest", r"ranks/slowest"),
    Panel("Ranks", "How much faster the median is", r"ranks/slowest_lag"),
)
"""Of every run; a method adds its own (`Method.panels`)."""

NOT_SHOWN = (
    r"data/(samples|repeated|dropped)",
    rf"{STAGE}/nonfinite",
    r"ranks/(data_wait|memory_gb)_max",
)
"""Figures of the log that no panel has; a test holds the log against these and the panels."""


def sections(panels: Iterable[Panel]) -> dict[str, list[Panel]]:
    """Panels under their headings, in order."""
    found: dict[str, list[Panel]] = {}
    for panel in panels:
        found.setdefault(panel.section, []).append(panel)
    return found
