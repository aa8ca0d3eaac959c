"""Report and count samples that could not be read and were skipped."""

import json
from pathlib import Path

from tqdm import tqdm

from adde.errors import UserError
from adde.training.config import Data

FAULTS_NAME = "faults.jsonl"


class SkippedSamples:
    """Samples that this rank skipped, and how many all ranks did."""

    def __init__(self, run: Path, rank: int) -> None:
        self._path, self._rank = run / FAULTS_NAME, rank
        self._skipped = 0.0

    def report(self, faults: list[str], step: int) -> None:
        """Print this rank's faults and append them to the run's faults.jsonl."""
        for fault in faults:
            tqdm.write(f"rank {self._rank}, step {step}: skipped {fault}")
            with self._path.open("a", encoding="utf-8") as lines:
                record = {"step": step, "rank": self._rank, "fault": fault}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def require_below_limit(self, share: float, data: Data, steps_per_epoch: int) -> None:
        """Count a step's share of skipped samples, which is equal on all ranks.

        Raises:
            UserError: more than `max_faults` of an epoch were skipped since this start.
        """
        self._skipped += share * data.batch_size
        allowed = data.max_faults * steps_per_epoch * data.batch_size
        if self._skipped > allowed:
            raise UserError(
                f"expected at most {allowed:g} samples that cannot be read (data.max_faults = "
                f"{data.max_faults:g} of an epoch), found {self._skipped:.0f}; see {self._path}"
            )
