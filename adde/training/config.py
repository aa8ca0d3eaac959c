"""A run's complete configuration: what each setting means, where it is defined.

A recipe is a TOML file with these names; any setting can be overridden on the command line
(`--optimizer.weight-decay 0.1`). Unknown keys are refused.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adde.errors import UserError, did_you_mean, foreign
from adde.files import read_text, write_text
from adde.loading.augment import Augmentation
from adde.model.settings import ModelSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

CONFIG_NAME = "config.toml"

NOT_TRAINING = (
    *("run", "wandb", "profile", "alarms", "checkpoints", "evaluation"),
    *("limits", "shards", "workers", "on_fault", "max_faults", "timeout"),
)
"""Settings that may change between a run and its resumption: the weights do not depend on them
(the shards are held against the checkpoint by schema and content instead)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and how."""

    shards: str = "data/wardrobe"
    """Folder of shards with index.json, or its address: http(s)://, s3://, gs://. Passwords go in
    ~/.netrc or the environment: this configuration is written to the run's folder and tracker."""

    batch_size: int = 256
    """Items in the global batch, over all ranks and accumulation steps."""

    accumulation: int = 1
    """Forward passes per step; triplets are mined within each one's share of the batch."""

    cached: bool = False
    """With accumulation, mine triplets in the whole batch all the same: it is encoded twice, first
    for embeddings alone (GradCache). For batches beyond memory, at one more forward pass."""

    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process."""

    decode: Literal["cpu", "device"] = "cpu"
    """Where upright JPEGs in colour are decoded: by the workers, or by the device that trains
    (nvJPEG on a GPU), for machines with few cores per GPU. Everything else is the workers'."""

    window: int = 16
    """Shards whose edit groups are shuffled together."""

    last_batch: Literal["drop", "pad"] = "drop"
    """An epoch's last batch, if items do not fill it: left to the next epoch, or filled up with
    the epoch's first items again. The log counts either."""

    on_fault: Literal["raise", "skip"] = "raise"
    """What a sample that cannot be read does: end the run, or have another item of its batch stand
    in for it. Every skip is logged and written to faults.jsonl in the run's folder."""

    max_faults: float = 0.001
    """Skipped samples beyond this share of an epoch end the run."""

    timeout: float = 600.0
    """Seconds without a batch after which the run ends, naming what was being read; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a stage and its learning rate over time."""

    epochs: float = 10.0
    """Passes over the training split; 0 skips the stage."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, or of SGD with momentum 0.9."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: to zero; step: times `step_factor` every `step_epochs`; constant."""

    warmup: float = 0.05
    """Share of the stage's steps in which the rate grows linearly from zero."""

    step_epochs: float = 10.0
    """Epochs between two drops of the step schedule."""

    step_factor: float = 0.5
    """Factor of each drop of the step schedule."""


@dataclass(frozen=True, kw_only=True)
class EncoderStage:
    """Stage 1: encoder and classifiers (DESIGN 4)."""

    schedule: Schedule = Schedule()
    """Length and learning rate."""

    cls: float = 0.2
    """Weight of the cross-entropy, summed over attributes."""

    presence: float = 0.2
    """Weight of the binary cross-entropy of presence, summed over attributes."""

    local_triplet: float = 0.2
    """Weight of the semi-hard triplets within each attribute's subspace, summed."""

    global_triplet: float = 1.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels."""


@dataclass(frozen=True, kw_only=True)
class AddeStage:
    """Stage 3: encoder and memory together on manipulation triplets (DESIGN 4)."""

    schedule: Schedule = Schedule(epochs=5.0, learning_rate=3e-4)
    """Length and learning rate."""

    cls: float = 0.2
    """Weight of the cross-entropies of reference, positive, negative and edited query."""

    presence: float = 0.2
    """Weight of the binary cross-entropy of presence, summed over attributes."""

    local_triplet: float = 1.0
    """Weight of the semi-hard triplets within each attribute's subspace, summed."""

    global_triplet: float = 0.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels."""

    edited_triplet: float = 0.0
    """Weight of the semi-hard triplets of whole embeddings under joint labels among the items and
    the edited queries together, which then are anchors, positives and negatives too."""

    compositional: float = 1.0
    """Weight of the triplet of edited query, positive and negative."""

    consistency: float = 1.0
    """Weight of the L1 distances between embeddings and their prototypes."""

    memory: float = 0.4
    """Weight of the L1 norm of the memory's off-block entries."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What the gradients do."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""

    weight_decay: float = 0.01
    """On weight matrices and kernels; never on biases, norms and prototypes."""

    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""

    ema: float = 0.0
    """Decay per step of the averaged weights that are evaluated and exported; 0: none."""


