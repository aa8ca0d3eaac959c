"""A study's TOML file: its sets, methods and strengths, and the units of work that follow."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pydantic

from adde.errors import UserError, did_you_mean
from adde.methods.vae.config import LOSSES, VAEConfig
from adde.methods.vae.method import METHOD
from adde.training.recipes import read_settings, validate

OWN_KEYS = ("run", "method", "loss", "strength", "seed")
"""Settings of a model that the study decides."""

UNUSED: Mapping[str, Any] = {
    "precision": ("fp32", "tf32"),
    "compile": (False,),
    "data.accumulation": (1,),
    "data.balance": ("",),
    "optimizer.clip_norm": (0.0,),
    "optimizer.ema": (0.0,),
    "optimizer.frozen": ({},),
}
"""Settings for which an ensemble knows these values alone."""


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Set(_Strict):
    """Shards that models are trained and scored on."""

    name: str
    shards: str
    """Folder of shards with index.json, or its address."""
    settings: dict[str, Any] = {}
    """Of the models of this set, such as `channels`."""


class StudyMethod(_Strict):
    """A loss of the VAE family, and the values of its `strength`."""

    name: str
    strengths: tuple[float, ...] = pydantic.Field(min_length=1)
    settings: dict[str, Any] = {}
    """Of the models of this method; see `VAEConfig`."""


class Supervised(_Strict):
    """Finished runs of a method that is taught labels, to compare with."""

    name: str
    set: str
    """Name of the set whose shards the runs were scored on."""
    runs: tuple[str, ...] = pydantic.Field(min_length=1)
    """Their folders, with the scores of `train/evaluate.py --disentanglement`."""


class Study(_Strict):
    """A study; all combinations of its sets, methods, strengths and seeds."""

    name: str
    seeds: int = pydantic.Field(ge=1)
    """Models of each set, method and strength: seeds 0 to `seeds` - 1."""
    seeds_per_unit: int = pydantic.Field(default=25, ge=1)
    """Seeds that are one unit of work."""
    steps: int = pydantic.Field(ge=1)
    """Training steps of each model."""
    checkpoint_steps: int = pydantic.Field(default=20_000, ge=1)
    """Steps between two checkpoints of a unit."""
    ensemble: int | None = pydantic.Field(default=None, ge=1)
    """Models trained as one; None: the fastest of 1, 8 and 25, by timing."""
    split: str = "test"
    """Split whose codes are scored."""
    downstream: bool = False
    """Score downstream tasks too, which takes longer than all other scores."""
    settings: dict[str, Any] = {}
    """Of all models: those of a recipe with method = "vae"."""
    sets: tuple[Set, ...] = pydantic.Field(min_length=1)
    methods: tuple[StudyMethod, ...] = pydantic.Field(min_length=1)
    supervised: tuple[Supervised, ...] = ()

    @cached_property
    def units(self) -> tuple["Unit", ...]:
        """All units, in the order of the file."""
        found: list[Unit] = []
        for one, method in product(self.sets, self.methods):
            for strength in method.strengths:
                config = config_of(self, one, method, strength)
                for start in range(0, self.seeds, self.seeds_per_unit):
                    seeds = range(start, min(self.seeds, start + self.seeds_per_unit))
                    unit = Unit(self.name, one.name, config, tuple(seeds), self.steps, self.split)
                    found.append(unit)
        return tuple(found)


@dataclass(frozen=True)
class Unit:
    """Models of one set, method and strength that are trained and stored together."""

    study: str
    set: str
    config: VAEConfig
    """Its seed and run do not count."""
    seeds: tuple[int, ...]
    steps: int
    split: str

    @property
    def label(self) -> str:
        """For people."""
        first, last = self.seeds[0], self.seeds[-1]
        return f"{self.set}, {self.config.loss} {self.config.strength:g}, seeds {first} to {last}"

    @property
    def key(self) -> str:
        """Names its files: a hash of everything that its results depend on, but for pictures."""
        content = {**vars(self), "config": self.config.to_json(), "seeds": list(self.seeds)}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """Read a study and check every model's settings.

    Raises:
        UserError: names the key, what was expected, and what was found.
    """
    try:
        study = Study.model_validate(read_settings(path))
    except pydantic.ValidationError as error:
        # A key that is misspelt is missing too.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: unknown key {key!r}; {_valid(first['loc'])}") from None
        raise UserError(f"{path}: {key}: {first['msg']}, found {first['input']!r}") from None
    for number, method in enumerate(study.methods):
        if method.name not in LOSSES:
            raise UserError(
                f"{path}: methods.{number}.name: expected a loss of the VAE family, found "
                f"{method.name!r}; {did_you_mean(method.name, LOSSES, 2)}"
            )
    for kind, names in (
        ("sets", [one.name for one in study.sets]),
        ("methods", [one.name for one in study.methods]),
    ):
        if len(set(names)) < len(names):
            raise UserError(f"{path}: {kind}: expected different names, found {', '.join(names)}")
    for one in study.supervised:
        if one.set not in (sets := [found.name for found in study.sets]):
            raise UserError(
                f"{path}: supervised: expected a set of the study, found {one.set!r}; "
                f"{did_you_mean(one.set, sets)}"
            )
    try:
        _ = study.units  # checks every model's settings
    except (UserError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: {error}") from None
    return study


def _valid(place: tuple[int | str, ...]) -> str:
    models: dict[str, type[_Strict]] = {
        "sets": Set,
        "methods": StudyMethod,
        "supervised": Supervised,
    }
    first, *rest = place
    found = models.get(str(first), Study) if rest else Study
    return did_you_mean(str((first, *rest)[-1]), found.model_fields)


def config_of(study: Study, one: Set, method: StudyMethod, strength: float) -> VAEConfig:
    """The configuration of a set's models of a method and strength.

    Raises:
        UserError: a setting is unknown or wrong, is the study's to decide, or an ensemble cannot
            train with it.
    """
    merged: dict[str, Any] = {}
    for settings in (study.settings, one.settings, method.settings):
        merged = _merged(merged, settings)
    for key in OWN_KEYS:
        if key in merged:
            raise UserError(
                f"settings.{key}: expected it in the study alone, found {merged[key]!r}"
            )
    place = {"data": {**merged.get("data", {}), "shards": one.shards}}
    own = {"method": "vae", "loss": method.name, "strength": strength}
    where = Path(f"settings of {method.name} on {one.name}")
    config = validate({**merged, **place, **own}, METHOD, where)
    assert isinstance(config, VAEConfig)
    for key, values in UNUSED.items():
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        if found not in values:
            raise UserError(
                f"settings.{key}: expected {' or '.join(map(repr, values))}, as models of a study "
                f"are trained as one, found {found!r}"
            )
    return config


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both tables, in which the second counts more."""
    found = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found
