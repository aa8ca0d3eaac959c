"""DNA-GAN as a method: one stage, two players in one backward pass."""

import torch
from torch import Tensor, nn

from adde.distributed import broadcast_from_main, rank
from adde.errors import UserError
from adde.methods.dna_gan.config import DNAGANConfig
from adde.methods.dna_gan.evaluation import figures, picture_rows
from adde.methods.dna_gan.model import DNAGAN
from adde.methods.dna_gan.objective import DNAGANObjective
from adde.schema import UNKNOWN, Schema
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.training.config import Evaluation
from adde.training.evaluation import Evaluator
from adde.training.method import Method, Stage
from adde.training.strategies.choice import is_launched
from adde.training.watching.displays import Evaluated, Pictures
from adde.training.watching.panels import Panel

SWAPPED = (
    "Items of the validation split: reconstructed, and decoded with the piece of one attribute "
    "from items of other values."
)


class DNAGANMethod(Method):
    """DNA-GAN (Xiao, Hong, Ma 2018): attributes are swapped by exchanging pieces of codes."""

    title = "DNA-GAN"
    Config = DNAGANConfig
    best_metrics = ("exact", "psnr")
    terminal_metrics = ("exact", "wanted", "kept", "accuracy", "psnr")
    metrics_are_shares = False
    supervision = "taught by the labels that are scored here"
    panels = (
        Panel("Validation", "Swaps, as its own classes see them", r"val/(wanted|kept|exact)"),
        Panel("Validation", "Wanted value after a swap", r"val/wanted/.+"),
        Panel("Validation", "Unchanged in swaps of others", r"val/kept/.+"),
        Panel("Validation", "Accuracy of its classes, mean", r"val/accuracy"),
        Panel("Validation", "Accuracy of its classes", r"val/accuracy/.+"),
        Panel("Validation", "Peak signal-to-noise ratio, dB", r"val/psnr"),
        Panel("Losses", "Absolute error of a pixel", r"dna_gan/reconstruction"),
        Panel("Losses", "Verdicts", r"dna_gan/(adversarial|discriminator)"),
        Panel("Losses", "Cross-entropy", r"dna_gan/(classes|swapped_classes)", wide_range=True),
        Panel("Attributes", "Real pictures: cross-entropy", r"dna_gan/classes/.+", wide_range=True),
        Panel(
            "Attributes",
            "Swapped pictures: cross-entropy",
            r"dna_gan/swapped_classes/.+",
            wide_range=True,
        ),
        Panel("Attributes", "Training accuracy, mean", r"dna_gan/accuracy"),
        Panel("Attributes", "Training accuracy", r"dna_gan/accuracy/.+"),
        Panel("Attributes", "Items with a donor", r"dna_gan/exchanged"),
    )

    def build(self, config: DNAGANConfig, schema: Schema, start: bool = True) -> DNAGAN:
        """As `Method.build`.

        Raises:
            UserError: an attribute or value is not in the schema, an attribute may have several
                values, or the run is launched under FSDP2 or DeepSpeed: a discriminator with
                fixed weights, clipped ones and spectral norm need whole weights.
        """
        if start and (sharded := [name for name in ("FSDP", "DEEPSPEED") if is_launched(name)]):
            raise UserError(
                "method: expected one process or DDP for 'dna_gan', whose discriminator needs "
                f"whole weights, found {sharded[0]}; launch with launch/ddp.yaml"
            )
        schema.require_single_values("method dna_gan")
        return DNAGAN(config, schema)

    def stages(self, config: DNAGANConfig) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (config.stage(),)

    def objective(
        self, config: DNAGANConfig, schema: Schema, device: torch.device
    ) -> DNAGANObjective:
        """As `Method.objective`."""
        return DNAGANObjective(config, schema)

    def before(self, stage: Stage, model: nn.Module, evaluator: Evaluator) -> bool:
        """Check that each learned attribute has two values in the training split."""
        assert isinstance(model, DNAGAN)
        broadcast_from_main(lambda: require_two_values(evaluator.index, model.names))
        return False

    def represent(self, model: DNAGAN, images: Tensor) -> dict[str, Tensor]:
        """As `codes`."""
        return self.codes(model, images)

    def codes(self, model: DNAGAN, images: Tensor) -> dict[str, Tensor]:
        """As `Method.codes`: pieces one after another, then the rest; maps are averaged.

        No piece is zeroed, as labels are not known here.
        """
        pieces, rest = model.encode(images)
        if pieces.ndim > 3:
            pieces, rest = pieces.mean((3, 4)), rest.mean((2, 3))
        return {"codes": torch.cat([pieces.flatten(1), rest], dim=1).float()}

    def blocks(self, model: DNAGAN) -> tuple[str, ...]:
        """As `Method.blocks`: the attribute of each number, or `rest`."""
        pieces = tuple(name for name in model.names for _ in range(model.piece))
        return pieces + ("rest",) * model.rest

    def evaluate(
        self, stage: Stage, model: DNAGAN, evaluator: Evaluator, settings: Evaluation
    ) -> Evaluated:
        """Compute the figures of swaps, and show some."""
        # Outside of an evaluator's batches nothing else has switched training's modes off.
        was_training = model.training
        model.eval()
        found = figures(model, evaluator.index, "val")
        rows = []
        if rank() == 0:
            rows = picture_rows(model, evaluator.index, "val", settings.rows)
        model.train(was_training)
        return Evaluated(found, Pictures("Swaps", SWAPPED, rows) if rows else None)


def require_two_values(index: ShardIndex, names: tuple[str, ...]) -> None:
    """Check that training items have at least two values of each named attribute.

    Raises:
        UserError: an attribute has fewer; names it.
    """
    columns = [index.schema.attribute_index(name) for name in names]
    seen: list[set[int]] = [set() for _ in columns]
    for sample in iterate(index, "train"):
        for values, column in zip(seen, columns):
            values.add(int(sample.labels[column]))
            values.discard(UNKNOWN)
        if all(len(values) > 1 for values in seen):
            return
    for name, column, values in zip(names, columns, seen):
        if len(values) < 2:
            shown = [index.schema.attributes[column].values[value] for value in values]
            raise UserError(
                f"attribute {name!r}: expected at least two values among the training items of "
                f"{index.root}, as items of different values exchange pieces, found "
                f"{shown or 'none'}; name the attributes to learn in `attributes`"
            )


METHOD = DNAGANMethod()
