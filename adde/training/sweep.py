"""The W&B sweep file: the space of a search, the metric, and the command of a trial."""

from pathlib import Path
from typing import Any, Literal

import pydantic

from adde.errors import UserError, untrusted
from adde.files import read_text
from adde.training.recipes import parse


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
        """Return the values of the setting, or the ends of its range."""
        if self.value is not None:
            return [self.value]
        kind = int if self.distribution == "int_uniform" else float
        return list(self.values) or [kind(self.min or 0), kind(self.max or 0)]


class Metric(_Strict):
    """A scalar of the log, and the direction to improve it in."""

    name: str
    goal: Literal["maximize", "minimize"]


class EarlyTerminate(_Strict):
    """Hyperband: worse trials end early, after at least `min_iter` evaluations."""

    type: Literal["hyperband"]
    min_iter: int = pydantic.Field(ge=1)
    eta: int = pydantic.Field(default=3, ge=2)


class Sweep(_Strict):
    """A sweep file, restricted to what W&B and Optuna have in common."""

    name: str
    program: str = "train/main.py"
    method: Literal["bayes", "random", "grid"]
    metric: Metric
    parameters: dict[str, Parameter]
    early_terminate: EarlyTerminate | None = None
    run_cap: int | None = None
    command: tuple[str, ...]

    def words(self, values: dict[str, Any]) -> list[str]:
        """Return the command of a trial, with its settings for ${args}, as W&B does."""
        found: list[str] = []
        for word in self.command:
            if word == "${args}":
                found += [f"--{name}={_argument(value)}" for name, value in values.items()]
            elif word == "${env}":
                found += ["/usr/bin/env"]
            else:
                found.append(word)
        return found


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file, and check its settings and values against the recipe's.

    Raises:
        UserError: names the key, what was expected, and what was found.
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
                parse([f"--{name}={_argument(value)}"])
            except SystemExit:  # the parser has printed the details
                raise UserError(
                    f"{path}: parameters.{name}: expected a setting of the recipe and a valid "
                    f"value, found {value!r}"
                ) from None
    return sweep


def _argument(value: Any) -> str:
    """Format a value for the command line."""
    return repr(value) if isinstance(value, float) else str(value)
