"""The settings of a run that do not depend on its method, each with its explanation.

A recipe is a TOML file with these names and those of its method (`recipes.py` reads it); any
setting can be overridden on the command line (`--optimizer.weight-decay 0.1`).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adde.errors import UserError

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training data, and how they are read."""

    shards: str = "data/wardrobe"
    """Folder of shards with index.json, or its address: http(s)://, s3://, gs://. Put passwords
    into ~/.netrc or the environment: this configuration is stored in the run's folder and W&B."""

    batch_size: int = 256
    """Items in the global batch, over all ranks and accumulation steps."""

    accumulation: int = 1
    """Forward passes per step; triplets are mined within the micro-batch of each."""

    cached: bool = False
    """With accumulation, still mine triplets in the whole batch (GradCache): a batch that does not
    fit into memory is encoded twice, first without gradients."""

    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process."""

    decode: Literal["cpu", "device"] = "cpu"
    """Where upright colour JPEGs are decoded: in the workers, or on the training device (nvJPEG on
    a GPU), for machines with few cores per GPU. Workers decode all other pictures."""

    window: int = 16
    """Shards whose edit groups are shuffled together."""

    balance: str = ""
    """Attribute whose values are shown equally often, for long tails; empty: as often as they are.
    Unknown labels keep their share. Edit groups stay whole, so where they mix values the shares are
    only nearer to equal. All labels are read at the start."""

    last_batch: Literal["drop", "pad"] = "drop"
    """Last batch of an epoch if its items do not fill it: dropped, or padded with the first items
    of the same epoch. The log counts dropped and repeated items."""

    on_fault: Literal["raise", "skip"] = "raise"
    """On a sample that cannot be read: end the run, or replace it by another item of its batch.
    Each skipped sample is printed and appended to faults.jsonl in the run's folder."""

    max_faults: float = 0.001
    """Share of an epoch; more skipped samples end the run."""

    timeout: float = 600.0
    """Seconds without a batch after which the run ends and names what was read; 0: never."""

    def require_uncached(self) -> None:
        """Raise UserError if `cached` is on, for methods without losses between embeddings."""
        if self.cached:
            raise UserError(
                "data.cached: expected false, found true: it serves losses between embeddings, of "
                "which this method has none; use data.accumulation alone"
            )

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
    """Peak learning rate of the optimiser."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: to zero; step: times `step_factor` every `step_epochs`; constant."""

    warmup: float = 0.05
    """Share of the stage's steps during which the rate grows linearly from zero."""

    step_epochs: float = 10.0
    """Epochs between two drops of the step schedule."""

    step_factor: float = 0.5
    """Factor of each drop of the step schedule."""

    def steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the stage."""
        return math.ceil(self.epochs * steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser, and averaged weights."""

    name: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    """AdamW, SGD with momentum 0.9, or RMSprop with decay 0.8."""

    weight_decay: float = 0.01
    """Decay of weight matrices and kernels, except those that the model exempts; biases and norms
    never decay."""

    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""

    rates: dict[str, float] = field(default_factory=dict[str, float])
    """Learning rates of parts of the model relative to the schedule's, by name, such as
    {backbone = 0.1}; the longest name that matches a parameter counts."""

    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of a timm backbone to the one below it, on top
    of `rates`; 1: all layers learn alike, 0.65 to 0.9: usual for pretrained ViTs."""

    frozen: dict[str, float] = field(default_factory=dict[str, float])
    """Epochs of the run, from its start, in which parts of the model do not learn, by name, such as
    {backbone = 1}; with more epochs than the run has, a part never learns. Running statistics of
    batch norms are still updated."""

    ema: float = 0.0
    """Decay per step of the averaged weights that are evaluated and exported; 0: none."""

    ema_warmup: bool = True
    """Let the decay grow as (1 + t) / (10 + t) with the steps t of the stage until it is `ema`:
    early weights are then forgotten quickly, and short runs gain too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for kind, values in (("rates", self.rates), ("frozen", self.frozen)):
            for name, value in values.items():
                if not 0 <= value < math.inf:
                    raise ValueError(f"{kind}.{name}: expected >= 0, found {value:g}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"layer_decay: expected above 0 and up to 1, found {self.layer_decay:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints, from which a run resumes."""

    every: int = 200
    """Steps between two checkpoints."""

    keep: int = 2
    """Number of newest checkpoints to keep, besides the best."""

    upload: str | None = None
    """Address to mirror the kept checkpoints to: s3://bucket/runs/shop, gs:// or any other that
    fsspec can write to. --resume on another machine downloads the newest."""

    timeout: float = 1800.0
    """Seconds to wait for all ranks' parts of a checkpoint before the run ends."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Validation during training, which chooses the best checkpoint."""

    every_epochs: float = 1.0
    """Epochs between two evaluations; a stage's end is always evaluated."""

    batch_size: int = 256
    """Pictures encoded at a time on each rank."""

    queries: int = 20_000
    """Maximum number of queries, evenly spaced over those of the validation split; 0: all."""

    rows: int = 6
    """Rows of a query and its answers in the dashboard and the report."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """Thresholds of alerts (terminal, log, W&B); 0 switches an alert off."""

    divergence: float = 3.0
    """Loss above this multiple of its running median, or not finite."""

    stall: float = 0.5
    """Throughput (images per second) that stays below this share of its running median for two
    minutes."""

    straggler: float = 0.25
    """Share by which the median rank is faster than the slowest one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds at which a run aborts; docs/scaling_failures.md shows the messages."""

    bad_steps: int = 10
    """Maximum number of steps skipped for NaN or infinity in losses or gradients since the run was
    started or resumed. A skipped step changes no weights; its items are appended to
    bad_steps.jsonl in the run's folder."""

    silence: float = 60.0
    """Seconds without a heartbeat from a rank after which the others end and name it: its process
    or machine has stopped; 0: never."""

    stall: float = 1800.0
    """Seconds without progress on any rank after which the run ends and names the rank that the
    others wait for; 0: never, for debugging. It must exceed data.timeout, and the time that rank 0
    needs for metrics."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run; a method adds its settings in a subclass."""

    run: Path = Path("runs/adde")
    """Folder for checkpoints, log, metrics and report."""

    method: str = "adde"
    """The method: a package of adde.methods, or the dotted name of a module with METHOD."""

    seed: int = 0
    """Seed of initial weights, sample order, augmentation and random edits."""

    precision: Precision = "fp32"
    """Precision of the forward pass; losses and embeddings stay float32. fp32: IEEE float32, which
    evaluation and bundles always use; tf32: products and convolutions round their factors to 10
    bits, several times as fast on GPUs since Ampere; auto: bf16 on GPUs that have it, else fp32.
    The run's config.toml says which one auto was."""

    compile: bool = False
    """Compile the forward pass with torch.compile: faster steps on GPUs, after minutes at the start
    of each stage."""

    batch_norm: Literal["auto", "sync", "local"] = "auto"
    """Batch norm statistics in training. sync: over the micro-batches of all ranks; local: per
    rank; auto: sync if a rank's micro-batch has fewer than 32 items."""

    wandb: Literal["auto", "offline", "off"] = "auto"
    """auto: online if there is a login, else offline."""

    profile: bool = False
    """Profile a few steps of each stage with torch.profiler; writes a trace and a page to
    `run`/profile/."""

    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluation: Evaluation = field(default_factory=Evaluation)
    alarms: Alarms = field(default_factory=Alarms)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Complete the settings of an older run: add those that its version of this package did not
        have, with values that reproduce its behaviour: averages had no warm-up.
        """
        optimizer = {"ema_warmup": False, **settings.get("optimizer", {})}
        return {**settings, "optimizer": optimizer}

    def to_json(self) -> dict[str, Any]:
        """Return all settings as nested dictionaries, with paths as strings."""
        import pydantic  # imported here, so that importing the settings needs torch only

        return pydantic.TypeAdapter(type(self)).dump_python(self, mode="json")
