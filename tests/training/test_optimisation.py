"""Compare schedules with torch's, and clipping, averaging and accumulation with plain loops."""

import copy
import json
import math
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import lr_scheduler

from adde.errors import UserError
from adde.losses import Term
from adde.methods.adde.model import ADDE
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.config import Config, Data, Optimizer, Schedule
from adde.training.method import Stage
from adde.training.optimisation import Rate, build_optimizer, learning_rate, set_rate
from adde.training.strategies import DataParallel, Weights
from adde.training.terms import Terms

ROOT = Path(__file__).parents[2]
STEPS, PER_EPOCH = 40, 10


def rates(**schedule):
    schedule = Schedule(learning_rate=0.3, **schedule)
    return [learning_rate(schedule, step, STEPS, PER_EPOCH) for step in range(STEPS)]


def torchs_rates(*schedulers, milestone):
    """Return the rates of torch's schedulers, the second from `milestone` on."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    made = [scheduler(optimizer) for scheduler in schedulers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR uses a call that torch deprecates
        scheduler = lr_scheduler.SequentialLR(optimizer, made, [milestone])
        result = []
        for _ in range(STEPS):
            result.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return result


def warmup(steps):
    return lambda o: lr_scheduler.LinearLR(o, 1 / (steps + 1), total_iters=steps)


@pytest.mark.parametrize("steps", [1, 8])
def test_warmup_and_cosine(steps):
    expected = torchs_rates(
        warmup(steps),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - steps),
        milestone=steps,
    )
    found = rates(kind="cosine", warmup=steps / STEPS)
    assert found == pytest.approx(expected)
    assert max(found) == found[steps] == 0.3
    assert 0 < found[-1] < 0.01


def test_a_constant_rate_after_warmup():
    expected = torchs_rates(warmup(5), lambda o: lr_scheduler.ConstantLR(o, 1), milestone=5)
    assert rates(kind="constant", warmup=5 / STEPS) == pytest.approx(expected)


@pytest.mark.parametrize("every", [0.5, 1, 3])
def test_steps(every):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = lr_scheduler.StepLR(optimizer, int(every * PER_EPOCH), gamma=0.2)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = rates(kind="step", warmup=0, step_epochs=every, step_factor=0.2)
    assert found == pytest.approx(expected)
    warmed = rates(kind="step", warmup=4 / STEPS, step_epochs=every, step_factor=0.2)
    assert warmed[4:] == pytest.approx(expected[4:])  # drops count from the start of the stage
    assert warmed[:4] == pytest.approx([0.06, 0.12, 0.18, 0.24])


@given(
    kind=st.sampled_from(["cosine", "step", "constant"]),
    share=st.floats(0, 1),
    steps=st.integers(1, 50),
    per_epoch=st.integers(1, 50),
)
@settings(deadline=None)
def test_rates_stay_within_the_peak(kind, share, steps, per_epoch):
    schedule = Schedule(learning_rate=0.3, kind=kind, warmup=share)
    for step in range(steps):
        assert 0 < learning_rate(schedule, step, steps, per_epoch) <= 0.3


def test_only_matrices_and_kernels_decay():
    schema = Schema((Attribute("colour", ("red", "blue")),))
    model = ADDE(ModelSettings(backbone="test_resnet", image_size=32, width=4, hidden=4), schema)
    model.classifiers.requires_grad_(False)
    decayed, others = build_optimizer(Optimizer(weight_decay=0.1), model).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = ({names[p] for p in group["params"]} for group in (decayed, others))
    trained = {name for name in names.values() if not name.startswith("classifiers")}
    assert decayed | others == trained
    assert not decayed & others
    assert {"heads.first.weight", "heads.second.weight"} <= decayed
    assert {"heads.first.bias", "memory.weight"} <= others
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kernels = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert norms
    assert {f"{norm}.weight" for norm in norms} <= others
    assert {f"{kernel}.weight" for kernel in kernels} <= decayed


@pytest.mark.parametrize(
    ("backbone", "spared"),
    [
        ("test_vit", {"cls_token", "pos_embed"}),
        ("swin_tiny_patch4_window7_224", {"layers.0.blocks.1.attn.relative_position_bias_table"}),
        ("xcit_nano_12_p16_224", {"cls_token", "pos_embed.token_projection.weight"}),
    ],
)
def test_positions_and_tokens_do_not_decay(backbone, spared):
    model = nn.ModuleDict({"backbone": timm.create_model(backbone, num_classes=0)})
    decayed, others = build_optimizer(Optimizer(weight_decay=0.1), model).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = ({names[p] for p in group["params"]} for group in (decayed, others))
    assert {f"backbone.{name}" for name in spared} <= others
    assert any("attn.qkv.weight" in name for name in decayed)
    assert not any("attn.qkv.weight" in name for name in others)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_parts_have_rates_of_their_own(name):
    torch.manual_seed(0)
    layers = {n: nn.Linear(3, 3) for n in ("first", "second", "third")}
    model = nn.ModuleDict({"whole": nn.ModuleDict(layers), "other": nn.Linear(3, 3)})
    same = copy.deepcopy(model)
    rates = {"whole": Rate(2.0, (0.5, 0.9)), "whole.second": Rate(0.25), "other": Rate()}
    optimizer = build_optimizer(Optimizer(name=name, weight_decay=0.1), model, rates)

    def plain(part, rate, betas):
        groups = [{"params": [part.weight]}, {"params": [part.bias], "weight_decay": 0.0}]
        if name == "sgd":
            return torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=0.1)
        return torch.optim.AdamW(groups, rate, betas, weight_decay=0.1)

    others = [
        plain(same["whole"]["first"], 0.02, (0.5, 0.9)),
        plain(same["whole"]["second"], 0.0025, (0.9, 0.999)),
        plain(same["whole"]["third"], 0.02, (0.5, 0.9)),
        plain(same["other"], 0.01, (0.9, 0.999)),
    ]
    for _ in range(4):
        inputs = torch.randn(5, 3)
        for one, optimizers in ((model, [optimizer]), (same, others)):
            loss = sum(part(inputs).square().sum() for part in one["whole"].values())
            (loss + one["other"](inputs).square().sum()).backward()
            for each in optimizers:
                if one is model:
                    set_rate(each, 0.01)
                each.step()
                each.zero_grad()
    for found, expected in zip(model.parameters(), same.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_rate_of_a_part_that_is_not_there_is_refused():
    model = nn.ModuleDict({"encoder": nn.Linear(1, 1)})
    message = r"expected the name of a part .*found 'encodr'; did you mean 'encoder'"
    with pytest.raises(UserError, match=f"Stage.rates: {message}"):
        build_optimizer(Optimizer(), model, {"encodr": Rate()})
    with pytest.raises(UserError, match=f"optimizer.rates: {message}"):
        build_optimizer(Optimizer(rates={"encodr": 0.1}), model)
    with pytest.raises(UserError, match=r"optimizer.layer_decay: expected 1, .* found 0.5"):
        build_optimizer(Optimizer(layer_decay=0.5), model)


@pytest.mark.parametrize("frozen", [("encodr",), ("encoder", "head")])
def test_a_part_that_cannot_be_frozen_is_refused(frozen):
    model = nn.ModuleDict({"encoder": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    weights = Weights(Accelerator(cpu=True), model, Config())
    expected = "did you mean 'encoder'" if len(frozen) == 1 else "found all of them frozen"
    with pytest.raises(UserError, match=rf"optimizer.frozen: expected .*{expected}"):
        weights.train(frozen)


def factors(optimizer, model):
    """The rate of every parameter by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: g["rate"] for g in optimizer.param_groups for p in g["params"]}


