"""What is shown of a run, declared once: W&B's workspace and report.html draw the same panels."""

import re
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


STAGE = "(encoder|adde)"
TERMS = (
    "(cls|presence|local_triplet|global_triplet|edited_triplet|compositional|consistency|memory)"
)

PANELS = (
    Panel("Validation", "Retrieval", r"val/hit@(1|10|30)"),
    Panel("Validation", "NDCG@30", r"val/ndcg(_target|_others)?@30"),
    Panel("Validation", "Attribute accuracy, mean", r"val/accuracy"),
    Panel("Validation", "Attribute accuracy", r"val/accuracy/.+"),
    Panel("Losses", "Loss", rf"{STAGE}/loss", wide_range=True),
    Panel("Losses", "Encoder stage: terms", rf"encoder/{TERMS}", wide_range=True),
    Panel("Losses", "ADDE stage: terms", rf"adde/{TERMS}", wide_range=True),
    Panel("Attributes", "Training accuracy, mean", rf"{STAGE}/accuracy"),
    Panel("Attributes", "Training accuracy", rf"{STAGE}/accuracy/.+"),
    Panel("Attributes", "Cross-entropy", rf"{STAGE}/cls/.+", wide_range=True),
    Panel("Attributes", "Cross-entropy of presence", rf"{STAGE}/presence/.+", wide_range=True),
    Panel("Attributes", "Local triplets", rf"{STAGE}/local_triplet/.+", wide_range=True),
    Panel("Mining", "Pairs per item", rf"{STAGE}/pairs_(local|global)", wide_range=True),
    Panel("Mining", "Share of active triplets", rf"{STAGE}/active_(local|global)"),
    Panel("Mining", "References with a target in the batch", r"adde/(exact_targets|usable_edits)"),
    Panel("Optimisation", "Gradient norm", r"grad_norm", wide_range=True),
    Panel("Optimisation", "Gradient norm by block", r"grad_norm/.+", wide_range=True),
    Panel("Optimisation", "Learning rate", r"lr"),
    Panel("Optimisation", "Steps skipped for NaN or infinity", r"bad_steps"),
    Panel("Memory", "Block energy of the prototypes", r"prototypes/block_energy"),
    Panel("Memory", "Block energy by value", r"prototypes/block_energy/.+"),
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

NOT_SHOWN = (
    r"val/(queries|hit@(20|40|50))",
    r"data/(samples|repeated|dropped)",
    rf"{STAGE}/nonfinite",
    r"ranks/(data_wait|memory_gb)_max",
)
"""Figures of the log that no panel has; a test holds the log against these and the panels."""

TABLES = ("answers", "nearest_prototypes")
"""Tables of every evaluation: query -> answers before and after the edit; prototypes."""

PICTURES = ("prototypes",)
"""Pictures of every evaluation: the prototypes' cosines."""


def sections() -> dict[str, list[Panel]]:
    """The panels under their headings, in order."""
    found: dict[str, list[Panel]] = {}
    for panel in PANELS:
        found.setdefault(panel.section, []).append(panel)
    return found
