"""A search over settings: W&B's sweep file, and the same search offline with Optuna.

One file holds the space, the figure to improve, and the command of a trial; `wandb sweep` reads it,
and so does `train/search.py`. Offline, trials lie in one folder:

    search.log        Optuna's journal, from which a search that was cut off goes on
    trial-0000/       run folder of each trial, with its output.txt
    history.png       figures of the completed trials and the best so far
    settings.png      figures of the completed trials by each setting
    best.json         settings and figure of the best trial
"""

import contextlib
import math
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from adde.errors import UserError, untrusted
from adde.files import read_text, write_json
from adde.training.recipes import parse
from adde.training.watching.tracking import LOG_NAME, read_log

POLL = 0.2  # s between two looks at a trial's log
PATIENCE = 60.0  # s that a trial has to save before it is killed
FAILURES = 3  # in a row, after which a search ends


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Parameter(_Strict):
    """One setting: a value, a list of values, or a range with its distribution."""

    value: Any = None
    values: tuple[Any, ...] = ()
    min: float | None = None
    max: float | None = None
    distribution: Literal["uniform", "log_uniform_values", "int_uniform"] | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_three(self) -> "Parameter":
        low, high = self.min, self.max
        ranged = low is not None and high is not None and self.distribution is not None
        kinds = (self.value is not None) + bool(self.values) + ranged
        if kinds != 1 or (not ranged and (low, high) != (None, None)):
            raise ValueError("expected one of value, values, or min, max and distribution")
        if low is not None and high is not None and low >= high:
            raise ValueError("expected min < max")
        return self

    @property
    def samples(self) -> list[Any]:
        """Values that a setting may take, of a range its ends."""
        if self.value is not None:
            return [self.value]
        kind = int if self.distribution == "int_uniform" else float
        return list(self.values) or [kind(self.min or 0), kind(self.max or 0)]


class Metric(_Strict):
    """A figure of the log and which way it should go."""

    name: str
    goal: Literal["maximize", "minimize"]


class EarlyTerminate(_Strict):
    """Hyperband: the worse trials end early, from `min_iter` evaluations on."""

    type: Literal["hyperband"]
    min_iter: int = pydantic.Field(ge=1)
    eta: int = pydantic.Field(default=3, ge=2)


class Sweep(_Strict):
    """A sweep file, as far as both engines understand it."""

    name: str
    program: str = "train/main.py"
    method: Literal["bayes", "random", "grid"]
    metric: Metric
    parameters: dict[str, Parameter]
    early_terminate: EarlyTerminate | None = None
    run_cap: int | None = None
    command: tuple[str, ...]

    def words(self, values: dict[str, Any]) -> list[str]:
        """The command of one trial, with its settings in place of ${args} as W&B puts them."""
        found: list[str] = []
        for word in self.command:
            if word == "${args}":
                found += [f"--{name}={_typed(value)}" for name, value in values.items()]
            elif word == "${env}":
                found += ["/usr/bin/env"]
            else:
                found.append(word)
        return found


def read_sweep(path: Path) -> Sweep:
    """A sweep file whose every setting is one of the recipe's, and every value one it can have.

    Raises:
        UserError: names what is wrong.
    """
    import yaml  # an extra

    text = read_text(path)
    with untrusted(path, "YAML"):
        content = yaml.safe_load(text)
    try:
        sweep = Sweep.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}, found {first['input']!r}") from None
    if "${args}" not in sweep.command:
        raise UserError(f"{path}: command: expected ${{args}} among its words, found none")
    for name, parameter in sweep.parameters.items():
        for value in parameter.samples:
            try:
                parse([f"--{name}={_typed(value)}"])
            except SystemExit:  # what the command line says of it is on the terminal
                raise UserError(
                    f"{path}: parameters.{name}: expected a setting of the recipe and a value that "
                    f"it can have, found {value!r}"
                ) from None
    return sweep


def _typed(value: Any) -> str:
    """A value as it is typed."""
    return repr(value) if isinstance(value, float) else str(value)


class TrialFailedError(Exception):
    """A trial's run that ended with an error, or without its figure."""


