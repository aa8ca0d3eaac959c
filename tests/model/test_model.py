"""The model against the formulas of DESIGN 4, written out one attribute at a time."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from adde.errors import UserError
from adde.model import ADDE, ModelSettings, multi_hot
from adde.model.encoder import AttributeClassifiers
from adde.model.memory import Memory
from adde.schema import Attribute, Schema

SCHEMA = Schema(
    (
        Attribute("colour", ("red", "blue", "green")),
        Attribute("size", ("small", "large")),
        Attribute("shape", ("round", "square", "long", "flat")),
    )
)
SETTINGS = ModelSettings(backbone="test_resnet", image_size=32, width=5, hidden=7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ADDE(SETTINGS, SCHEMA).eval()
    torch.nn.init.normal_(model.memory.weight)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (4, 32, 32, 3), generator=torch.manual_seed(1)).to(torch.uint8)


def test_heads_and_classifiers_are_a_separate_mlp_each(model, images):
    pictures = images.permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(model.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(model.preprocess.std).view(3, 1, 1)
    features = model.backbone((pictures - mean) / std)
    embeddings, logits = model.encode(images)
    for a, (start, size) in enumerate(zip(SCHEMA.offsets, SCHEMA.sizes)):
        first, second = model.heads.first, model.heads.second
        hidden = (features @ first.weight[a] + first.bias[a]).relu()
        expected = hidden @ second.weight[a] + second.bias[a]
        torch.testing.assert_close(embeddings[:, a], expected, rtol=1e-4, atol=1e-5)
        linear = model.classifiers.linear
        scores = (expected @ linear.weight[a] + linear.bias[a])[:, :size]
        torch.testing.assert_close(logits[:, start : start + size], scores, rtol=1e-4, atol=1e-5)


def test_one_forward_gives_what_encode_and_edit_give(model, images):
    labels = torch.tensor([[0, 1, 2], [1, -1, 3], [2, 0, 0], [0, 0, -1]])
    targets = torch.tensor([[1, 1, 2], [1, -1, 0], [2, 1, 0], [2, 0, -1]])
    out = model(images, multi_hot(labels, SCHEMA), multi_hot(targets, SCHEMA))
    indicator = torch.from_numpy(SCHEMA.indicator(labels.numpy(), targets.numpy()))
    expected = out.embeddings.flatten(1) + indicator @ model.memory.weight.T
    torch.testing.assert_close(out.edited.flatten(1), expected)
    torch.testing.assert_close(out.edited, model.edit(out.embeddings, indicator))
    own = model.memory.weight @ torch.from_numpy(SCHEMA.multi_hot(labels.numpy())).T
    torch.testing.assert_close(out.own_prototypes.flatten(1), own.T)


def test_float_pictures_on_the_same_scale_give_the_same(model, images):
    as_float = images.permute(0, 3, 1, 2).float()
    for a, b in zip(model.encode(images), model.encode(as_float)):
        torch.testing.assert_close(a, b)


def test_multi_hot_equals_the_schemas():
    labels = torch.tensor([[0, 1, 2], [-1, -1, -1], [2, -1, 3]])
    assert np.array_equal(multi_hot(labels, SCHEMA).numpy(), SCHEMA.multi_hot(labels.numpy()))


def test_prototypes_stand_in_their_own_blocks(model):
    prototypes = torch.randn(SCHEMA.num_values, 5)
    model.memory.set_prototypes(prototypes)
    blocks = model.memory.weight.detach().view(3, 5, SCHEMA.num_values)
    for column, attribute in enumerate(SCHEMA.attribute_of_column.tolist()):
        for a in range(3):
            expected = prototypes[column] if a == attribute else torch.zeros(5)
            assert torch.equal(blocks[a, :, column], expected)
    assert model.memory.off_block_l1().item() == 0
    with torch.no_grad():
        model.memory.weight[0, 3] = -2.0  # a row of colour in a column of size
        model.memory.weight[0, 0] += 1.0  # on-block: does not count
    assert model.memory.off_block_l1().item() == 2.0


def test_the_off_block_norm_and_its_gradient_are_the_masks(model):
    weight = torch.randn_like(model.memory.weight)
    of_row = torch.arange(3).repeat_interleave(5)
    mask = of_row[:, None] != torch.from_numpy(SCHEMA.attribute_of_column)
    assert torch.equal(model.memory.off_block, mask)
    memory = Memory(SCHEMA, 5)
    with torch.no_grad():
        memory.weight.copy_(weight)
    norm = memory.off_block_l1()
    norm.backward()
    torch.testing.assert_close(norm, weight[mask].abs().sum())
    assert torch.equal(memory.weight.grad, weight.sign() * mask)


def test_no_buffer_grows_with_width_times_values():
    """DDP broadcasts them all in every forward pass."""
    schema = Schema(
        tuple(Attribute(f"a{a}", tuple(f"{v:03}" for v in range(30))) for a in range(20))
    )
    buffers = {name: b.nbytes for name, b in Memory(schema, 340).named_buffers()}
    assert sum(buffers.values()) <= 8 * (20 * 340 + 600)
    classifiers = AttributeClassifiers(schema, 340)
    assert sum(b.nbytes for b in classifiers.buffers()) <= 8 * 600


def test_an_unknown_backbone_is_named_with_its_neighbours():
    with pytest.raises(UserError, match=r"'resnet81'.*did you mean.*resnet18"):
        ADDE(ModelSettings(backbone="resnet81"), SCHEMA)


def test_weights_come_from_a_file(tmp_path):
    source = timm.create_model("test_resnet", num_classes=10)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    settings = ModelSettings(
        backbone="test_resnet", image_size=32, weights=tmp_path / "w.safetensors"
    )
    model = ADDE(settings, SCHEMA)
    key = "layer1.0.conv1.weight"
    assert torch.equal(model.backbone.state_dict()[key], source.state_dict()[key])


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"elsewhere": torch.zeros(1)}, tmp_path / "w.safetensors")
    settings = ModelSettings(backbone="test_resnet", weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w.safetensors.*unknown ones such as \['elsewhere'\]"):
        ADDE(settings, SCHEMA)
    missing = ModelSettings(backbone="test_resnet", weights=tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        ADDE(missing, SCHEMA)
