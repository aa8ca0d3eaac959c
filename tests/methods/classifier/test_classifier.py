"""The plain classifier: ADDE's network, with nothing that keeps its blocks apart."""

import runpy
from pathlib import Path

import numpy as np
import torch

from adde.methods.adde.config import AddeConfig, EncoderStage
from adde.methods.classifier.method import METHOD
from adde.model import ModelSettings
from adde.schema import UNKNOWN
from adde.shards.index import ShardIndex
from adde.training.config import Data, Schedule
from adde.training.evaluation import Evaluator
from adde.training.opening import load_model
from adde.training.run import Run

ROOT = Path(__file__).parents[3]


def test_it_trains_and_its_blocks_belong_to_no_attribute(tiny_shards, tmp_path):
    config = AddeConfig(
        run=tmp_path / "run",
        method="classifier",
        precision="fp32",
        wandb="off",
        data=Data(shards=str(tiny_shards), batch_size=20, workers=0),
        model=ModelSettings(backbone="test_resnet", image_size=32, width=6, hidden=8),
        encoder=EncoderStage(schedule=Schedule(epochs=8, learning_rate=5e-3)),
    )
    train_stage = runpy.run_path(str(ROOT / "train/main.py"))["train_stage"]
    with Run(METHOD, config, resume=False) as run:
        for stage in METHOD.stages(config):
            assert {n: w for n, w in stage.weights.items() if w} == {"cls": 1.0}
            train_stage(run, stage)
        run.finish()
    model, found, _ = load_model(config.run, "last")
    assert found == config
    index = ShardIndex.read(tiny_shards)
    encoded = Evaluator(index, 30, 0, torch.device("cpu")).encode(METHOD.codes, model, "train")
    codes = torch.from_numpy(encoded.outputs["codes"])
    assert codes.shape == (60, 3 * 6)
    assert METHOD.blocks(model) == tuple(f"block {n}" for n in np.repeat([0, 1, 2], 6))
    # The logits of each attribute are a linear layer of all blocks.
    layer = model.classifiers.linear
    columns = [slice(o, o + n) for o, n in zip(index.schema.offsets, index.schema.sizes)]
    for own in columns:
        strengths = layer.weight[own].square().reshape(-1, 3, 6).sum((0, 2))
        assert (strengths > 0.05 * strengths.sum()).all()
    logits = codes @ layer.weight.T + layer.bias
    colours = encoded.labels[:, 0]
    right = logits[:, columns[0]].argmax(1).numpy() == colours
    assert right[colours != UNKNOWN].mean() > 0.8