@dataclass(frozen=True, kw_only=True)
class CrossBatch:
    """Items of past batches among the positives and negatives of both label triplet terms."""

    size: int = 0
    """Items remembered, of all ranks; 0: none. Each rank keeps 4 A D bytes of every one."""

    warmup: int = 1000
    """Steps before they are used: embeddings that still move fast mislead."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is kept to go on from."""

    every: int = 200
    """Steps between two checkpoints."""

    keep: int = 2
    """Newest checkpoints kept, beside the best."""

    upload: str | None = None
    """Address under which they are kept too, as many and the best: s3://bucket/runs/shop, gs://
    or another that fsspec writes to; --resume on a machine without them fetches the newest."""

    timeout: float = 1800.0
    """Seconds after which the run ends if a rank's part of a checkpoint is not on the disk."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Validation during training; the best checkpoint is chosen by its hit@30."""

    every_epochs: float = 1.0
    """Epochs between two evaluations; the end of a stage is always evaluated."""

    batch_size: int = 256
    """Pictures encoded at a time on each rank."""

    queries: int = 20_000
    """Most queries asked, evenly spaced over all of the validation split's; 0: all."""

    rows: int = 6
    """Query -> answers rows shown in the dashboard and the report."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """What is said as an alert: on the terminal, in the log, by W&B. 0 switches one off."""

    divergence: float = 3.0
    """A loss of more than this many times its running median, or one that is not finite."""

    stall: float = 0.5
    """Images per second under this share of their running median."""

    straggler: float = 0.25
    """A rank that the median rank is faster than by more than this share."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run bears before it ends; docs/scaling.md says how each end looks."""

    bad_steps: int = 10
    """Steps with NaN or infinity in losses or gradients that are skipped since the run was started
    or resumed; one more ends it. A skipped step changes no weight; its items are written to
    bad_steps.jsonl in the run's folder."""

    silence: float = 60.0
    """Seconds without a sign of life from a rank, whose process or machine was stopped, after which
    the others end and name it; 0: never."""

    stall: float = 1800.0
    """Seconds without progress on any rank after which the run ends and names the rank that the
    others wait for; 0: never, as a debugger wants it. More than an evaluation takes on the main
    rank, and than data.timeout."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    run: Path = Path("runs/adde")
    """Folder of the run: checkpoints, log, metrics, report."""

    seed: int = 0
    """Of weights, order, augmentation and drawn edits."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; losses and embeddings stay in float32. fp32: IEEE float32, as evaluation
    and bundles have it whatever is set here; tf32: factors of its products and convolutions are
    rounded to 10 bits, on GPUs from Ampere on, several times as fast."""

    batch_norm: Literal["auto", "sync", "local"] = "auto"
    """Batch norms' statistics in training: sync: of the micro-batches of all ranks, as if one rank
    had them; local: of each rank's own; auto: sync where a rank's has fewer than 32 items."""

    margin: float = 0.5
    """m of all triplet losses."""

    wandb: Literal["auto", "offline", "off"] = "auto"
    """auto: online where a login is found, else offline."""

    profile: bool = False
    """Records a few steps of each stage with torch.profiler: a trace and a page, in `run`/profile/,
    of where a step's time goes."""

    data: Data = field(default_factory=Data)
    model: ModelSettings = field(default_factory=ModelSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    encoder: EncoderStage = field(default_factory=EncoderStage)
    adde: AddeStage = field(default_factory=AddeStage)
    optimizer: Optimizer = field(default_factory=Optimizer)
    cross_batch: CrossBatch = field(default_factory=CrossBatch)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluation: Evaluation = field(default_factory=Evaluation)
    alarms: Alarms = field(default_factory=Alarms)
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> dict[str, Any]:
        """Every setting by name, nested; paths as strings."""
        import pydantic

        return pydantic.TypeAdapter(Config).dump_python(self, mode="json")


def parse(arguments: Sequence[str] | None = None) -> tuple[Config, bool]:
    """The configuration, from `--recipe FILE` and overrides; and whether `--resume` was given.

    Resuming without a recipe takes the configuration of the run that `--run` names.

    Raises:
        UserError: the recipe is missing, is not TOML, or has an unknown key or a wrong value.
    """
    import tyro  # here, so that the settings can be had where only torch is installed

    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--recipe", type=Path)
    before.add_argument("--resume", action="store_true")
    before.add_argument("--run", type=Path)
    known, rest = before.parse_known_args(arguments)
    recipe = known.recipe
    if recipe is None and known.resume and known.run is not None:
        recipe = known.run / CONFIG_NAME
    default = read_recipe(recipe) if recipe else Config()
    if known.run is not None:
        default = dataclasses.replace(default, run=known.run)
    try:
        config = tyro.cli(
            Config,
            default=default,
            args=rest,
            description="--recipe FILE starts from a recipe; --resume goes on from the run's last "
            "checkpoint.",
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return config, known.resume


def of_run(settings: dict[str, Any]) -> Config:
    """The configuration that a run wrote down, with what runs did before a setting was there."""
    import pydantic

    model = {"fit": "crop", "presence": False, **settings.get("model", {})}
    return pydantic.TypeAdapter(Config).validate_python({**settings, "model": model})


def write_config(config: Config, run: Path) -> None:
    """Writes the complete configuration as `run`/config.toml."""
    import tomli_w

    write_text(run / CONFIG_NAME, tomli_w.dumps(_without_none(config.to_json())))


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a setting that is None is left out, which reads back as None."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }


def first_difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The first setting on which two runs differ in what they train, as `key: a and b`."""
    for key, value in mine.items():
        if key in NOT_TRAINING:
            continue
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if difference := first_difference(value, other):
                return f"{key}.{difference}"
        elif value != other:
            return f"{key}: {value!r} and {other!r}"
    return None


def read_recipe(path: Path) -> Config:
    """A TOML recipe, checked; settings it leaves out have their defaults, in a run's own
    config.toml those of `of_run`.
    """
    import pydantic

    text = read_text(path)
    with foreign(path, "TOML"):
        content = tomllib.loads(text)
    _refuse_unknown(content, Config, str(path), "")
    try:
        if path.name == CONFIG_NAME:
            return of_run(content)
        return pydantic.TypeAdapter(Config).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}, found {first['input']!r}") from None


def _refuse_unknown(content: dict[str, Any], kind: Any, path: str, prefix: str) -> None:
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in fields:
            raise UserError(f"{path}: unknown key {prefix + key!r}; {did_you_mean(key, fields)}")
        if isinstance(value, dict) and dataclasses.is_dataclass(fields[key]):
            _refuse_unknown(value, fields[key], path, f"{prefix}{key}.")
