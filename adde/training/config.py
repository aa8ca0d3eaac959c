"""The settings that every run has, whatever its method; each is explained where it is defined.

A recipe is a TOML file with these names and those of its method (`recipes.py` reads it); any
setting can be overridden on the command line (`--optimizer.weight-decay 0.1`).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


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

    @property
    def batches_per_step(self) -> int:
        """Batches that a rank takes per step; with `cached` its whole share is one."""
        return 1 if self.cached else self.accumulation


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

    def steps(self, steps_per_epoch: int) -> int:
        """Steps of the stage."""
        return math.ceil(self.epochs * steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What the gradients do."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""

    weight_decay: float = 0.01
    """On weight matrices and kernels, but for those that the model spares; never on biases and
    norms."""

    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""

    ema: float = 0.0
    """Decay per step of the averaged weights that are evaluated and exported; 0: none."""


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
    """Validation during training, by which the best checkpoint is chosen."""

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
    """Throughput (images per second) that stays below this share of its running median for two
    minutes."""

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
    """One run; a method adds its own settings in a subclass."""

    run: Path = Path("runs/adde")
    """Folder of the run: checkpoints, log, metrics, report."""

    method: str = "adde"
    """What is trained: a room of adde.methods, or a module of your own by its dotted name."""

    seed: int = 0
    """Of weights, order, augmentation and drawn edits."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; losses and embeddings stay in float32. fp32: IEEE float32, as evaluation
    and bundles have it whatever is set here; tf32: factors of its products and convolutions are
    rounded to 10 bits, on GPUs from Ampere on, several times as fast."""

    batch_norm: Literal["auto", "sync", "local"] = "auto"
    """Batch norms' statistics in training: sync: of the micro-batches of all ranks, as if one rank
    had them; local: of each rank's own; auto: sync where a rank's has fewer than 32 items."""

    wandb: Literal["auto", "offline", "off"] = "auto"
    """auto: online where a login is found, else offline."""

    profile: bool = False
    """Records a few steps of each stage with torch.profiler: a trace and a page, in `run`/profile/,
    of where a step's time goes."""

    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluation: Evaluation = field(default_factory=Evaluation)
    alarms: Alarms = field(default_factory=Alarms)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that a run wrote down, completed: one that its version of this package did
        not have yet gets the value that reproduces its behaviour.
        """
        return settings

    def to_json(self) -> dict[str, Any]:
        """Every setting by name, nested; paths as strings."""
        import pydantic  # here, so that the settings can be had where only torch is installed

        return pydantic.TypeAdapter(type(self)).dump_python(self, mode="json")
