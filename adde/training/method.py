"""The seam between the engine and a method: all that training knows of what it trains.

A method is a room of `adde.methods` whose module `method` holds `METHOD`, an instance of a subclass
of `Method`; or a module of your own with one, named in a recipe by its dotted path. The engine
gives it batches, ranks, checkpoints, logs and a report; docs/extending.md adds one step by step.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import adde
from adde.distributed import RankRows
from adde.errors import UserError, did_you_mean
from adde.loading.loader import Batch
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.config import Config, Evaluation, Schedule
from adde.training.evaluation import Evaluator
from adde.training.optimisation import Rate
from adde.training.terms import Outputs, Terms
from adde.training.watching.displays import Evaluated, Summary
from adde.training.watching.panels import Panel


@dataclass(frozen=True)
class Stage:
    """A part of a run with a schedule and losses of its own."""

    name: str
    """Also the prefix of its figures in the log."""

    schedule: Schedule

    weights: Mapping[str, float]
    """Of the loss terms, by name."""

    frozen: tuple[str, ...] = ()
    """Submodules of the model that have no gradient in this stage."""

    rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    """Of submodules whose learning rate or AdamW betas are not those of the others, by name."""


class Objective:
    """What a method minimises. Drawing, encoding and losses stay apart: a batch may be encoded in
    pieces, and an item whose embedding is not finite is found by encoding it again.
    """

    def begin_step(self, step: int, steps: int) -> None:
        """Learns where the stage stands, for losses that change over time.

        Args:
            step: of the stage that comes next, from 0.
            steps: of the whole stage.
        """

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Any:
        """All that is drawn for this rank's items before they are encoded.

        Args:
            stage: of the run.
            batch: this rank's share of the global batch.
            draws: the same generator on every rank.
            ranks: how the global batch is shared out; None: as many items on every rank.
        """
        raise NotImplementedError

    def encode(self, model: Any, plan: Any, images: Tensor, rows: slice = slice(None)) -> Outputs:
        """What the model gives for some rows of this rank's images (b, S, S, 3) uint8."""
        raise NotImplementedError

    def terms(self, stage: Stage, out: Any, batch: Batch, plan: Any) -> Terms:
        """The stage's losses of what the model gave for all of this rank's items.

        Sums stay local, counts are added over ranks, so that N ranks give one rank's loss. The
        shares include those of `adde.training.terms.item_shares`.
        """
        raise NotImplementedError

    def batch_terms(
        self,
        stage: Stage,
        model: Any,
        batch: Batch,
        draws: torch.Generator,
        ranks: RankRows | None = None,
    ) -> Terms:
        """The losses of a batch that is encoded whole."""
        plan = self.plan(stage, batch, draws, ranks)
        return self.terms(stage, self.encode(model, plan, batch.images), batch, plan)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps beside the model, the same on every rank, by names such
        as `queue/embeddings`.
        """
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes back what `state` gave."""


class Method:
    """One way to train; subclasses say what differs from another."""

    title: str
    """What the report is headed with."""

    Config: type[Config]
    """Its settings: a subclass of the engine's."""

    deciding: tuple[str, ...] = ()
    """Validation figures that choose the best checkpoint, in this order; larger is better."""

    shown: tuple[str, ...] = ()
    """Validation figures on the terminal, and large in the report of a run not evaluated yet."""

    shows_shares: bool = True
    """Whether those are shares, which the report gives in percent."""

    supervision: str = "what it was taught by is not known"
    """Which labels its encoder was taught by, for tables that compare encoders."""

    panels: tuple[Panel, ...] = ()
    """Plots of its figures, in W&B and the report."""

    not_shown: tuple[str, ...] = ()
    """Patterns of figures in the log that no panel has."""

    tables: tuple[str, ...] = ()
    """Names of the tables that an evaluation gives."""

    def build(self, config: Any, schema: Schema, start: bool = True) -> nn.Module:
        """The model, on the CPU. It has `preprocess`, the `Preprocess` of its pictures.

        Args:
            config: of the run.
            schema: of the catalogue.
            start: whether weights to start from are loaded; False where a checkpoint's follow.
        """
        raise NotImplementedError

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """The stages of a run, in order."""
        raise NotImplementedError

    def objective(self, config: Any, schema: Schema, device: torch.device) -> Objective:
        """What the stages minimise."""
        raise NotImplementedError

    def before(self, stage: Stage, model: nn.Module, evaluator: Evaluator) -> bool:
        """Prepares the model for a stage that begins; on all ranks.

        Returns whether it changed weights, which are then evaluated and saved.
        """
        return False

    def represent(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """What evaluation keeps of a batch of pictures, a row each, by name."""
        raise NotImplementedError

    def codes(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """The codes of pictures (B, S, S, 3) uint8, for scores of disentanglement.

        Returns:
            `codes` (B, L) float32; of a Gaussian posterior their means, and `log_variance` (B, L).

        Raises:
            UserError: the method has no codes.
        """
        raise UserError(f"{self.title}: expected a method that gives codes, found one without")

    def blocks(self, model: Any) -> tuple[str, ...] | None:
        """The block of each of the L numbers of a code; None: each is a block of its own."""
        return None

    def evaluate(
        self, stage: Stage, model: Any, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Validates a model; on all ranks. What it shows is looked at on the main rank only."""
        raise NotImplementedError

    def finish(self, model: Any, checkpoint: Checkpoint, evaluator: Evaluator) -> None:
        """Completes the best checkpoint at the end of a run; on all ranks."""

    def summary(self, metrics: dict[str, Any]) -> Summary:
        """What the report says of `metrics.json`, which this method's evaluation wrote."""
        return Summary()


def find_method(name: str) -> Method:
    """The method of a recipe's name: a room of `adde.methods`, or a module by its dotted path.

    Raises:
        UserError: there is none.
    """
    module = name if "." in name else f"{adde.__name__}.methods.{name}.method"
    try:
        return importlib.import_module(module).METHOD
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the method is there, and something that it imports is not
    except AttributeError:
        pass
    raise UserError(
        f"method: expected a method, or the dotted name of a module with METHOD, found {name!r}; "
        f"{did_you_mean(name, methods())}"
    )


def methods() -> list[str]:
    """Names of the methods that this package brings along."""
    rooms = importlib.import_module(f"{adde.__name__}.methods")
    return sorted(room.name for room in pkgutil.iter_modules(rooms.__path__) if room.ispkg)
