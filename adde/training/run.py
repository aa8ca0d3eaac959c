"""A run: everything the visible loop in train/main.py stands on."""

import copy
import gc
import math
import signal
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from adde.distributed import from_main, rank, sum_over_ranks, world_size
from adde.errors import UserError
from adde.files import this_process
from adde.loading.loader import Batch, BatchStream, join
from adde.loading.resize import load_for_training
from adde.schema import Schema
from adde.shards.batches import Batches
from adde.shards.jpeg import is_plain
from adde.shards.order import SampleOrder
from adde.shards.shares import RankShare
from adde.training.bad_steps import BadSteps
from adde.training.batch_size import micro_batch
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints.checkpoint import Checkpoint, Position
from adde.training.checkpoints.flat_shards import Piece, shares
from adde.training.checkpoints.saving import Saver
from adde.training.config import Config
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.opening import load_model
from adde.training.resilience.errors import explain
from adde.training.resilience.heartbeat import Heartbeat
from adde.training.resilience.preflight import (
    preflight,
    require_room,
    require_shared,
    require_split,
    say_what_will_fail,
)
from adde.training.resilience.skipped_samples import Faults
from adde.training.resilience.stop_signals import StopSignals, exit_status
from adde.training.run_folder import (
    is_finished,
    mark_finished,
    open_folder,
    open_shards,
    say_what_is_left,
)
from adde.training.strategies import Replicated, home_of_whole, open_accelerator, open_strategy
from adde.training.strategies.batch_norm import synchronise
from adde.training.watching.alarms import Alarms
from adde.training.watching.meter import Meter
from adde.training.watching.profiling import Profile, part
from adde.training.watching.report import write_report
from adde.training.watching.tracking import Tracker


