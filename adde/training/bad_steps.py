"""Steps whose losses or gradients are not finite: skipped, their items found, written, counted.

Whether a step is void is agreed through the all-reduced losses and the gradient's global norm; the
strategies leave everything as it was (`Replicated.step`). Here is what is told of it.
"""

import functools
import json
import math
from typing import Any

import torch
from tqdm import tqdm

from adde.distributed import gather_objects, rank
from adde.errors import UserError
from adde.loading.batch import Batch
from adde.training.config import Config
from adde.training.method import Objective, Stage
from adde.training.strategies import Replicated
from adde.training.terms import finite_rows, not_finite

BAD_STEPS_NAME = "bad_steps.jsonl"

NAMED = 5
"""Items that a message names; the file has them all."""


class BadSteps:
    """Looks at every micro-batch, and settles every step; called on all ranks alike."""

    def __init__(self, config: Config, objective: Objective, main: bool) -> None:
        self._path, self._limit = config.run / BAD_STEPS_NAME, config.limits.bad_steps
        self._parts = config.data.accumulation if config.data.cached else 1
        self._objective, self._main = objective, main
        self.count = 0
        """Steps skipped since this start."""
        self._last = ""
        self._clear()

    def look(
        self,
        strategy: Replicated,
        stage: Stage,
        scalars: dict[str, float],
        batch: Batch,
        draws: torch.Generator,
    ) -> None:
        """Takes note of a micro-batch after its backward pass; finds its items at fault.

        Args:
            strategy: whose model was trained.
            stage: of the training.
            scalars: of `global_mean`.
            batch: this rank's.
            draws: the generator that the micro-batch was given.
        """
        self._ids += batch.item_ids
        if terms := not_finite(scalars):
            self._terms += [term for term in terms if term not in self._terms]
            strategy.undo_buffers()
            self._items += self._at_fault(strategy, stage, batch, draws)

    def settle(self, norm: float, step: int, loss_scale: float | None) -> None:
        """Ends a step: one that was skipped is counted, printed and written down.

        Args:
            norm: the gradient's global norm.
            step: its number in the log.
            loss_scale: of fp16 after the step. While it can be lowered, gradients beyond fp16's
                range are no fault of the items and are not counted.
        """
        mine: dict[str, Any] = {"rank": rank(), "items": self._items, "share": self._ids}
        terms = self._terms
        self._clear()
        if not terms:
            if math.isfinite(norm) or (loss_scale or 0.0) >= 1:
                return
            terms = ["gradient"]
        self.count += 1
        everyone = gather_objects(mine)
        alone = any(found["items"] for found in everyone)
        key = "items" if alone else "share"
        lines = [
            {"step": step, "rank": f["rank"], "terms": terms, "items": f[key], "alone": alone}
            for f in everyone
            if f[key]
        ]
        self._last = f"step {step}: {', '.join(terms)} not finite; {_in_words(lines)}"
        if self._main:
            tqdm.write(f"skipped {self._last}")
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def require_few(self) -> None:
        """Holds the count against the limit.

        Raises:
            UserError: more steps were skipped than `limits.bad_steps`; on all ranks alike.
        """
        if self.count > self._limit:
            raise UserError(
                f"expected at most {self._limit} steps with NaN or infinity since this start "
                f"(limits.bad_steps), found {self.count}, the last at {self._last}. Look at these "
                f"items ({self._path} has all of them), lower the learning rate, or set "
                "optimizer.clip_norm; then go on with --resume"
            )

    def _clear(self) -> None:
        self._terms: list[str] = []
        self._items: list[str] = []
        self._ids: list[str] = []

    def _at_fault(
        self, strategy: Replicated, stage: Stage, batch: Batch, draws: torch.Generator
    ) -> list[str]:
        """Ids of this rank's items for which the model gives NaN or infinity by themselves.

        In eval mode: in training, batch norms spread one item's NaN over the whole batch.
        """
        again = torch.Generator().manual_seed(draws.initial_seed())
        plan = self._objective.plan(stage, batch, again)
        # All ranks encode as many pieces: they may have to gather the weights for each.
        size = len(batch.labels) // self._parts
        finite: list[torch.Tensor] = []
        for at in range(0, size * self._parts, size):
            rows = slice(at, at + size)
            encode = functools.partial(
                self._objective.encode, plan=plan, images=batch.images, rows=rows
            )
            finite.append(finite_rows(strategy.look(encode)))
        good = torch.cat(finite).tolist()
        return [item for item, fine in zip(batch.item_ids, good) if not fine]


def _in_words(lines: list[dict[str, Any]]) -> str:
    parts: list[str] = []
    for line in lines:
        more = len(line["items"]) - NAMED
        shown = ", ".join(line["items"][:NAMED]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"rank {line['rank']}, items {shown}")
    if not lines[0]["alone"]:
        return "no item gives it alone, its batch: " + "; ".join(parts[:NAMED])
    return "; ".join(parts[:NAMED])
