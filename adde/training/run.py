"""A run: what the training loop in train/main.py is written with."""

from collections.abc import Iterator
from typing import Any

import torch

from adde.distributed import sum_over_ranks
from adde.loading.batch import Batch
from adde.training.bad_steps import BadSteps
from adde.training.batches import TrainingBatches
from adde.training.checkpoints.checkpoint import (
    Position,
    checkpoint_path,
    is_best,
    open_checkpoint,
)
from adde.training.checkpoints.saving import Saver
from adde.training.config import Config
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.opening import finish_best
from adde.training.resilience.errors import explain
from adde.training.resilience.heartbeat import Heartbeat
from adde.training.resilience.stop_signals import StopSignals
from adde.training.run_folder import finish_folder
from adde.training.startup import choose_precision, start
from adde.training.strategies import Strategy, Weights, open_accelerator
from adde.training.watching.monitor import Monitor


class Run:
    """A run from its configuration, new or resumed; a context manager.

    Raises:
        UserError: the run's folder holds another run, or the shards, schema or batch do not fit.
    """

    def __init__(self, method: Method, config: Config, resume: bool) -> None:
        config = choose_precision(config, resume)
        self.method, self.config = method, config
        self._stages = method.stages(config)
        self.position = Position(self._stages[0].name, 0, 0)
        self.accelerator = open_accelerator(config)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self._heartbeat = Heartbeat(config.limits)
        self._batches: TrainingBatches | None = None
        try:
            self._open(resume)
        except BaseException as error:
            if (explained := self._explain(error)) is not error:
                raise explained from None
            raise

    def _open(self, resume: bool) -> None:
        """Open what may fail on one rank while the others wait for it."""
        config = self.config
        begun = start(self.method, config, resume, self.device)
        if begun.finished:
            self._leave()
            raise SystemExit(0)
        index, self.order, self._checkpoint = begun.index, begun.order, begun.checkpoint
        self._preprocess = begun.model.preprocess
        self._weights = Weights(self.accelerator, begun.model, config)
        self.objective = self.method.objective(config, index.schema, self.device)
        if self._checkpoint is not None:
            self.objective.restore(self._checkpoint)
            self.position = self._checkpoint.position
        self._evaluator = Evaluator(
            index,
            config.evaluation.batch_size,
            config.data.workers,
            self.device,
            config.data.on_fault,
            config.data.timeout,
            self._heartbeat.report_progress,
        )
        self._monitor = Monitor(
            config, begun.launch, self.position.step, self.device, self.method.terminal_metrics
        )
        self._stop = StopSignals()
        self._saver = Saver(config, index, begun.writer)
        self._batches = TrainingBatches(
            config, index, self.order, self.device, self.method.reads_pictures
        )
        self._bad_steps = BadSteps(config, self.objective, self.main)

    # Stages and steps

    def begin_stage(self, stage: Stage) -> bool:
        """Prepare a stage; return whether it has steps left to do."""
        names = [one.name for one in self._stages]
        if names.index(stage.name) < names.index(self.position.stage):
            return False
        self.stage = stage
        self.total_steps = stage.schedule.steps(self.order.steps_per_epoch)
        checkpoint, self._checkpoint = self._checkpoint, None
        if stage.name != self.position.stage or not (self.position.step or checkpoint):
            self._prepare(stage)
        self._frozen = self._frozen_parts()
        self._weights.train(self._frozen, stage.rates)
        if checkpoint is not None and checkpoint.position.stage == stage.name:
            self._weights.restore(checkpoint)
        self.objective.begin_stage(stage, self.strategy)
        self.model.train()
        return self.position.stage_step < self.total_steps

    def _prepare(self, stage: Stage) -> None:
        self._heartbeat.set_phase(f"preparing the stage {stage.name}", self.position.step)
        model = self._weights.gather()
        changed = self.method.before(stage, model, self._evaluator)
        self._weights.adopt(model)
        self.position = Position(stage.name, 0, self.position.step)
        if changed:
            self.evaluate()
            self.save()

    def _frozen_parts(self) -> tuple[str, ...]:
        """Return the parts that do not learn in the next step."""
        of_run = self.config.optimizer.frozen.items()
        done, epoch = self.position.step, self.order.steps_per_epoch
        return (*self.stage.frozen, *(n for n, epochs in of_run if done < round(epochs * epoch)))

    def _unfreeze(self, frozen: tuple[str, ...]) -> None:
        """Go on with fewer frozen parts, from a checkpoint that is saved for it."""
        learning = ", ".join(part for part in self._frozen if part not in frozen)
        self._monitor.print(f"after step {self.position.step}: {learning} learns, too")
        self.save()
        self._saver.wait()
        self.accelerator.wait_for_everyone()
        path = checkpoint_path(self.config.run, self.position.step)
        self._weights.unfreeze(frozen, self.stage.rates, open_checkpoint(path))
        self._frozen = frozen
        self.model.train()

    @property
    def strategy(self) -> Strategy:
        """Trains the current stage."""
        return self._weights.strategy

    @property
    def model(self) -> Any:
        """The model as the current stage calls it."""
        return self.strategy.model

    def steps(self) -> Iterator[int]:
        """Yield the stage's remaining steps, under a progress bar."""
        assert self._batches is not None
        begin = self.position.stage_step
        self._batches.open(self._preprocess, self.position.step, self.total_steps - begin)
        for step in self._monitor.steps(self.stage.name, begin, self.total_steps):
            if (frozen := self._frozen_parts()) != self._frozen:
                self._unfreeze(frozen)
            self.objective.begin_step(step, self.total_steps)
            yield step
        self._batches.close()

    def next_batch(self) -> tuple[Batch, torch.Generator]:
        """Return this rank's next batch, and the generator for everything drawn for it."""
        assert self._batches is not None
        self._heartbeat.set_phase("loading a batch", self.position.step)
        with self._monitor.meter.waiting():
            batch, draws = self._batches.next(self.position.step)
        self._heartbeat.set_phase("training", self.position.step)
        return batch, draws

    def record_micro_batch(
        self, scalars: dict[str, float], batch: Batch, draws: torch.Generator
    ) -> None:
        """Record a micro-batch's scalars after its backward pass; they are equal on all ranks."""
        self._monitor.meter.add(scalars, len(batch.labels))
        self._bad_steps.inspect(self.strategy, self.stage, scalars, batch, draws)

    def log(self, rate: float, norm: float) -> None:
        """Count and log a step. Raise what writing a checkpoint has raised since the last step."""
        assert self._batches is not None
        self._saver.check()
        step = self.position.step + 1
        self.position = Position(self.stage.name, self.position.stage_step + 1, step)
        scaler = self.accelerator.scaler
        self._bad_steps.finish_step(norm, step, scaler.get_scale() if scaler else None)
        figures = {
            **{f"data/{name}": value for name, value in self.order.counts(step).items()},
            "lr": rate,
            "grad_norm": norm,
            "bad_steps": self._bad_steps.count,
            **{f"grad_norm/{name}": value for name, value in self.strategy.block_norms.items()},
            **self._saver.figures(),
        }
        scalars = self._monitor.log(self.position, figures)
        self._batches.require_few_skipped(scalars["skipped"])
        self._bad_steps.require_below_limit()

    # Evaluation and checkpoints

    def evaluation_due(self, step: int) -> bool:
        """Whether to evaluate after a step: every `every_epochs`, and at the end of the stage."""
        every = max(1, round(self.config.evaluation.every_epochs * self.order.steps_per_epoch))
        return (step + 1) % every == 0 or step + 1 == self.total_steps

    def evaluate(self) -> None:
        """Validate the weights that would be exported; save them if they are the best so far."""
        self._heartbeat.set_phase("evaluating", self.position.step)
        model = self._weights.gather()
        evaluated = self.method.evaluate(self.stage, model, self._evaluator, self.config.evaluation)
        self._monitor.log_evaluation(self.position.step, evaluated)
        self._saver.wait()  # the best so far may still be being written
        names = [name for name in self.method.best_metrics if name in evaluated.figures]
        deciding = {name: evaluated.figures[name] for name in names}
        better = self.main and bool(deciding) and is_best(self.config.run, deciding)
        # Only rank 0 knows, and all ranks save.
        if sum_over_ranks(torch.tensor([float(better)], device=self.device)).item():
            self.save(deciding)
        self._weights.offload_full()
        self.accelerator.wait_for_everyone()
        self._monitor.meter.restart()

    def checkpoint_due(self, step: int, stopping: bool) -> bool:
        """Whether to save after a step: every `checkpoints.every`, at a stage's end, at a stop."""
        every = self.config.checkpoints.every
        return stopping or (step + 1) % every == 0 or step + 1 == self.total_steps

    def save(self, best: dict[str, float] | None = None) -> None:
        """Write a checkpoint in the background; on all ranks.

        `best` are the validation metrics that make it the best so far.
        """
        self._heartbeat.set_phase("saving a checkpoint", self.position.step)
        scaler = self.accelerator.scaler
        self._saver.save(
            self.position,
            lambda: self._weights.flat_shards(self.objective.state()),
            scaler and scaler.state_dict(),
            best,
        )

    # The end

    @property
    def stop_asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self._stop.signal is not None

    def stop(self) -> None:
        """End the program after a stop on which all ranks agreed."""
        self._saver.wait()
        self._monitor.print(
            f"stopped after step {self.position.step}; continue with: accelerate launch "
            f"train/main.py --resume --run {self.config.run}"
        )
        self.accelerator.wait_for_everyone()
        raise SystemExit(self._stop.exit_status())

    def finish(self) -> None:
        """Complete the best checkpoint, and write the report."""
        self._saver.wait()
        self.accelerator.wait_for_everyone()
        self._heartbeat.set_phase("finishing the best checkpoint", self.position.step)
        self._weights.close()
        finish_best(self.method, self.config.run, self.device, self._evaluator)
        # Let the other ranks end while rank 0 uploads to W&B and writes the report.
        self._leave()
        if self.main:
            self._monitor.close()
            finish_folder(self.config.run, self.position.step)

    def _leave(self) -> None:
        """Leave the process group without an error."""
        self._heartbeat.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._batches is not None
        explained = None
        if error is not None and not isinstance(error, SystemExit):
            explained = self._explain(error)
        self._heartbeat.close()
        self._saver.close(failed=error is not None)
        self._monitor.close(self.position.step, explained)
        self._stop.close()
        self._batches.close()
        if explained is not None and explained is not error:
            raise explained from None

    def _explain(self, error: BaseException) -> BaseException:
        """Explain this rank's error, and tell the other ranks."""
        stream = self._batches.stream if self._batches is not None else None
        explained = explain(error, self.position.step, stream, self._heartbeat)
        self._heartbeat.close(explained)
        return explained