class Run:
    """One run from its configuration, fresh or resumed; a context that closes what it opened.

    Raises:
        UserError: the run folder holds another run, or the shards, schema or batch do not fit.
    """

    def __init__(self, method: Method, config: Config, resume: bool) -> None:
        self.method, self.config = method, config
        self.accelerator = open_accelerator(config)
        self._heartbeat = Heartbeat(config.limits)
        self._stages = method.stages(config)
        self.position = Position(self._stages[0].name, 0, 0)
        self._stream: BatchStream | None = None
        try:
            self._open(config, resume)
        except BaseException as error:
            if (explained := self._explain(error)) is not error:
                raise explained from None
            raise

    def _open(self, config: Config, resume: bool) -> None:
        """What may fail on one rank alone, with the others waiting for it."""
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.index = open_shards(config, flag="--data.shards")
        for split in ("train", "val"):
            require_split(self.index, split, training=True)
        looked = preflight(config, self.index, self.device)
        self.order = SampleOrder(
            self.index.split("train"),
            config.data.batch_size,
            config.seed,
            config.data.window,
            config.data.last_batch,
        )
        micro_batch(config.data, world_size())
        resume = resume or looked.resumes(config.run)
        found, writer = from_main(
            lambda: (open_folder(self.method, config, resume), this_process())
        )
        require_shared(config.run, writer)
        checkpoint = found and checkpoints.open_checkpoint(found)

        torch.manual_seed(config.seed)
        self._bare: Any = self.method.build(config, self.index.schema)
        synchronise(self._bare, config, self.device)
        # Whole and averaged weights, for evaluation.
        self._average = copy.deepcopy(self._bare) if config.optimizer.ema else None
        self._home = home_of_whole(self.accelerator)
        self._park()
        self._strategy: Replicated | None = None
        self.objective = self.method.objective(config, self.index.schema, self.device)
        self._checkpoint = checkpoint
        from_main(lambda: require_room(config, self._bare))
        start: dict[str, object] = {}
        if self.main:
            start = looked.write(config.run, checkpoint.position.step if checkpoint else 0)
            say_what_will_fail(self.index)
        if checkpoint is not None:
            self._restore(checkpoint)
            if from_main(lambda: is_finished(config, self.position.step)):
                if self.main:
                    print(f"{config.run}: finished at step {self.position.step}, nothing to do")
                self._leave()
                raise SystemExit(0)
        self._evaluator = Evaluator(
            self.index,
            config.evaluation.batch_size,
            config.data.workers,
            self.device,
            config.data.on_fault,
            config.data.timeout,
            self._heartbeat.get_on,
        )
        told = {**config.to_json(), "start": start}
        self._tracker = Tracker(config.run, told, config.wandb, self.position.step, self.main)
        self._stop = StopSignals()
        self.meter = Meter(self.device)
        self._alarms = Alarms(config.alarms)
        self._profile = Profile(config.run / "profile", "", False)
        self._saver = Saver(config, self.index, writer)
        self._faults = Faults(config.run, rank())
        self._bad = BadSteps(config, self.objective, self.main)
        if self.main:
            say_what_is_left(self.order)

    # Stages

    def begin_stage(self, stage: Stage) -> bool:
        """Makes ready for a stage; False where it was finished, or has no steps."""
        self.total_steps = math.ceil(stage.schedule.epochs * self.order.steps_per_epoch)
        names = [one.name for one in self._stages]
        if names.index(stage.name) < names.index(self.position.stage):
            return False
        self.stage = stage
        if stage.name != self.position.stage or not (self.position.step or self._checkpoint):
            self._prepare(stage)
        # A parameter without a part in the stage gets no gradient, and DDP would wait for one.
        self._bare.requires_grad_(True)
        for name in stage.frozen:
            self._bare.get_submodule(name).requires_grad_(False)
        self._close_strategy()
        self._strategy = open_strategy(self.accelerator, self._bare, self.config, stage.rates)
        self._restore_strategy(stage.name)
        self.model.train()
        self._profile.close()
        self._profile = Profile(
            self.config.run / "profile", stage.name, self.config.profile and self.main
        )
        return self.position.stage_step < self.total_steps

    def _prepare(self, stage: Stage) -> None:
        """Has the method prepare the model for a stage that begins."""
        self._heartbeat.say(f"preparing the stage {stage.name}", self.position.step)
        model = self._gather().to(self.device)
        changed = self.method.before(stage, model, self._evaluator)
        self._close_strategy()
        if model is not self._bare:
            self._bare.load_state_dict(model.state_dict())
        self.position = Position(stage.name, 0, self.position.step)
        if changed:
            self.evaluate()
            self.save()

    @property
    def strategy(self) -> Replicated:
        """The model, gradients and optimiser of the stage entered last."""
        assert self._strategy is not None
        return self._strategy

    @property
    def model(self) -> Any:
        """What the stage trains."""
        return self.strategy.model

    @property
    def loads(self) -> int:
        """Batches that a rank takes for a step: of cached embeddings its whole share."""
        return 1 if self.config.data.cached else self.config.data.accumulation

    def steps(self) -> Iterator[int]:
        """The stage's steps still to do, under a progress bar."""
        start = self.position.stage_step
        data = self.config.data
        first, steps = self.position.step, self.total_steps - start
        parts = data.accumulation
        share = RankShare(self.order, rank(), world_size(), parts, whole=data.cached)
        batches = Batches(
            self.index,
            "train",
            self._bare.preprocess,
            share,
            data.on_fault,
            load_for_training,
            is_plain if data.decode == "device" else None,
        )
        self._numbers = iter(range(first * self.loads, (first + steps) * self.loads))
        # A whole share comes in micro-batches, too: none is in memory but the one that is used.
        self._stream = BatchStream(
            batches,
            range(first * parts, (first + steps) * parts),
            data.workers,
            self.device,
            data.timeout,
            rank(),
            together=parts // self.loads,
        )
        self.meter.restart()
        with tqdm(
            total=self.total_steps,
            initial=start,
            desc=self.position.stage,
            unit="step",
            disable=None if self.main else True,
        ) as self._bar:
            for step in range(start, self.total_steps):
                self.objective.begin_step(step, self.total_steps)
                yield step
                self._profile.step()
                self._bar.update()
        self._stream.close()

    @part("loading")
    def next_batch(self) -> tuple[Batch, torch.Generator]:
        """This rank's next micro-batch, and the generator of everything drawn for it.

        Both depend on the micro-batch's number alone, so that a resumed run draws what an
        uninterrupted one would have drawn.
        """
        started = time.perf_counter()
        assert self._stream is not None
        self._heartbeat.say("loading a batch", self.position.step)
        batch = join(self._stream, self.config.data.accumulation // self.loads)
        self._heartbeat.say("training", self.position.step)
        self.meter.waited += time.perf_counter() - started
        self._faults.report(batch.faults, self.position.step)
        number = next(self._numbers)
        torch.manual_seed(_seed(self.config.seed, number, rank()))  # dropout
        draws = torch.Generator().manual_seed(_seed(self.config.seed, number))
        return batch, draws

    def note(self, scalars: dict[str, float], batch: Batch, draws: torch.Generator) -> None:
        """Takes down one micro-batch's scalars after its backward pass; on all ranks alike."""
        self.meter.add(scalars, len(batch.labels))
        self._bad.look(self.strategy, self.stage, scalars, batch, draws)

    @part("logging")
    def log(self, rate: float, norm: float) -> None:
        """Writes one step's figures to the log, the dashboard and the progress bar.

        Raises what writing a checkpoint raised since the step before.
        """
        self._saver.check()
        stage = self.stage.name
        self.position = Position(stage, self.position.stage_step + 1, self.position.step + 1)
        scalars, speed = self.meter.take(), self.meter.speed
        attributes, ranks = self.meter.details()
        terms = {f"{stage}/{name}": value for name, value in {**scalars, **attributes}.items()}
        blocks = {f"grad_norm/{name}": value for name, value in self.strategy.block_norms.items()}
        self._faults.require_few(scalars["skipped"], self.config.data, self.order.steps_per_epoch)
        scaler = self.accelerator.scaler
        self._bad.settle(norm, self.position.step, scaler.get_scale() if scaler else None)
        counts = {f"data/{k}": v for k, v in self.order.counts(self.position.step).items()}
        self._tracker.log(
            self.position.step,
            {
                **terms,
                **speed,
                **counts,
                "lr": rate,
                "grad_norm": norm,
                "bad_steps": self._bad.count,
                **blocks,
                **ranks,
                **self._saver.figures(),
            },
        )
        for alert in self._alarms.look(stage, scalars["loss"], speed["images_per_second"], ranks):
            self._tracker.alert(self.position.step, alert)
        self._bad.require_few()
        if self.main:
            self._bar.set_postfix_str(
                f"loss {scalars['loss']:.3f}, {speed['images_per_second']:.0f} images/s, "
                f"{speed['data_wait']:.0%} waiting for data"
            )

    # Evaluation and checkpoints

    def evaluation_due(self, step: int) -> bool:
        """At the set pace, and at the end of the stage."""
        every = max(1, round(self.config.evaluation.every_epochs * self.order.steps_per_epoch))
        return (step + 1) % every == 0 or step + 1 == self.total_steps

    def evaluate(self) -> None:
        """Validates the weights that would be exported; the best are kept."""
        self._heartbeat.say("evaluating", self.position.step)
        model = self._gather().to(self.device)
        settings = self.config.evaluation
        evaluated = self.method.evaluate(self.stage, model, self._evaluator, settings)
        figures = evaluated.figures
        if self.main:
            self._tracker.log_evaluation(self.position.step, evaluated)
            shown = ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if k in self.method.shown)
            tqdm.write(f"step {self.position.step}: {shown}")
        self._saver.wait()  # the best so far may still be on its way
        deciding = {n: figures[n] for n in self.method.deciding if n in figures}
        better = bool(deciding) and self.main and checkpoints.is_best(self.config.run, deciding)
        # Saving takes all ranks, and the main one alone knows.
        if sum_over_ranks(torch.tensor([float(better)], device=self.device)).item():
            self.save(deciding)
        self._park()
        self.accelerator.wait_for_everyone()
        self.meter.restart()

    def checkpoint_due(self, step: int, stopping: bool) -> bool:
        """At the set pace, at the end of the stage, and before a stop."""
        return (
            stopping
            or (step + 1) % self.config.checkpoints.every == 0
            or step + 1 == self.total_steps
        )

    def save(self, best: dict[str, float] | None = None) -> None:
        """Has a checkpoint written beside the training; on all ranks.

        `best` are validation figures that make it the best.
        """
        self._heartbeat.say("saving a checkpoint", self.position.step)
        scaler = self.accelerator.scaler
        self._saver.save(self.position, self._pieces, scaler and scaler.state_dict(), best)

    def _pieces(self) -> dict[str, Piece]:
        """What this rank writes of a checkpoint."""
        alike = self.objective.state()
        if self._strategy is not None:
            return self._strategy.pieces() | shares(alike)
        model = {f"model/{name}": value for name, value in self._bare.state_dict().items()}
        return shares(model | alike)

    @property
    def stop_asked(self) -> bool:
        """Whether this process was told to stop."""
        return self._stop.signal is not None

    def stop(self) -> None:
        """Ends the program after a stop that all ranks have agreed on."""
        self._saver.wait()
        if self.main:
            tqdm.write(
                f"stopped after step {self.position.step}; go on with: accelerate launch "
                f"train/main.py --resume --run {self.config.run}"
            )
        self.accelerator.wait_for_everyone()
        raise SystemExit(exit_status(self._stop.signal or signal.SIGTERM))

    def finish(self) -> None:
        """Ends what the ranks have in common, then says where everything lies."""
        self._saver.wait()
        self.accelerator.wait_for_everyone()
        self._finish_best()
        # The others go, while the main rank still uploads for W&B and writes the report.
        self._leave()
        if self.main:
            self._tracker.close()
            report = write_report(self.config.run)
            mark_finished(self.config.run, self.position.step)
            print(f"report: {report}")

    def _leave(self) -> None:
        """Leave the other ranks, without a word that anything is wrong."""
        self._heartbeat.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _finish_best(self) -> None:
        """Hands the best checkpoint's model to the method, which may add to it."""
        self._heartbeat.say("finishing the best checkpoint", self.position.step)
        self._close_strategy()
        if not from_main((self.config.run / "checkpoints" / checkpoints.BEST_NAME).exists):
            return  # of a finished run, resumed where its best is gone
        model, _, checkpoint = load_model(self.config.run)
        self.method.finish(model.to(self.device), checkpoint, self._evaluator)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        explained = None
        if error is not None and not isinstance(error, SystemExit):
            explained = self._explain(error)
        self._heartbeat.close()
        self._profile.close()
        self._saver.close(failed=error is not None)
        self._tracker.close(self.position.step, explained)
        self._stop.close()
        if self._stream is not None and error is not None:
            self._stream.close()
        if explained is not None and explained is not error:
            raise explained from None

    # Inside

    def _explain(self, error: BaseException) -> BaseException:
        """What this rank has failed with, in the words that the other ranks are told."""
        explained = explain(error, self.position.step, self._stream, self._heartbeat)
        self._heartbeat.close(explained)
        return explained

    def _gather(self) -> Any:
        """Brings the whole weights up to date, on all ranks; those that would be exported."""
        if self._strategy is None:
            return self._bare
        self._strategy.copy_to(self._bare)
        averages = self._strategy.averaged
        if self._average is None or averages is None or not averages.tensors:
            return self._bare
        self._strategy.copy_to(self._average, averages.tensors)
        return self._average

    def _park(self) -> None:
        """Whole copies that are not trained leave the GPU until they are evaluated."""
        self._bare.to(self._home)
        if self._average is not None:
            self._average.to("cpu")

    def _close_strategy(self) -> None:
        if self._strategy is not None:
            self._strategy.close()
        self._strategy = None
        gc.collect()  # what is cut is in cycles of hooks, and the next stage needs its memory
        self._park()

    def _restore(self, checkpoint: Checkpoint) -> None:
        where = str(checkpoint.path)
        schema = Schema.from_json(checkpoint.state["schema"], where)
        schema.require_same(self.index.schema, where, str(self.index.root))
        if (found := self.index.fingerprint("train")) != checkpoint.state["shards"]:
            raise UserError(
                f"{where}: expected the shards it was trained on (fingerprint "
                f"{checkpoint.state['shards']}), found others in {self.index.root} ({found}); "
                f"to train on these from the start, delete {self.config.run} or name another --run"
            )
        tensors = checkpoint.tensors("model")
        self._bare.load_state_dict({name: stored.whole() for name, stored in tensors.items()})
        self.objective.restore(checkpoint)
        self.position = checkpoint.position
        if self.main:
            print(f"resuming at step {self.position.step} from {where}")

    def _restore_strategy(self, stage: str) -> None:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None or checkpoint.position.stage != stage or self._strategy is None:
            return
        self._strategy.restore(checkpoint.tensors("optimizer"), checkpoint.tensors("ema"))
        if self.accelerator.scaler and checkpoint.state["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
