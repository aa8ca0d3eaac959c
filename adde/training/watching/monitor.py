"""A run as its user watches it: progress bar, log, dashboard, alerts and profile."""

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from adde.distributed import rank
from adde.training.checkpoints.checkpoint import Position
from adde.training.config import Config
from adde.training.watching.alarms import Alarms
from adde.training.watching.displays import Evaluated
from adde.training.watching.meter import Meter
from adde.training.watching.profiling import Profile, part
from adde.training.watching.tracking import Tracker


class Monitor:
    """Measure and report a run; on all ranks, of which rank 0 writes.

    Args:
        config: of the run.
        launch: how this start was launched, for the dashboard.
        step: that the run starts at; log lines after it are dropped.
        device: that this rank trains on.
        terminal_metrics: validation metrics to print.
    """

    def __init__(
        self,
        config: Config,
        launch: dict[str, Any] | None,
        step: int,
        device: torch.device,
        terminal_metrics: tuple[str, ...],
    ) -> None:
        self._config, self._main = config, rank() == 0
        self._terminal_metrics = terminal_metrics
        self.meter = Meter(device)
        self._alarms = Alarms(config.alarms)
        content = {**config.to_json(), "start": launch}
        self._tracker = Tracker(config.run, content, config.wandb, step, self._main)
        self._profile: Profile | None = None

    def steps(self, stage: str, start: int, total: int) -> Iterator[int]:
        """Yield the steps `start` to `total` of a stage under a progress bar, profiled if set."""
        profiled = self._config.profile and self._main
        self._profile = Profile(self._config.run / "profile", stage, profiled)
        self.meter.restart()
        disable = None if self._main else True
        with tqdm(
            total=total, initial=start, desc=stage, unit="step", disable=disable
        ) as self._bar:
            for step in range(start, total):
                yield step
                self._profile.step()
                self._bar.update()
        self._profile.close()

    @part("logging")
    def log(self, position: Position, figures: dict[str, float]) -> dict[str, float]:
        """Log a step, and alert if something is wrong with it.

        Args:
            position: after the step.
            figures: to log beside what the meter measured.

        Returns:
            The step's mean scalars.
        """
        scalars, speed = self.meter.take(), self.meter.speed
        parts, ranks = self.meter.details()
        of_stage = {f"{position.stage}/{n}": value for n, value in {**scalars, **parts}.items()}
        self._tracker.log(position.step, {**of_stage, **speed, **figures, **ranks})
        loss, throughput = scalars["loss"], speed["images_per_second"]
        for alert in self._alarms.check(position.stage, loss, throughput, ranks):
            self._tracker.alert(position.step, alert)
        if self._main:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {throughput:.0f} images/s, "
                f"{speed['data_wait']:.0%} waiting for data"
            )
        return scalars

    def log_evaluation(self, step: int, evaluated: Evaluated) -> None:
        """Log a validation, and print its main metrics."""
        self._tracker.log_evaluation(step, evaluated)
        shown = {n: v for n, v in evaluated.figures.items() if n in self._terminal_metrics}
        self.print(f"step {step}: " + ", ".join(f"{n} {v:.4f}" for n, v in shown.items()))

    def print(self, text: str) -> None:
        """Print a line above the progress bar, on rank 0."""
        if self._main:
            tqdm.write(text)

    def close(self, step: int = 0, error: BaseException | None = None) -> None:
        """End profile, dashboard and log, with the error that ended the run if there is one."""
        if self._profile is not None:
            self._profile.close()
        self._tracker.close(step, error)
