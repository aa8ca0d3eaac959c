"""The model against equations 1, 2 and 5 of docs/architecture.md, one attribute at a time."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from adde.errors import UserError
from adde.methods.adde.heads import AttributeClassifiers
from adde.methods.adde.memory import PrototypeMemory, multi_hot
from adde.methods.adde.model import ADDE
from adde.model import ModelSettings
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
    embeddings, logits, _ = model.encode(images)
    for a, (start, size) in enumerate(zip(SCHEMA.offsets, SCHEMA.sizes)):
        first, second = model.heads.first, model.heads.second
        hidden = (features @ first.weight[a] + first.bias[a]).relu()
        expected = hidden @ second.weight[a] + second.bias[a]
        torch.testing.assert_close(embeddings[:, a], expected, rtol=1e-4, atol=1e-5)
        linear = model.classifiers.linear
        scores = (expected @ linear.weight[a] + linear.bias[a])[:, :size]
        torch.testing.assert_close(logits[:, start : start + size], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_attention_pooling_is_a_weighted_mean_over_the_map_per_attribute(backbone):
    torch.manual_seed(3)
    settings = replace(SETTINGS, backbone=backbone, pooling="attention", image_size=64)
    model = ADDE(settings, SCHEMA).eval()
    images = torch.randint(0, 256, (3, 64, 64, 3)).to(torch.uint8)
    features = model.backbone(images.permute(0, 3, 1, 2) * model.scale + model.shift)
    tokens = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    pooled = model.pooling(tokens)
    mean = tokens.mean(1)
    torch.testing.assert_close(pooled, mean.expand(3, -1, -1))  # it starts as the plain mean
    nn.init.normal_(model.pooling.query)
    nn.init.normal_(model.pooling.place)
    embeddings = model.encode(images).embeddings
    for a in range(3):
        for row in range(3):
            query, place = model.pooling.query[a], model.pooling.place[a]
            weight = ((tokens[row] @ query) / tokens.shape[-1] ** 0.5 + place).exp()
            feature = (weight[:, None] * tokens[row]).sum(0) / weight.sum()
            first, second = model.heads.first, model.heads.second
            hidden = (feature @ first.weight[a] + first.bias[a, 0]).relu()
            expected = hidden @ second.weight[a] + second.bias[a, 0]
            torch.testing.assert_close(embeddings[row, a], expected, rtol=1e-4, atol=1e-5)


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
    memory = PrototypeMemory(SCHEMA, 5)
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
    buffers = {name: b.nbytes for name, b in PrototypeMemory(schema, 340).named_buffers()}
    assert sum(buffers.values()) <= 8 * (20 * 340 + 600)
    classifiers = AttributeClassifiers(schema, 340)
    assert sum(b.nbytes for b in classifiers.buffers()) <= 8 * 600


def test_an_unknown_backbone_is_named_with_its_neighbours():
    with pytest.raises(UserError, match=r"'resnet81'.*did you mean.*resnet18"):
        ADDE(ModelSettings(backbone="resnet81"), SCHEMA)


@pytest.mark.parametrize(
    ("backbone", "size", "options", "message"),
    [
        (
            "test_vit",
            65,
            {},
            r"^model\.image_size: 'test_vit', made for pictures of 160 px, cannot encode one of 65"
            r" px: .*; set model\.image_size to 160, or in model\.backbone_options .*img_size = 65",
        ),
        ("inception_v3", 32, {}, "made for pictures of 299 px, .* of 32 px"),
        ("test_resnet", 32, {"features_only": True}, "cannot encode one of 32 px"),
        ("test_resnet", 160, {"in_chans": 1}, r"^model\.backbone_options: 'test_resnet', made for"),
        ("test_resnet", 32, {"block": "x"}, "'test_resnet' does not take .*'block': 'x'"),
        ("test_resnet", 32, {"colour": 1}, "'test_resnet' does not take .*'colour'"),
    ],
)
def test_what_timm_raises_is_a_message_with_the_setting(backbone, size, options, message):
    settings = ModelSettings(
        backbone=backbone, image_size=size, width=2, hidden=2, backbone_options=options
    )
    with pytest.raises(UserError, match=message):
        ADDE(settings, SCHEMA)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 99, b"PK\3\4" + bytes(99)])
def test_a_file_that_holds_no_weights_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    settings = ModelSettings(backbone="test_resnet", image_size=32, weights=tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: expected weights of 'test_resnet', found: "):
        ADDE(settings, SCHEMA)


def test_weights_of_other_widths_are_told(tmp_path):
    state = {k: torch.zeros(3) for k in timm.create_model("test_resnet").state_dict()}
    save_file(state, tmp_path / "w.safetensors")
    settings = ModelSettings(backbone="test_resnet", weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"expected shape \(.*of 'test_resnet' .*, found \(3,\)"):
        ADDE(settings, SCHEMA)


def test_weights_come_from_a_file(tmp_path):
    source = timm.create_model("test_resnet", num_classes=10)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    settings = ModelSettings(
        backbone="test_resnet", image_size=32, weights=tmp_path / "w.safetensors"
    )
    model = ADDE(settings, SCHEMA)
    key = "layer1.0.conv1.weight"
    assert torch.equal(model.backbone.state_dict()[key], source.state_dict()[key])


def loaded(backbone, path, image_size, **options):
    settings = ModelSettings(
        backbone=backbone, image_size=image_size, width=4, hidden=4, weights=path,
        backbone_options=options,
    )  # fmt: skip
    return ADDE(settings, SCHEMA).backbone.eval()


def test_a_vits_weights_are_resized_to_the_recipes_image_size(tmp_path):
    source = timm.create_model("test_vit", num_classes=10, img_size=160).eval()
    nn.init.normal_(source.pos_embed)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    places = source.pos_embed.shape[1] - 1
    for size in (160, 96, 224):
        found = loaded("test_vit", tmp_path / "w.safetensors", size)
        assert found.pos_embed.shape[1] == places * size**2 // 160**2 + 1
        assert torch.equal(found.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
        # The token of no place stays, and a mean over places about does.
        assert torch.equal(found.pos_embed[:, 0], source.pos_embed[:, 0])
        means = [model.pos_embed[:, 1:].mean(1) for model in (found, source)]
        torch.testing.assert_close(*means, atol=0.15, rtol=0)
        assert found(torch.zeros(1, 3, size, size)).shape == (1, source.num_features)


def as_openclip(state):
    """A ViT of timm's under the names that OpenCLIP's checkpoints have, with its text tower."""
    named = {
        "visual.class_embedding": state["cls_token"][0, 0],
        "token_embedding.weight": torch.ones(2),
    }
    named["visual.positional_embedding"] = state["pos_embed"][0]
    named["visual.conv1.weight"] = state["patch_embed.proj.weight"]
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        if part in ("norm_pre", "norm"):
            named[f"visual.ln_{'pre' if part == 'norm_pre' else 'post'}.{kind}"] = value
        if name.startswith("blocks."):
            name = name.replace("blocks.", "visual.transformer.resblocks.").replace("norm", "ln_")
            name = name.replace("fc1", "c_fc").replace("fc2", "c_proj")
            name = name.replace("attn.proj", "attn.out_proj").replace("attn.qkv.", "attn.in_proj_")
            named[name] = value
    return named


def test_original_names_of_openclip_and_dinov2_load(tmp_path):
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    clip = timm.create_model("vit_base_patch32_clip_224", num_classes=0, **options)
    nn.init.normal_(clip.pos_embed)
    torch.save({"state_dict": as_openclip(clip.state_dict())}, tmp_path / "clip.pt")
    found = loaded("vit_base_patch32_clip_224", tmp_path / "clip.pt", 224, **options)
    for name, value in clip.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name

    dino = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=56, **options)
    nn.init.normal_(dino.pos_embed)
    state = dict(dino.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), state["pos_embed"]], 1)
    torch.save({**state, "mask_token": torch.zeros(1, 32)}, tmp_path / "dino.pth")
    found = loaded("vit_small_patch14_reg4_dinov2", tmp_path / "dino.pth", 56, **options)
    for name, value in dino.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    found = loaded("vit_small_patch14_reg4_dinov2", tmp_path / "dino.pth", 112, **options)
    assert found.pos_embed.shape == (1, 64, 32)


def test_weights_that_do_not_fit_are_named(tmp_path):
    source = timm.create_model("test_vit", num_classes=0)
    names = {f"encoder.{name}": value for name, value in source.state_dict().items()}
    save_file(names, tmp_path / "hf.safetensors")
    with pytest.raises(UserError, match=r"hf\.safetensors: .*found none for .*OpenCLIP"):
        loaded("test_vit", tmp_path / "hf.safetensors", 160)
    wide = timm.create_model("test_resnet", num_classes=0, channels=[8, 16, 32, 64])
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"wide.safetensors: .*: expected shape \(.*found \("):
        loaded("test_resnet", tmp_path / "wide.safetensors", 32)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    for kind in ("pth", "safetensors"):
        with pytest.raises(UserError, match=rf"page\.{kind}: expected weights of 'test_vit'"):
            loaded("test_vit", tmp_path / f"page.{kind}", 160)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"elsewhere": torch.zeros(1)}, tmp_path / "w.safetensors")
    settings = ModelSettings(backbone="test_resnet", weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w.safetensors.*unknown ones such as \['elsewhere'\]"):
        ADDE(settings, SCHEMA)
    missing = ModelSettings(backbone="test_resnet", weights=tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        ADDE(missing, SCHEMA)
