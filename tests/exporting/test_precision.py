"""Encoders of fewer bits: what they lose, that the gate holds, and the memory's blocks."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from adde.bundle import Bundle
from adde.errors import UserError
from adde.exporting import export as exporting
from adde.exporting import graphs
from adde.exporting.check import check_bundle
from adde.exporting.export import export_bundle
from adde.exporting.graphs import BlockMemoryGraph, MemoryGraph, off_block_share, write_graphs
from adde.exporting.precision import (
    CALIBRATION_PICTURES,
    calibration_pictures,
    candidates,
    reduce_precision,
)
from adde.methods.adde.model import ADDE
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


@pytest.fixture(scope="module")
def index(tiny_shards):
    return ShardIndex.read(tiny_shards)


def export(model, index, out, precision, allow_drop=100.0):
    return export_bundle(model, index, out, None, {"run": "tiny"}, None, precision, allow_drop)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", 10), ("int8", 3)])
def test_a_bundle_of_fewer_bits(tiny_model, tiny_bundle, index, tmp_path, precision, kind):
    bundle = export(tiny_model, index, tmp_path / "b", precision)
    assert bundle.details["precision"] == precision
    weights = onnx.load(bundle.encoder).graph.initializer
    sizes = {k: sum(int(np.prod(w.dims)) for w in weights if w.data_type == k) for k in (1, kind)}
    assert sizes[kind] > 5 * sizes[1]
    onnx.checker.check_model(onnx.load(bundle.encoder), full_check=True)
    # The same interface: float32 outside, any batch, close to what float32 gives.
    images = np.stack([tiny_model.preprocess.load(s.picture) for s in iterate(index, "test")])
    whole, found = Session(Bundle.read(tiny_bundle)), Session(bundle)
    for batch in (1, 3, 24):
        expected, _, _ = whole.encode(images[:batch])
        embeddings, logits, _ = found.encode(images[:batch])
        assert embeddings.dtype == logits.dtype == np.float32
        error = np.abs(embeddings - expected).max() / np.abs(expected).max()
        assert 0 < error < {"fp16": 0.01, "int8": 0.2}[precision]
    _, rows = check_bundle(tmp_path / "b")
    assert all(row["max_error"] < 1e-3 for row in rows)  # its golden vectors are its own
    card = (tmp_path / "b" / "README.md").read_text()
    assert precision in card
    assert "colour | red, green, blue" in card


@pytest.fixture(scope="module")
def larger_graphs(tiny_model, tmp_path_factory):
    """Of a model of 64 px, whose pooling reads the batch's size; at 32 px none does."""
    folder = tmp_path_factory.mktemp("graphs")
    settings = replace(tiny_model.settings, image_size=64)
    write_graphs(ADDE(settings, tiny_model.schema).eval(), folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_pictures_go_into_a_cast_and_nowhere_else(larger_graphs, tmp_path, precision):
    """TensorRT takes uint8 into nothing else, not even Transpose or Shape (TensorRT 3985)."""
    shutil.copytree(larger_graphs, tmp_path, dirs_exist_ok=True)
    if precision != "fp32":
        pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
        reduce_precision(tmp_path, precision, candidates(precision)[0], [pictures])
    # As it is written, and as providers are handed it.
    written, handed = tmp_path / "encoder.onnx", tmp_path / "handed.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(handed)
    onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    for path in (written, handed):
        graph = onnx.load(path).graph
        assert {node.op_type for node in graph.node if "images" in node.input} == {"Cast"}
        assert any(node.op_type == "Shape" for node in graph.node)


def test_the_gate_of_fp16_is_float16_arithmetic_where_cuda_can_be_had(
    tiny_model, index, tmp_path, monkeypatch, capsys
):
    asked = []

    class Recorder(Session):
        def __init__(self, bundle, device="cpu"):
            asked.append(device)
            super().__init__(bundle)

    monkeypatch.setattr(exporting, "Session", Recorder)
    for lacking, device in (([], "cuda"), (["no driver"], "cpu")):
        monkeypatch.setattr(exporting, "missing", lambda *_, lacking=lacking: lacking)
        bundle = export(tiny_model, index, tmp_path / "b", "fp16")
        assert asked == [device, "cpu"]  # the gate, and golden vectors
        assert bundle.details["parity"]["device"] == device
        # What was not measured is told, in the card and on the terminal.
        told = "in float32 arithmetic: they show the effect of rounded weights"
        card = (tmp_path / "b" / "README.md").read_text()
        assert (told in card) is (told in capsys.readouterr().out) is (device == "cpu")
        asked.clear()
    assert exporting.gate_device("fp32") == exporting.gate_device("int8") == "cpu"


def test_numbers_beyond_float16_leave_nothing(tiny_model, index, tmp_path, monkeypatch):
    class Overflowing(Session):
        def encode(self, images):
            found = super().encode(images)
            found.embeddings[0, 0, 0] = np.nan
            return found

    monkeypatch.setattr(exporting, "Session", Overflowing)
    with pytest.raises(UserError, match=r"expected finite outputs .* infinities or NaN"):
        export(tiny_model, index, tmp_path / "b", "fp16")
    assert not (tmp_path / "b").exists()


def test_figures_that_drop_too_far_leave_nothing(tiny_model, index, tmp_path):
    with pytest.raises(UserError, match=r"int8: expected metrics .* at most -101 points below"):
        export(tiny_model, index, tmp_path / "b", "int8", allow_drop=-101.0)
    assert not (tmp_path / "b").exists()


def test_an_encoder_too_large_for_one_file_is_refused(tiny_model, index, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "EMBEDDED_BYTES", 1000)
    with pytest.raises(UserError, match=r"precision: expected fp32 .*, found fp16"):
        export(tiny_model, index, tmp_path / "b", "fp16")
    assert not (tmp_path / "b").exists()


def test_int8_keeps_to_the_backbone_where_the_heads_lose_too_much(
    tiny_model, index, tmp_path, monkeypatch, capsys
):
    tried = []
    require = exporting.parity.require_small_drop

    def refuse_the_first(report, allowed, precision):
        tried.append(report)
        require(report, allowed if len(tried) > 1 else -101.0, precision)

    monkeypatch.setattr(exporting.parity, "require_small_drop", refuse_the_first)
    bundle = export(tiny_model, index, tmp_path / "b", "int8")
    assert bundle.details["parts"] == "backbone"
    assert "backbone and heads: int8: expected" in capsys.readouterr().out
    types = {w.name: w.data_type for w in onnx.load(bundle.encoder).graph.initializer}
    heads = [kind for name, kind in types.items() if name.startswith("model.heads")]
    assert heads and set(heads) == {onnx.TensorProto.FLOAT}


def test_calibration_pictures_are_of_the_training_split(tiny_model, index):
    batches = calibration_pictures(index, tiny_model.preprocess)
    found = np.concatenate(batches)
    stored = np.stack([tiny_model.preprocess.load(s.picture) for s in iterate(index, "train")])
    assert len(stored) < CALIBRATION_PICTURES
    np.testing.assert_array_equal(found, stored)


@pytest.fixture
def block_model(tiny_model):
    """A model whose memory has nothing outside its blocks."""
    model = ADDE(tiny_model.settings, tiny_model.schema).eval()
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        model.memory.weight[model.memory.off_block] = 0
    return model


def test_blocks_alone_are_multiplied_where_there_is_nothing_else(
    block_model, tiny_model, index, tmp_path
):
    assert off_block_share(block_model) == 0
    weight, off = tiny_model.memory.weight.detach().numpy(), tiny_model.memory.off_block.numpy()
    share = np.sqrt((weight[off] ** 2).sum() / (weight**2).sum())
    assert off_block_share(tiny_model) == pytest.approx(share)
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.standard_normal((5, 3, 6), np.float32))
    indicator = torch.from_numpy(rng.integers(-1, 2, (5, 7)).astype(np.float32))
    dense = MemoryGraph(block_model)(embeddings, indicator)
    torch.testing.assert_close(BlockMemoryGraph(block_model)(embeddings, indicator), dense)

    write_graphs(block_model, tmp_path)
    sizes = {w.name: list(w.dims) for w in onnx.load(tmp_path / "memory.onnx").graph.initializer}
    assert [3, 3, 6] in sizes.values()  # attributes, most values, width
    assert [18, 7] not in sizes.values()
    assert export(block_model, index, tmp_path / "b", "fp32").details["memory"] == "blocks"


def test_a_share_above_the_stated_one_is_multiplied_in_full(block_model, tmp_path):
    with torch.no_grad():
        scale = block_model.memory.weight.norm() * 2 * graphs.BLOCK_SHARE
        block_model.memory.weight[6, 0] = scale
    write_graphs(block_model, tmp_path)
    graph = onnx.load(tmp_path / "memory.onnx").graph
    assert [18, 7] in [list(weight.dims) for weight in graph.initializer]


def test_a_changed_card_is_found(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("better than it is")
    with pytest.raises(UserError, match=r"README.md: expected .* bytes"):
        Bundle.read(tmp_path / "b")
