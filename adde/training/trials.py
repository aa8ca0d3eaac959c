"""Search settings with Optuna, offline, in the space of a W&B sweep file.

The file defines the space, the metric, and the command of a trial, for `wandb sweep` and for
`train/search.py`. The latter writes to a folder:

    search.log        Optuna's journal, from which an interrupted search resumes
    trial-0000/       run folder of each trial, with its output.txt
    history.png       metric of the completed trials, and the best so far
    settings.png      metric of the completed trials by each setting
    best.json         settings and metric of the best trial
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
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import write_json
from adde.training.sweep import Parameter, Sweep
from adde.training.watching.tracking import LOG_NAME, read_log

POLL_SECONDS = 0.2  # between two reads of a trial's log
SAVE_SECONDS = 60.0  # for a trial to save before it is killed
MAX_FAILURES = 3  # in a row before the search ends


class TrialFailedError(Exception):
    """A trial's run ended with an error, or without the metric."""


@dataclass
class Search:
    """A search and its folder."""

    sweep: Sweep
    folder: Path
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError("Optuna cannot be imported: pip install 'adde[train,search]'") from None
        self._optuna: Any = optuna
        # Failed trials are reported below; Optuna's warning would be a traceback.
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
        # A resumed search must not draw the same values again.
        self.study.sampler = self._sampler(self.seed + len(self.study.trials))

    def run(self, trials: int) -> None:
        """Run trials until `trials` are completed or pruned, including those of earlier calls.

        A grid has at most one trial per point. A failed trial (such as one whose learning rate
        diverges) is reported and skipped.

        Raises:
            UserError: the first trial failed, or three in a row; names its output.
        """
        grid = self.sweep.method == "grid"
        if grid:
            trials = min(trials, math.prod(len(p.samples) for p in self.sweep.parameters.values()))
        self._requeue_interrupted()
        in_a_row = 0
        while len(self.ended()) + grid * len(self.failed()) < trials:
            before = len(self.failed())
            self.study.optimize(self._trial, n_trials=1, catch=(TrialFailedError,))
            in_a_row = in_a_row + 1 if len(self.failed()) > before else 0
            if in_a_row and (in_a_row == MAX_FAILURES or not self.ended()):
                raise UserError(self.failed()[-1].user_attrs["failed"])
            self._write_results()
            print(f"{len(self.ended())} of {trials} trials done")

    def ended(self) -> list[Any]:
        """Return the trials that are completed or pruned."""
        states = self._optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def failed(self) -> list[Any]:
        """Return the trials whose runs failed, without interrupted ones."""
        states = self._optuna.trial.TrialState
        found = self.study.get_trials(deepcopy=False, states=(states.FAIL,))
        return [trial for trial in found if "failed" in trial.user_attrs]

    def _requeue_interrupted(self) -> None:
        """Queue trials that an interrupted search left running; they resume from checkpoints."""
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
        print(f"{name}: " + ", ".join(f"{k} {_shown(v)}" for k, v in values.items()))
        last: float | None = None
        with _running(self.sweep.words(values), run) as process:
            for number, value in enumerate(_follow(process, run, self.sweep.metric.name), 1):
                last = value
                trial.report(value, number)
                if trial.should_prune():
                    print(f"{name}: pruned at evaluation {number}, {value:.4f}")
                    raise self._optuna.TrialPruned
        if process.returncode or last is None or math.isnan(last):
            message = (
                f"{name}: expected a run that logs {self.sweep.metric.name}, found exit status "
                f"{process.returncode} and a last value of {last}; see {run / 'output.txt'}"
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
    """Let Optuna draw a value of a setting."""
    if parameter.distribution is None:
        return trial.suggest_categorical(name, parameter.samples)
    low, high = parameter.samples
    if parameter.distribution == "int_uniform":
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=parameter.distribution != "uniform")


@contextlib.contextmanager
def _running(words: list[str], run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a trial's processes; at the end of the body, stop them with time to save."""
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
        for number, seconds in ((signal.SIGTERM, SAVE_SECONDS), (signal.SIGKILL, None)):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(seconds)


def _follow(process: subprocess.Popen[bytes], run: Path, name: str) -> Iterator[float]:
    """Yield the values of a metric as the trial logs them, until it ends."""
    seen = 0
    while True:
        ended = process.poll() is not None  # before reading, or the last line may be missed
        values = [line[name] for line in read_log(run / LOG_NAME) if line.get(name) is not None]
        yield from values[seen:]
        seen = len(values)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _plot(study: Any, metric: str, folder: Path) -> None:
    """Draw history.png and settings.png."""
    import matplotlib as mpl  # slow to import

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