def test_the_recipes_rates_multiply_those_of_the_stage():
    layers = {n: nn.Linear(3, 3) for n in ("first", "second")}
    model = nn.ModuleDict({"whole": nn.ModuleDict(layers), "other": nn.Linear(3, 3)})
    settings = Optimizer(rates={"whole": 0.5, "whole.second": 3.0})
    found = factors(build_optimizer(settings, model, {"whole": Rate(2.0)}), model)
    assert found["whole.first.weight"] == found["whole.first.bias"] == 1.0
    assert found["whole.second.weight"] == 6.0
    assert found["other.bias"] == 1.0


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_resnet"])
def test_rates_fall_by_layer_as_timms(backbone):
    model = nn.ModuleDict({"backbone": timm.create_model(backbone, num_classes=0)})
    model["heads"] = nn.Linear(3, 3)
    settings = Optimizer(layer_decay=0.7, rates={"backbone": 0.5})
    found = factors(build_optimizer(settings, model), model)
    expected = {"heads.weight": 1.0, "heads.bias": 1.0}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in param_groups_layer_decay(model["backbone"], layer_decay=0.7):
        expected |= {names[p]: 0.5 * group["lr_scale"] for p in group["params"]}
    assert found == pytest.approx(expected)
    assert len({round(rate, 6) for rate in found.values()}) > 3


