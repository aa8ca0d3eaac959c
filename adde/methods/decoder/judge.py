"""An independent judge of drawn pictures: a small classifier that shares nothing with the encoder.

It is a plain convolutional net with weights from a seed of its own, trained on the real pictures of
the training split. It never sees a drawn picture before it judges.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from adde import losses
from adde.files import atomic_path
from adde.metrics import predicted_labels
from adde.preprocess import Picture, Preprocess
from adde.schema import Labels, Schema
from adde.training.evaluation import Evaluator

JUDGE_NAME = "judge.safetensors"
SEED = 20_000_003
SIDE = 64
"""Side of the pictures that it sees; others are resized."""

ITEMS = 20_000
"""Most training items; their pictures stay in memory."""

STEPS, BATCH, RATE = 1200, 64, 3e-3


class Judge(nn.Module):
    """Three convolutions with batch norm and pooling, then logits (B, V) of all values."""

    def __init__(self, schema: Schema, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess, self.schema = preprocess, schema
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((3, 32, 5, 2), (32, 64, 3, 1), (64, 128, 3, 1)):
            layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2)]
            layers += [nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
        hidden = 128 * (SIDE // 16) ** 2
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(hidden, 256), nn.ReLU(),
            nn.Linear(256, schema.num_values),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (b, V) of pictures (b, SIDE, SIDE, 3) uint8."""
        return self.layers(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)

    @torch.no_grad()
    def see(self, pictures: Picture) -> Labels:
        """Return what it sees in pictures (n, S, S, 3) uint8, (n, A) int64."""
        device = next(self.parameters()).device
        parts = torch.from_numpy(pictures).split(256)
        logits = [self(sized(part.to(device))).cpu() for part in parts]
        return predicted_labels(torch.cat(logits).numpy(), self.schema)


def represent_real(judge: Judge, images: Tensor) -> dict[str, Tensor]:
    """Return the logits of real pictures (b, S, S, 3) uint8."""
    return {"logits": judge(sized(images))}


def sized(pictures: Tensor) -> Tensor:
    """Resize pictures (b, S, S, 3) uint8 to SIDE."""
    if pictures.shape[1] == SIDE:
        return pictures
    planes = pictures.permute(0, 3, 1, 2).float()
    kind = "area" if pictures.shape[1] > SIDE else "nearest"
    return F.interpolate(planes, SIDE, mode=kind).round().byte().permute(0, 2, 3, 1)


def judge_of(run: Path, preprocess: Preprocess, evaluator: Evaluator) -> Judge:
    """Train a judge on the evaluator's training split, or read it from the run's folder.

    Args:
        run: folder that keeps it.
        preprocess: of the pictures.
        evaluator: of the shards.
    """
    index, path = evaluator.index, run / JUDGE_NAME
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        judge = Judge(index.schema, preprocess).to(evaluator.device)
        key = f"{index.fingerprint('train')} {preprocess}"
        if not _read(judge, path, key):
            _train(judge, evaluator)
            with atomic_path(path) as temporary:
                save_file(judge.state_dict(), temporary, {"key": key})
    return judge.eval()


def _read(judge: Judge, path: Path, key: str) -> bool:
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return False
            judge.load_state_dict({name: file.get_tensor(name) for name in judge.state_dict()})
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _train(judge: Judge, evaluator: Evaluator) -> None:
    batches = list(_some(judge, evaluator))
    pictures, labels = (torch.cat(parts) for parts in zip(*batches))
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    draws = torch.Generator().manual_seed(SEED)
    judge.train()
    for _ in tqdm(range(STEPS), "train a judge", leave=False, disable=None, unit="step"):
        rows = torch.randint(len(labels), (BATCH,), generator=draws)
        logits = judge(pictures[rows].to(evaluator.device))
        term = losses.classification(logits, labels[rows].to(evaluator.device), judge.schema.sizes)
        optimiser.zero_grad()
        (term.sums / term.counts.clamp(min=1)).sum().backward()
        optimiser.step()
        schedule.step()


def _some(judge: Judge, evaluator: Evaluator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pictures (b, SIDE, SIDE, 3) uint8 and labels of at most ITEMS training items."""
    count = 0
    for batch, _ in evaluator.batches(judge, "train"):
        yield sized(batch.images).cpu(), batch.labels.cpu()
        count += len(batch.labels)
        if count >= ITEMS:
            break