@dataclass
class Search:
    """A search of one folder."""

    sweep: Sweep
    folder: Path
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError("Optuna cannot be imported: pip install 'adde[train,search]'") from None
        self._optuna: Any = optuna
        # A trial that fails is told in a line of ours; a warning would be its traceback.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder.mkdir(parents=True, exist_ok=True)
        storages: Any = optuna.storages
        self.study: Any = optuna.create_study(
            study_name=self.sweep.name,
            storage=storages.JournalStorage(
                storages.journal.JournalFileBackend(str(self.folder / "search.log"))
            ),
            pruner=self._pruner(),
            direction=self.sweep.metric.goal,
            load_if_exists=True,
        )
        # A search that is gone on with must not draw the same again.
        self.study.sampler = self._sampler(self.seed + len(self.study.trials))

    def run(self, trials: int) -> None:
        """Trials until `trials` have ended well or were pruned, those of earlier calls included.

        A grid has no more than its places, each tried once. A trial that fails, as by a rate at
        which training diverges, is told and left behind.

        Raises:
            UserError: three trials in a row failed, or one before any has ended; the message
                names its output.
        """
        grid = self.sweep.method == "grid"
        if grid:
            trials = min(trials, math.prod(len(p.samples) for p in self.sweep.parameters.values()))
        self._take_up()
        in_a_row = 0
        while len(self.ended()) + grid * len(self.failed()) < trials:
            before = len(self.failed())
            self.study.optimize(self._trial, n_trials=1, catch=(TrialFailedError,))
            in_a_row = in_a_row + 1 if len(self.failed()) > before else 0
            if in_a_row and (in_a_row == FAILURES or not self.ended()):
                raise UserError(self.failed()[-1].user_attrs["failed"])
            self._write_results()
            print(f"{len(self.ended())} of {trials} trials have ended")

    def ended(self) -> list[Any]:
        """Trials that count: complete, or pruned."""
        states = self._optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def failed(self) -> list[Any]:
        """Trials whose runs failed, other than those that were cut off."""
        states = self._optuna.trial.TrialState
        found = self.study.get_trials(deepcopy=False, states=(states.FAIL,))
        return [trial for trial in found if "failed" in trial.user_attrs]

    def _take_up(self) -> None:
        """What a search that was cut off left running is begun again, from its checkpoint."""
        states = self._optuna.trial.TrialState
        for left in self.study.get_trials(states=(states.RUNNING,)):
            folder = left.user_attrs.get("folder", _name(left.number))
            self.study.tell(left.number, state=states.FAIL)
            self.study.enqueue_trial(left.params, user_attrs={"folder": folder})

    def _trial(self, trial: Any) -> float:
        values = {name: _suggest(trial, name, p) for name, p in self.sweep.parameters.items()}
        name = trial.user_attrs.get("folder", _name(trial.number))
        trial.set_user_attr("folder", name)
        run = self.folder / name
        told = ", ".join(f"{k} {_shown(v)}" for k, v in values.items())
        print(f"{name}: {told}")
        last: float | None = None
        with _started(self.sweep.words(values), run) as process:
            for number, value in enumerate(_figures(process, run, self.sweep.metric.name), 1):
                last = value
                trial.report(value, number)
                if trial.should_prune():
                    print(f"{name}: pruned at evaluation {number}, {value:.4f}")
                    raise self._optuna.TrialPruned
        if process.returncode or last is None or math.isnan(last):
            message = (
                f"{name}: expected a run that logs {self.sweep.metric.name}, found exit status "
                f"{process.returncode} and {last} at last; see {run / 'output.txt'}"
            )
            print(message)
            trial.set_user_attr("failed", message)
            raise TrialFailedError(message)
        print(f"{name}: {self.sweep.metric.name} {last:.4f}")
        return last

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self.sweep.method == "grid":
            grid = {name: p.samples for name, p in self.sweep.parameters.items()}
            return samplers.GridSampler(grid, seed=self.seed)
        bayes = self.sweep.method == "bayes"
        return samplers.TPESampler(seed=seed) if bayes else samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        early, pruners = self.sweep.early_terminate, self._optuna.pruners
        if early is None:
            return pruners.NopPruner()
        return pruners.SuccessiveHalvingPruner(
            min_resource=early.min_iter, reduction_factor=early.eta
        )

    def _write_results(self) -> None:
        states = self._optuna.trial.TrialState
        complete = [t for t in self.ended() if t.state == states.COMPLETE]
        if complete:
            best = self.study.best_trial
            content = {
                "trial": best.user_attrs["folder"],
                self.sweep.metric.name: best.value,
                "settings": best.params,
            }
            write_json(self.folder / "best.json", content)
            _plot(self.study, self.sweep.metric.name, self.folder)


def _name(number: int) -> str:
    return f"trial-{number:04d}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _suggest(trial: Any, name: str, parameter: Parameter) -> Any:
    """A value of one setting, drawn by Optuna."""
    if parameter.distribution is None:
        return trial.suggest_categorical(name, parameter.samples)
    low, high = parameter.samples
    if parameter.distribution == "int_uniform":
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=parameter.distribution != "uniform")


@contextlib.contextmanager
def _started(words: list[str], run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The trial's processes; ended when the body is, with time to save."""
    run.mkdir(parents=True, exist_ok=True)
    more = [f"--run={run}", "--resume", "--wandb=off"]
    with (run / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [*words, *more],
            env={**os.environ, "WANDB_RUN_ID": run.name},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(seconds)


def _figures(process: subprocess.Popen[bytes], run: Path, name: str) -> Iterator[float]:
    """Every value of a figure, as a trial logs it, until it ends."""
    seen = 0
    while True:
        ended = process.poll() is not None  # asked first: a last line is not missed
        values = [line[name] for line in read_log(run / LOG_NAME) if line.get(name) is not None]
        yield from values[seen:]
        seen = len(values)
        if ended:
            return
        time.sleep(POLL)


def _plot(study: Any, metric: str, folder: Path) -> None:
    """Draw history.png and settings.png."""
    import matplotlib as mpl  # slow to load

    mpl.use("Agg")
    import optuna.visualization.matplotlib as plots
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's plots are experimental; one trial has no range
        drawn = {
            "history.png": plots.plot_optimization_history(study, target_name=metric),
            "settings.png": plots.plot_slice(study, target_name=metric),
        }
    for name, axes in drawn.items():
        figure = np.ravel(axes)[0].figure
        figure.savefig(folder / name, dpi=120, bbox_inches="tight")
        pyplot.close(figure)