def stage(model, scaler=None, accumulation=1, **settings):
    """Open accelerator and strategy as a run does; fp16 if there is a scaler."""
    AcceleratorState._reset_state(reset_partial_state=True)
    own = Accelerator(cpu=True, mixed_precision="fp16" if scaler else "no")
    # Accelerate does this on GPUs only.
    own.scaler, own.native_amp = scaler, scaler is not None
    config = Config(optimizer=Optimizer(**settings), data=Data(accumulation=accumulation))
    return own, DataParallel(own, model, config)


def parameters(model):
    return [p.detach().numpy().astype(np.float64) for p in model.parameters()]


@pytest.mark.parametrize(
    ("clip", "warmup"), [(0.0, False), (0.5, False), (1e6, False), (0.0, True)]
)
def test_sgd_on_a_clipped_gradient_with_averaged_weights(clip, warmup):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    settings = {"name": "sgd", "weight_decay": 0.0, "clip_norm": clip}
    own, optimizer = stage(model, **settings, ema=0.3 if warmup else 0.8, ema_warmup=warmup)
    decays = [0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3] if warmup else [0.8] * 6
    weights = parameters(model)
    velocity = [np.zeros_like(w) for w in weights]
    averages = None
    clipped = 0
    for step in range(6):
        inputs = torch.randn(4, 3)
        own.backward(model(inputs).square().sum())
        gradients = [p.grad.numpy().astype(np.float64) for p in model.parameters()]
        optimizer.begin_step(0.01 * (step + 1))
        norm = optimizer.step()
        expected = math.sqrt(sum((g**2).sum() for g in gradients))
        assert norm == pytest.approx(expected)
        factor = min(1, clip / expected) if clip else 1
        clipped += factor < 1
        velocity = [0.9 * v + factor * g for v, g in zip(velocity, gradients)]
        weights = [w - 0.01 * (step + 1) * v for w, v in zip(weights, velocity)]
        averages = averages or weights  # the first step's weights start the average
        decay = decays[step]
        averages = [decay * a + (1 - decay) * w for a, w in zip(averages, weights)]
        for found, wanted in zip(parameters(model), weights):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        for found, wanted in zip(optimizer.averaged.tensors.values(), averages):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert (clipped > 0) == (clip == 0.5)


