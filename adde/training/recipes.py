"""Recipes: read a run's configuration from a TOML file and the command line."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adde.errors import UserError, did_you_mean, untrusted
from adde.files import read_text, write_text
from adde.training.config import Config
from adde.training.method import Method, find_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

CONFIG_NAME = "config.toml"

NOT_TRAINING = (
    *("run", "wandb", "profile", "alarms", "checkpoints", "evaluation"),
    *("limits", "shards", "workers", "on_fault", "max_faults", "timeout"),
)
"""Settings that may change when a run resumes, because the weights do not depend on them; shards
are compared with the checkpoint by schema and content."""


def parse(arguments: Sequence[str] | None = None) -> tuple[Method, Config, bool]:
    """Parse `--recipe FILE`, overrides and `--resume`; without a recipe, `--resume` takes the
    configuration of `--run`.

    Returns:
        The method, its configuration, and whether `--resume` was given.

    Raises:
        UserError: the recipe is missing, is not TOML, or has an unknown key or a wrong value.
    """
    import tyro  # imported here, so that importing the settings needs torch only

    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--recipe", type=Path)
    before.add_argument("--resume", action="store_true")
    before.add_argument("--run", type=Path)
    before.add_argument("--method")
    known, rest = before.parse_known_args(arguments)
    recipe = known.recipe
    if recipe is None and known.resume and known.run is not None:
        recipe = known.run / CONFIG_NAME
    found = read_settings(recipe) if recipe else {}
    if known.method is not None:
        found["method"] = known.method
    method = method_of(found)
    default = validate(found, method, recipe)
    if known.run is not None:
        default = dataclasses.replace(default, run=known.run)
    try:
        config = tyro.cli(
            method.Config,
            default=default,
            args=rest,
            description="--recipe FILE: start from a recipe. --resume: continue from the last "
            "checkpoint of the run.",
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return method, config, known.resume


def config_of_run(method: Method, settings: dict[str, Any]) -> Config:
    """Validate the settings that a run has stored, from JSON or TOML."""
    import pydantic

    completed = method.Config.upgrade(settings)
    return pydantic.TypeAdapter(method.Config).validate_python(completed)


def write_config(config: Config, run: Path) -> None:
    """Write the complete configuration to `run`/config.toml."""
    import tomli_w

    write_text(run / CONFIG_NAME, tomli_w.dumps(_without_none(config.to_json())))


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings that are None, because TOML has no null; they read back as None."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }


def first_difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Return the first setting that changes the weights and differs, as `key: a and b`."""
    for key in {**mine, **theirs}:
        if key in NOT_TRAINING:
            continue
        value, other = mine.get(key), theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if difference := first_difference(value, other):
                return f"{key}.{difference}"
        elif value != other:
            return f"{key}: {value!r} and {other!r}"
    return None


def read_recipe(path: Path) -> Config:
    """Read and validate a TOML recipe; missing settings get their defaults, or those of
    `Config.upgrade` if the file is a run's config.toml.

    Raises:
        UserError: see `parse`.
    """
    found = read_settings(path)
    return validate(found, method_of(found), path)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a recipe without validation. Raises UserError if it is not TOML."""
    text = read_text(path)
    with untrusted(path, "TOML"):
        return tomllib.loads(text)


def method_of(settings: dict[str, Any]) -> Method:
    """Find the method that a recipe names, or the default one."""
    return find_method(str(settings.get("method", Config.method)))


def validate(content: dict[str, Any], method: Method, path: Path | None) -> Config:
    """Validate the settings that a file holds; None: there is no file, and they are complete.

    Raises:
        UserError: a key is unknown or a value is wrong; names the file and the key.
    """
    if path is None:
        return method.Config(**content)
    import pydantic

    _reject_unknown(content, method.Config, str(path), "")
    try:
        if path.name == CONFIG_NAME:
            return config_of_run(method, content)
        return pydantic.TypeAdapter(method.Config).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}, found {first['input']!r}") from None


def _reject_unknown(content: dict[str, Any], kind: Any, path: str, prefix: str) -> None:
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in fields:
            raise UserError(f"{path}: unknown key {prefix + key!r}; {did_you_mean(key, fields)}")
        if isinstance(value, dict) and dataclasses.is_dataclass(fields[key]):
            _reject_unknown(value, fields[key], path, f"{prefix}{key}.")
