"""N gloo ranks compute the same loss and gradients as one rank on the same global batch."""

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from adde.distributed import RankRows
from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.methods.adde.config import AddeConfig, AddeStage, EncoderStage
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.terms import global_mean

SCHEMA = Schema((Attribute("colour", ("r", "g", "b")), Attribute("size", ("s", "l"))))
ITEMS = 16


def build_model():
    torch.manual_seed(0)
    settings = ModelSettings(backbone="test_resnet", image_size=32, width=4, hidden=6)
    model = ADDE(settings, SCHEMA, adversary=True)
    # Local batch norms see one rank's items only, so the backbone has none.
    model.backbone = nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 96), nn.Tanh()
    )
    nn.init.normal_(model.memory.weight, std=0.1)
    return model


def global_batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (ITEMS, 32, 32, 3), dtype=np.uint8)
    labels = np.stack([random.integers(-1, size, ITEMS) for size in SCHEMA.sizes], axis=1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def one_step(stage, counts=(ITEMS,)):
    """Compute loss, scalars and gradients of a step on this rank's share of the global batch."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = build_model()
    model.memory.requires_grad_(stage == "adde")
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    images, labels = global_batch()
    share = RankRows.of(counts[rank], images.device)
    assert share.counts == counts
    batch = Batch(share.local(images), share.local(labels), [])
    changes = Augmentation(crop=0.6, erase=0.7, brightness=0.2, contrast=0.2, blur=0.5)
    objective = AddeObjective(SCHEMA, changes, margin=0.5)
    objective.begin_step(2, 10)
    config = AddeConfig(
        encoder=EncoderStage(adversary=0.5),
        adde=AddeStage(global_triplet=1.0, score=1.0, adversary=0.5, edits=2),
    )
    part = {s.name: s for s in config.stages()}[stage]
    draws = torch.Generator().manual_seed(3)
    terms = objective.batch_terms(part, wrapped, batch, draws, share)
    loss, scalars, flag = global_mean(terms, part.weights, flag=rank == ranks - 1)
    loss.backward()
    assert flag
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return scalars, gradients


def run_rank(rank, counts, port, stage, queue):
    ranks = len(counts)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    try:
        scalars, gradients = one_step(stage, counts)
        if rank == ranks - 1:
            queue.put((scalars, {n: g.numpy() for n, g in gradients.items()}))
            queue.join()
    finally:
        dist.destroy_process_group()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_ranks(counts, stage):
    port = free_port()
    context = mp.get_context("spawn")
    queue = context.JoinableQueue()
    arguments = (counts, port, stage, queue)
    processes = mp.spawn(run_rank, arguments, len(counts), join=False, start_method="spawn")
    result = queue.get(timeout=120)
    queue.task_done()
    while not processes.join():
        pass
    return result


QUICK = {("encoder", (11, 5)), ("encoder", (4, 4, 4, 4)), ("adde", (8, 8)), ("adde", (7, 1, 6, 2))}
CASES = [
    pytest.param(stage, counts, marks=[] if (stage, counts) in QUICK else pytest.mark.slow)
    for stage in ("encoder", "adde")
    for counts in ((8, 8), (11, 5), (4, 4, 4, 4), (7, 1, 6, 2))
]


@pytest.mark.parametrize(("stage", "counts"), CASES, ids=str)
def test_loss_and_gradients_equal_one_rank(stage, counts):
    expected, expected_gradients = one_step(stage)
    scalars, gradients = on_ranks(counts, stage)
    assert scalars == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            torch.from_numpy(gradient), expected_gradients[name], rtol=1e-6, atol=1e-6, msg=name
        )


def test_one_rank_needs_no_process_group():
    rows = torch.randn(3, 2, requires_grad=True)
    ranks = RankRows.of(3, rows.device)
    assert ranks.gather(rows) is rows
    assert torch.equal(ranks.local(rows), rows)
    assert ranks.columns(rows.device).tolist() == [0, 1, 2]