@pytest.fixture(autouse=True)
def no_accelerator_stays():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fp16_with_a_scaled_loss_trains_as_fp32(name):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        own, optimizer = stage(model, scaler, name=name, clip_norm=0.5)
        optimizer.begin_step(0.1)
        norms = []
        for _ in range(4):
            outputs = model(torch.randn(4, 3))
            assert outputs.dtype == torch.float32  # the input of the losses
            own.backward(outputs.square().mean())
            norms.append(optimizer.step())
        assert all(p.dtype == torch.float32 for p in model.parameters())
        found.append((norms, parameters(model)))
    (norms, weights), (scaled_norms, scaled) = found
    assert scaled_norms != norms
    assert scaled_norms == pytest.approx(norms, rel=5e-3)
    for one, other in zip(weights, scaled):
        np.testing.assert_allclose(other, one, atol=5e-3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_gradient_that_overflows_is_skipped_and_the_scale_lowered(name):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = nn.Linear(3, 2)
    own, optimizer = stage(model, scaler, name=name, ema=0.9)
    optimizer.begin_step(0.1)
    own.backward(model(torch.ones(4, 3)).square().mean())
    optimizer.step()
    before = parameters(model)
    own.backward((model(torch.ones(4, 3)) * torch.inf).sum())
    optimizer.step()
    for one, other in zip(before, parameters(model)):
        assert np.array_equal(one, other)
    assert scaler.get_scale() == 512
    # A checkpoint stores it as JSON.
    fresh = torch.amp.GradScaler("cpu")
    fresh.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert fresh.get_scale() == 512
    own.backward(model(torch.ones(4, 3)).square().mean())
    assert math.isfinite(optimizer.step())
    assert not np.array_equal(before[0], parameters(model)[0])


class Loop:
    """The part of Run that train_stage uses, with a least-squares model."""

    def __init__(self, model, batches, accumulation):
        _, self.strategy = stage(
            model, None, accumulation, name="sgd", weight_decay=0.0, clip_norm=0.5
        )
        self.model = model
        self.config = Config(data=Data(accumulation=accumulation))
        self.objective = SimpleNamespace(batch_terms=self.terms)
        self.order = SimpleNamespace(steps_per_epoch=PER_EPOCH)
        self.batches = iter(batches)
        self.total_steps = len(batches) // accumulation
        self.stop_asked = False
        self.losses, self.logged, self.synced = [], [], []
        micro_batch = self.strategy.micro_batch
        self.strategy.micro_batch = lambda last: self.synced.append(last) or micro_batch(last)

    def begin_stage(self, stage):
        return True

    def steps(self):
        return range(self.total_steps)

    def next_batch(self):
        return next(self.batches), None

    def terms(self, stage, model, batch, draws):
        errors = (model(batch.inputs) - batch.labels).square()
        return Terms({"cls": Term(errors.sum()[None], torch.tensor([float(len(errors))]))}, {})

    def record_micro_batch(self, scalars, batch, draws):
        self.losses.append(scalars["loss"])

    def log(self, rate, norm):
        self.logged.append((rate, norm))

    def evaluation_due(self, step):
        return False

    def checkpoint_due(self, step, stopping):
        return False


def test_a_step_takes_the_mean_gradient_of_its_micro_batches():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    sizes = [4, 2, 5, 3, 1, 6]  # uneven, so that a mean over items differs
    batches = [SimpleNamespace(inputs=torch.randn(n, 3), labels=torch.randn(n, 1)) for n in sizes]
    (weight, bias), velocity = parameters(model), 0.0
    loop = Loop(model, batches, accumulation=3)
    train_stage = runpy.run_path(str(ROOT / "train" / "main.py"))["train_stage"]
    schedule = Schedule(learning_rate=0.1, kind="constant", warmup=0)
    train_stage(loop, Stage("encoder", schedule, {"cls": 0.7}))

    state = np.concatenate([weight[0], bias])
    norms, losses = [], []
    for first in (0, 3):
        gradient = np.zeros(4)
        for batch in batches[first : first + 3]:
            inputs = np.hstack([batch.inputs.numpy(), np.ones((len(batch.inputs), 1))])
            errors = inputs @ state - batch.labels.numpy()[:, 0]
            losses.append(0.7 * (errors**2).mean())
            gradient += 0.7 * 2 * (errors @ inputs) / len(errors) / 3
        norms.append(np.linalg.norm(gradient))
        velocity = 0.9 * velocity + gradient * min(1, 0.5 / norms[-1])
        state = state - 0.1 * velocity
    np.testing.assert_allclose(np.concatenate([p.ravel() for p in parameters(model)]), state, 1e-4)
    assert [norm for _, norm in loop.logged] == pytest.approx(norms, rel=1e-5)
    assert [rate for rate, _ in loop.logged] == [0.1, 0.1]
    assert loop.losses == pytest.approx(losses, rel=1e-5)
    assert loop.synced == [False, False, True] * 2
    assert max(norms) > 0.5
