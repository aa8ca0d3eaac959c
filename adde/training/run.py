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
from adde.model import ADDE
from adde.schema import Schema
from adde.shards.batches import Batches
from adde.shards.jpeg import is_plain
from adde.shards.order import SampleOrder
from adde.shards.shares import RankShare
from adde.training.bad_steps import BadSteps
from adde.training.batch_size import micro_batch
from adde.training.calibration import calibration_of
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints.checkpoint import Checkpoint, Position
from adde.training.checkpoints.flat_shards import Piece, shares
from adde.training.checkpoints.saving import Saver
from adde.training.config import Config, Schedule
from adde.training.cross_batch import CrossBatchMemory
from adde.training.evaluation import (
    Encoded,
    Evaluator,
    attribute_accuracy,
    picture_rows,
    retrieval,
)
from adde.training.objectives import Objective
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

STAGES = ("encoder", "adde")
SHOWN = ("hit@1", "hit@10", "hit@30", "ndcg@30", "accuracy")
"""Validation figures on the terminal."""

CALIBRATED = ("hit@1", "hit@10", "hit@30", "ndcg@30", "first_wanted", "wanted@10")
"""Validation figures of the match score on the terminal."""


class Run:
    """One run from its configuration, fresh or resumed; a context that closes what it opened.

    Raises:
        UserError: the run folder holds another run, or the shards, schema or batch do not fit.
    """

    def __init__(self, config: Config, resume: bool) -> None:
        self.config = config
        self.accelerator = open_accelerator(config)
        self._heartbeat = Heartbeat(config.limits)
        self.position = Position(STAGES[0], 0, 0)
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
        found, writer = from_main(lambda: (open_folder(config, resume), this_process()))
        require_shared(config.run, writer)
        checkpoint = found and checkpoints.open_checkpoint(found)

        torch.manual_seed(config.seed)
        self._bare = ADDE(config.model, self.index.schema)
        synchronise(self._bare, config, self.device)
        # Whole and averaged weights, for evaluation.
        self._average = copy.deepcopy(self._bare) if config.optimizer.ema else None
        self._home = home_of_whole(self.accelerator)
        self._park()
        self._strategy: Replicated | None = None
        self._memory = _cross_batch_memory(config, self.index.schema, self.device)
        self.objective = Objective(
            self.index.schema,
            config.augmentation,
            config.margin,
            self._memory,
            config.adde.edited_triplet > 0,
        )
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

    def enter(self, name: str, schedule: Schedule) -> bool:
        """Makes ready for a stage; False where it was finished, or has no steps."""
        self.total_steps = math.ceil(schedule.epochs * self.order.steps_per_epoch)
        at = self.position
        if STAGES.index(name) < STAGES.index(at.stage):
            return False
        if name != at.stage:
            self.position = Position(name, 0, at.step)
        # Prototypes have no part in the first stage, and no gradient: DDP would wait for one.
        self._bare.memory.requires_grad_(name != "encoder")
        self._close_strategy()
        self._strategy = open_strategy(self.accelerator, self._bare, self.config)
        self._restore_strategy(name)
        self.model.train()
        self._profile.close()
        self._profile = Profile(
            self.config.run / "profile", name, self.config.profile and self.main
        )
        return self.position.stage_step < self.total_steps

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
        self._bad.look(self.strategy, self.position.stage, scalars, batch, draws)

    @part("logging")
    def log(self, stage: str, rate: float, norm: float) -> None:
        """Writes one step's figures to the log, the dashboard and the progress bar.

        Raises what writing a checkpoint raised since the step before.
        """
        self._saver.check()
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

    # Stage 2

    def start_memory(self) -> None:
        """Sets the memory to the prototypes of the encoder as it stands (stage 2)."""
        if self.position.stage == "adde":
            return
        self._heartbeat.say("computing the prototypes", self.position.step)
        model = self._gather().to(self.device)
        prototypes, counts = self._evaluator.prototypes(model)
        self._close_strategy()
        if model is not self._bare:
            self._bare.load_state_dict(model.state_dict())
        self._bare.memory.set_prototypes(prototypes.to(self._home))
        empty = [n for n, c in zip(value_names(self.index.schema), counts.tolist()) if not c]
        if empty and self.main:
            print(f"warning: no training item shows {', '.join(empty)}: their prototypes are zero")
        self.position = Position("adde", 0, self.position.step)
        self.evaluate()
        self.save()

    # Evaluation and checkpoints

    def evaluation_due(self, step: int) -> bool:
        """At the set pace, and at the end of the stage."""
        every = max(1, round(self.config.evaluation.every_epochs * self.order.steps_per_epoch))
        return (step + 1) % every == 0 or step + 1 == self.total_steps

    def evaluate(self) -> None:
        """Validates the weights that would be exported; in stage 3 the best are kept."""
        self._heartbeat.say("evaluating", self.position.step)
        model = self._gather().to(self.device)
        encoded = self._evaluator.encode(model, "val")
        figures = attribute_accuracy(encoded, self.index.schema)
        retrieves = self.position.stage == "adde"  # before, there is no memory that edits
        if retrieves:
            figures |= retrieval(model, encoded, self.device, self.config.evaluation.queries)
        if self.main:
            self._log_evaluation(model, encoded, figures)
        self._saver.wait()  # the best so far may still be on its way
        better = retrieves and self.main and checkpoints.is_best(self.config.run, figures)
        # Saving takes all ranks, and the main one alone knows.
        if sum_over_ranks(torch.tensor([float(better)], device=self.device)).item():
            self.save(figures)
        self._park()
        self.accelerator.wait_for_everyone()
        self.meter.restart()

    def _log_evaluation(self, model: ADDE, encoded: Encoded, figures: dict[str, float]) -> None:
        count = self.config.evaluation.rows if self.position.stage == "adde" else 0
        self._tracker.log_evaluation(
            self.position.step,
            {f"val/{name}": value for name, value in figures.items()},
            picture_rows(self.index, "val", model, encoded, count),
            model.memory.weight.detach().float().cpu().numpy().T,
            value_names(self.index.schema),
            self.index.schema.sizes,
        )
        shown = ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if k in SHOWN)
        tqdm.write(f"step {self.position.step}: {shown}")

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
        alike = self._memory.state() if self._memory else {}
        alike = {f"cross_batch/{name}": value for name, value in alike.items()}
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
        self._calibrate()
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

    def _calibrate(self) -> None:
        """Calibrates the match score of the best checkpoint, which is evaluated and exported."""
        self._heartbeat.say("calibrating", self.position.step)
        self._close_strategy()
        if not from_main((self.config.run / "checkpoints" / checkpoints.BEST_NAME).exists):
            return  # of a finished run, resumed where its best is gone
        model, _, checkpoint = checkpoints.load_model(self.config.run)
        found, figures = calibration_of(checkpoint, model.to(self.device), self._evaluator)
        if self.main:
            shown = ", ".join(f"{k} {figures[k]:.4f}" for k in CALIBRATED if k in figures)
            print(
                f"calibrated {checkpoint.path.name}: epsilon {found.epsilon:g}, an edit weighs "
                f"{found.edit_weight:g}, presence is {'used' if found.presence else 'not used'}; "
                f"validation: {shown}"
            )

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

    def _gather(self) -> ADDE:
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
        if self._memory is not None:
            self._memory.restore(checkpoint.tensors("cross_batch"))
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


def value_names(schema: Schema) -> list[str]:
    """`attribute=value` of every column."""
    return [f"{a.name}={value}" for a in schema.attributes for value in a.values]


def _cross_batch_memory(
    config: Config, schema: Schema, device: torch.device
) -> CrossBatchMemory | None:
    if not config.cross_batch.size:
        return None
    shape = (len(schema.sizes), config.model.width)
    return CrossBatchMemory(config.cross_batch, config.data.batch_size, shape, device)


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
