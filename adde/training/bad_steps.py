"""Report steps that are skipped because losses or gradients are not finite.

Ranks agree on it through the all-reduced losses and the gradient's global norm, and `Strategy.step`
skips the step. This module finds the items at fault, and logs and counts such steps.
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
from adde.training.strategies import Strategy
from adde.training.terms import finite_rows, not_finite

BAD_STEPS_NAME = "bad_steps.jsonl"

MAX_NAMED = 5
"""Items and ranks that a message names; the file has all of them."""


class BadSteps:
    """Inspects every micro-batch and reports every skipped step; on all ranks."""

    def __init__(self, config: Config, objective: Objective, main: bool) -> None:
        self._path, self._limit = config.run / BAD_STEPS_NAME, config.limits.bad_steps
        self._parts = config.data.accumulation if config.data.cached else 1
        self._objective, self._main = objective, main
        self.count = 0
        """Steps skipped since the run was started or resumed."""
        self._last = ""
        self._clear()

    def inspect(
        self,
        strategy: Strategy,
        stage: Stage,
        scalars: dict[str, float],
        batch: Batch,
        draws: torch.Generator,
    ) -> None:
        """Find the items at fault in a micro-batch whose terms are not finite.

        Args:
            strategy: of the stage.
            stage: that is trained.
            scalars: from `global_mean`.
            batch: this rank's micro-batch, after its backward pass.
            draws: the generator that the objective used for it.
        """
        self._ids += batch.item_ids
        if terms := not_finite(scalars):
            self._terms += [term for term in terms if term not in self._terms]
            strategy.restore_buffers()
            self._items += self._at_fault(strategy, stage, batch, draws)

    def finish_step(self, norm: float, step: int, loss_scale: float | None) -> None:
        """Finish a step; if it was skipped, count it, print it and append it to the file.

        Args:
            norm: the gradient's global norm.
            step: its number in the log.
            loss_scale: after the step, in fp16. While it can be lowered, a gradient beyond fp16's
                range is not the fault of the items and is not counted.
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
        self._last = f"step {step}: {', '.join(terms)} not finite; {_describe(lines)}"
        if self._main:
            tqdm.write(f"skipped {self._last}")
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def require_below_limit(self) -> None:
        """Raise UserError, on all ranks, if more than `limits.bad_steps` steps were skipped."""
        if self.count > self._limit:
            raise UserError(
                f"expected at most {self._limit} steps with NaN or infinity since this start "
                f"(limits.bad_steps), found {self.count}, the last at {self._last}. Check these "
                f"items (all are in {self._path}), lower the learning rate, or set "
                "optimizer.clip_norm; then continue with --resume"
            )

    def _clear(self) -> None:
        self._terms: list[str] = []
        self._items: list[str] = []
        self._ids: list[str] = []

    def _at_fault(
        self, strategy: Strategy, stage: Stage, batch: Batch, draws: torch.Generator
    ) -> list[str]:
        """Return the ids of this rank's items whose outputs alone are not finite.

        It uses eval mode, because in training batch norms spread one item's NaN over the batch.
        """
        again = torch.Generator().manual_seed(draws.initial_seed())
        plan = self._objective.plan(stage, batch, again)
        # All ranks encode the same number of parts: each may gather sharded weights.
        size = len(batch.labels) // self._parts
        finite: list[torch.Tensor] = []
        for at in range(0, size * self._parts, size):
            rows = slice(at, at + size)
            encode = functools.partial(
                self._objective.encode, plan=plan, images=batch.images, rows=rows
            )
            finite.append(finite_rows(strategy.forward_in_eval_mode(encode)))
        good = torch.cat(finite).tolist()
        return [item for item, fine in zip(batch.item_ids, good) if not fine]


def _describe(lines: list[dict[str, Any]]) -> str:
    parts: list[str] = []
    for line in lines:
        more = len(line["items"]) - MAX_NAMED
        shown = ", ".join(line["items"][:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"rank {line['rank']}, items {shown}")
    if not lines[0]["alone"]:
        return "no single item causes it; the batch: " + "; ".join(parts[:MAX_NAMED])
    return "; ".join(parts[:MAX_NAMED])
