"""The interface between the training engine and a method.

A method is a package of `adde.methods` whose module `method` defines `METHOD`, an instance of a
subclass of `Method`; or any module with a `METHOD`, named in a recipe by its dotted path. The
engine provides batches, ranks, checkpoints, logs and a report. docs/extending.md adds a method step
by step.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import adde
from adde.distributed import RankRows
from adde.errors import UserError, did_you_mean
from adde.loading.batch import Batch
from adde.schema import Schema
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.config import Config, Evaluation, Schedule
from adde.training.evaluation import Evaluator
from adde.training.optimisation import Rate
from adde.training.strategies.strategy import Strategy
from adde.training.terms import Outputs, Terms
from adde.training.watching.displays import Evaluated, Summary
from adde.training.watching.panels import Panel


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own schedule and losses."""

    name: str
    """Also the prefix of its losses in the log."""

    schedule: Schedule

    weights: Mapping[str, float]
    """Weights of the loss terms, by name."""

    frozen: tuple[str, ...] = ()
    """Submodules of the model that get no gradient in this stage."""

    rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    """Learning rates and AdamW betas of submodules, by name, where they differ."""


class Objective:
    """The losses that a method minimises.

    Random draws, encoding and losses are separate steps, so that a batch can be encoded in parts
    (GradCache), and items with outputs that are not finite can be found by encoding them again.
    """

    def begin_stage(self, stage: Stage, strategy: Strategy) -> None:
        """Prepare for a stage that `strategy` trains, new or resumed."""

    def begin_step(self, step: int, steps: int) -> None:
        """Set the progress of the stage, for losses that change over time.

        Args:
            step: the next step of the stage, from 0.
            steps: number of steps of the stage.
        """

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Any:
        """Draw everything random for this rank's items, before they are encoded.

        Args:
            stage: current.
            batch: this rank's share of the global batch.
            draws: generator with the same state on every rank.
            ranks: rows of the global batch on each rank; None: the same number on every rank.
        """
        raise NotImplementedError

    def encode(self, model: Any, plan: Any, images: Tensor, rows: slice = slice(None)) -> Outputs:
        """Run the model on some rows of this rank's images (b, S, S, 3) uint8."""
        raise NotImplementedError

    def terms(self, stage: Stage, out: Any, batch: Batch, plan: Any) -> Terms:
        """Compute the stage's losses from the outputs for all of this rank's items.

        Sums stay local and counts are added over ranks, so that N ranks get the loss of one rank.
        The shares include those of `adde.training.terms.item_shares`.
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
        """Compute the losses of a batch that is encoded at once."""
        plan = self.plan(stage, batch, draws, ranks)
        return self.terms(stage, self.encode(model, plan, batch.images), batch, plan)

    def state(self) -> dict[str, Tensor]:
        """Return tensors to save besides the model, by names such as `queue/embeddings`.

        They are equal on every rank.
        """
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the tensors of `state`."""


@dataclass(frozen=True)
class Measured:
    """The result of an evaluation: the content of its file, and its tables as text."""

    content: dict[str, Any]
    text: str


Task = Callable[[Any, Checkpoint, Evaluator, str, int], Measured]
"""Evaluates a split of the evaluator's shards: model, its checkpoint, evaluator, split, and the
maximum number of queries (0: all)."""


class Method:
    """A way to train a model; subclasses define model, stages, losses and metrics."""

    title: str
    """Heading of the report."""

    Config: type[Config]
    """Its settings: a subclass of the engine's `Config`."""

    best_metrics: tuple[str, ...] = ()
    """Validation metrics that choose the best checkpoint, in this order; larger is better."""

    terminal_metrics: tuple[str, ...] = ()
    """Validation metrics to print, and the headline of a report without a final evaluation."""

    metrics_are_shares: bool = True
    """Whether `terminal_metrics` are shares, which the report shows in percent."""

    supervision: str = "its training data are not known"
    """The labels that the encoder was trained on, for tables that compare encoders."""

    panels: tuple[Panel, ...] = ()
    """Plots of its metrics and losses, in W&B and the report."""

    hidden_metrics: tuple[str, ...] = ()
    """Patterns of scalars in the log that no panel plots."""

    tables: tuple[str, ...] = ()
    """Names of the tables of an evaluation."""

    reads_pictures: bool = True
    """Whether training batches have pictures; if not, pictures stay empty and none is decoded."""

    tasks: Mapping[str, Task] = {}
    """Evaluations of a finished run by name, for `train/evaluate.py`; the first is the default."""

    def build(self, config: Any, schema: Schema, start: bool = True) -> nn.Module:
        """Build the model on the CPU; its attribute `preprocess` is the `Preprocess` of pictures.

        Args:
            config: of the run.
            schema: of the catalogue.
            start: load pretrained weights; False if weights of a checkpoint follow.
        """
        raise NotImplementedError

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Return the stages of a run, in order."""
        raise NotImplementedError

    def objective(self, config: Any, schema: Schema, device: torch.device) -> Objective:
        """Build the objective that the stages minimise."""
        raise NotImplementedError

    def before(self, stage: Stage, model: nn.Module, evaluator: Evaluator) -> bool:
        """Prepare the model for a stage that begins; on all ranks.

        Returns:
            Whether weights changed; they are then evaluated and saved.
        """
        return False

    def represent(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs for a batch of pictures that evaluation needs, a row per picture."""
        raise NotImplementedError

    def codes(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Return the codes of pictures (B, S, S, 3) uint8, for scores of disentanglement.

        Returns:
            `codes` (B, L) float32. For a Gaussian posterior these are the means, and `log_variance`
            (B, L) is there too.

        Raises:
            UserError: the method has no codes.
        """
        raise UserError(f"{self.title}: expected a method that gives codes, found one without")

    def blocks(self, model: Any) -> tuple[str, ...] | None:
        """Return the block of each of the L numbers of a code; None: each is its own block."""
        return None

    def evaluate(
        self, stage: Stage, model: Any, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Validate a model; on all ranks. Only rank 0 needs pictures, matrix and tables."""
        raise NotImplementedError

    def finish(self, model: Any, checkpoint: Checkpoint, evaluator: Evaluator) -> None:
        """Complete the best checkpoint at the end of a run; on all ranks."""

    def summary(self, metrics: dict[str, Any]) -> Summary:
        """Summarise the test split's evaluations for the report.

        Args:
            metrics: content of `metrics.json` if there is one, and of every other task's file under
                the task's name.
        """
        return Summary()


def find_method(name: str) -> Method:
    """Find a method by its name in a recipe: a package of `adde.methods`, or a dotted module.

    Raises:
        UserError: there is none.
    """
    module = name if "." in name else f"{adde.__name__}.methods.{name}.method"
    try:
        return importlib.import_module(module).METHOD
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the method exists, but a module that it imports does not
    except AttributeError:
        pass
    raise UserError(
        f"method: expected a method, or the dotted name of a module with METHOD, found {name!r}; "
        f"{did_you_mean(name, methods())}"
    )


def methods() -> list[str]:
    """List the methods of this package."""
    packages = importlib.import_module(f"{adde.__name__}.methods")
    return sorted(found.name for found in pkgutil.iter_modules(packages.__path__) if found.ispkg)
