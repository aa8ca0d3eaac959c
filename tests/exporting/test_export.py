"""What the exported graphs compute, and that the gate lets nothing else pass."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from adde.bundle import Bundle, Golden, Outputs
from adde.errors import UserError
from adde.exporting import export, graphs, parity
from adde.exporting.check import check_bundle
from adde.methods.adde.model import ADDE
from adde.model import ModelSettings
from adde.preprocess import Preprocess
from adde.schema import Attribute, Schema
from adde.scoring import Calibration
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


@pytest.fixture(scope="module")
def run(tiny_bundle):
    sessions = {
        name: onnxruntime.InferenceSession(tiny_bundle / name, providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "memory.onnx")
    }
    return lambda name, **inputs: sessions[name].run(None, inputs)


@pytest.mark.parametrize("batch", [1, 2, 3, 13, 65])
def test_the_encoder_graph_gives_what_torch_gives_from_raw_pictures(run, tiny_model, batch):
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    embeddings, logits, presence = run("encoder.onnx", images=images)
    # Not the model's own uint8 path: preprocessing is written out.
    mean, std = np.array(tiny_model.preprocess.mean), np.array(tiny_model.preprocess.std)
    pictures = torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = tiny_model.heads(tiny_model.backbone(pictures))
        expected_logits = tiny_model.classifiers(expected)
        weight, bias = tiny_model.presence.linear.weight, tiny_model.presence.linear.bias
        there = (expected * weight[:, :, 0]).sum(2) + bias[:, 0, 0]
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(presence, there, rtol=1e-4, atol=1e-4)
    assert embeddings.dtype == logits.dtype == np.float32
    assert np.ptp(embeddings, axis=0).max() > 0.1 or batch == 1


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_memory_graph_equals_the_formula(run, tiny_model, batch):
    rng = np.random.default_rng(batch)
    embeddings = rng.standard_normal((batch, 3, 6), dtype=np.float32)
    indicator = rng.integers(-1, 2, (batch, 7)).astype(np.float32)
    (query,) = run("memory.onnx", embeddings=embeddings, indicator=indicator)
    memory = tiny_model.memory.weight.detach().double().numpy()
    for row in range(batch):
        edited = embeddings[row].reshape(-1).astype(np.float64)
        for column in range(7):
            edited = edited + indicator[row, column] * memory[:, column]
        np.testing.assert_allclose(query[row], edited / np.sqrt((edited**2).sum()), atol=1e-6)
    assert query.shape == (batch, 18)
    assert query.dtype == np.float32


def test_the_bundle_says_what_it_is(tiny_bundle, tiny_model, tiny_shards):
    bundle = Bundle.read(tiny_bundle)
    assert bundle.schema == tiny_model.schema
    assert bundle.preprocess == tiny_model.preprocess
    assert bundle.width == 6
    content = json.loads((tiny_bundle / "bundle.json").read_text())
    assert (content["attributes"], content["values"], content["precision"]) == (3, 7, "fp32")
    assert content["source"] == {"run": "tiny"}
    assert content["retrieval"]["adde"] == {"hit@1": 0.5}
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert sorted(path.name for path in tiny_bundle.iterdir()) == sorted(
        ["bundle.json", *content["files"]]
    )
    report = content["parity"]
    assert list(report["errors_by_batch"]) == ["1", "2", "7", "64"]
    assert report["max_error"] <= 1e-4
    assert report["top30"]["queries"] > 50
    assert report["top30"]["identical"] == 1.0


def test_golden_vectors_are_real_pictures_seen_by_torch(tiny_bundle, tiny_model, tiny_shards):
    golden = Bundle.read(tiny_bundle).golden()
    load = tiny_model.preprocess.load
    stored = [load(s.picture) for s in iterate(ShardIndex.read(tiny_shards), "test")]
    assert len(golden.images) == 4
    assert all(any(np.array_equal(image, other) for other in stored) for image in golden.images)
    with torch.no_grad():
        embeddings, logits, _ = tiny_model.encode(torch.from_numpy(golden.images))
        edited = tiny_model.edit(embeddings, torch.from_numpy(golden.indicator)).flatten(1)
    np.testing.assert_allclose(golden.embeddings, embeddings, atol=1e-6)
    np.testing.assert_allclose(golden.logits, logits, atol=1e-6)
    np.testing.assert_allclose(golden.query, edited / edited.norm(dim=1, keepdim=True), atol=1e-6)
    assert np.abs(golden.indicator).sum() > 0


def test_graphs_are_plain_onnx_without_paths_of_the_machine(tiny_bundle):
    for name in ("encoder.onnx", "memory.onnx"):
        graph = onnx.load(tiny_bundle / name)
        onnx.checker.check_model(graph, full_check=True)
        assert {entry.domain for entry in graph.opset_import} <= {"", "ai.onnx"}
        content = (tiny_bundle / name).read_bytes()
        assert b"site-packages" not in content
        assert b"graphs.py" not in content


def test_attention_pooling_is_exported(tmp_path, tiny_model):
    torch.manual_seed(4)
    settings = ModelSettings(
        backbone="test_resnet", image_size=64, width=5, hidden=7, pooling="attention"
    )
    model = ADDE(settings, tiny_model.schema).eval()
    torch.nn.init.normal_(model.pooling.query)
    torch.nn.init.normal_(model.pooling.place)
    graphs.write_graphs(model, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 64, 64, 3)).to(torch.uint8)
        found = session.run(None, {"images": images.numpy()})
        for output, expected in zip(found, model.encode(images)):
            np.testing.assert_allclose(output, expected.detach(), atol=1e-5)


def test_a_volume_is_filled(tmp_path, tiny_model, tiny_shards, tiny_bundle):
    out = tmp_path / "volume"
    (out / "lost+found").mkdir(parents=True)  # as on a disk of its own, which cannot be renamed
    export.export_bundle(tiny_model, ShardIndex.read(tiny_shards), out, None, {"run": "x"}, None)
    assert {p.name for p in out.iterdir()} == {
        "lost+found",
        *(p.name for p in tiny_bundle.iterdir()),
    }
    assert list(tmp_path.iterdir()) == [out]


class Noisy(Session):
    """onnxruntime whose embeddings are off by 1 %."""

    def encode(self, images):
        found = super().encode(images)
        rng = np.random.default_rng(0)
        noise = 0.01 * np.abs(found.embeddings).max()
        noise = noise * rng.standard_normal(found.embeddings.shape, np.float32)
        return found._replace(embeddings=found.embeddings + noise)


def test_a_failed_gate_leaves_what_was_there(
    monkeypatch, tmp_path, capsys, tiny_model, tiny_shards, tiny_bundle
):
    monkeypatch.setattr(export, "Session", Noisy)
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    message = (
        r"no bundle is written; largest error: expected at most 0\.0001 .*found 0\.0\d+ "
        r"\((embeddings|query) at batch \d+\); identical top-30: .*found \d"
    )
    with pytest.raises(UserError, match=message):
        export.export_bundle(tiny_model, ShardIndex.read(tiny_shards), out, None, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "parity at batch 64: embeddings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "bundles",
            r"bundles: expected a new folder or one with nothing but a bundle.*found mine;",
        ),
        ("bundles/mine", r"mine: .* found README, a, b and 1 more; name another such as .*mine/x"),
        ("file", "file: expected a folder for the bundle, found a file"),
        (".", r"\.: expected a bundle's own folder"),
        ("bundles/..", r"\.\.: expected a bundle's own folder"),
    ],
)
def test_nothing_but_a_bundle_is_replaced(
    monkeypatch, tmp_path, tiny_model, tiny_shards, tiny_bundle, out, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "write_graphs", None)  # refused before work
    mine = shutil.copytree(tiny_bundle, tmp_path / "bundles" / "mine")
    for name in ("README", "a", "b", "c"):
        (mine / name).touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        export.export_bundle(
            tiny_model, ShardIndex.read(tiny_shards), Path(out), None, {"run": "x"}, None
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_too_large_for_a_graph_lie_beside_it_and_are_vouched_for(
    monkeypatch, tmp_path, tiny_model, tiny_shards, tiny_bundle
):
    monkeypatch.setattr(graphs, "EMBEDDED_BYTES", 1000)  # bytes; the memory has fewer
    out = tmp_path / "made"
    export.export_bundle(tiny_model, ShardIndex.read(tiny_shards), out, None, {}, None)
    data, inside = out / "encoder.onnx.data", tiny_bundle / "encoder.onnx"
    assert not (out / "memory.onnx.data").exists()
    assert data.stat().st_size > 10_000
    assert (out / "encoder.onnx").stat().st_size < inside.stat().st_size - 10_000
    moved = out.rename(tmp_path / "moved")
    assert len(check_bundle(moved)[1]) == 4
    data = moved / data.name
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.onnx\.data: damaged"):
        Bundle.read(moved)
    data.unlink()
    with pytest.raises(UserError, match=r"encoder\.onnx\.data: .* found no file"):
        Bundle.read(moved, verify=False)


def test_the_split_is_read_in_batches_in_stored_order(monkeypatch, tiny_model, tiny_shards):
    monkeypatch.setattr(parity, "BATCH_SIZES", (1, 7))
    index = ShardIndex.read(tiny_shards)
    batches = list(export.read_split(tiny_model.preprocess, index))
    assert [len(pictures) for pictures, _ in batches] == [7, 7, 7, 3]
    samples = list(iterate(index, "test"))
    stored = [tiny_model.preprocess.load(sample.picture) for sample in samples]
    assert np.array_equal(np.concatenate([pictures for pictures, _ in batches]), stored)
    labels = np.concatenate([labels for _, labels in batches])
    assert np.array_equal(labels, [sample.labels for sample in samples])


def test_shards_of_another_schema_are_refused_before_work(tmp_path, tiny_model, tiny_shards):
    index = ShardIndex.read(tiny_shards)
    other = ShardIndex(
        index.root, "other", Schema((Attribute("colour", ("red", "teal")),)), index.shards
    )
    with pytest.raises(UserError, match=r"the checkpoint and .* have different schemas"):
        export.export_bundle(tiny_model, other, tmp_path / "b", None, {}, None)
    assert not (tmp_path / "b").exists()


def test_an_empty_test_split_is_refused(tmp_path, tiny_model, tiny_shards):
    index = ShardIndex.read(tiny_shards)
    rest = tuple(shard for shard in index.shards if shard.split != "test")
    index = ShardIndex(index.root, "tiny", index.schema, rest)
    with pytest.raises(UserError, match="expected shards of split 'test', found none"):
        export.export_bundle(tiny_model, index, tmp_path / "b", None, {}, None)


@pytest.mark.slow
def test_the_validation_split_proves_it_as_well(monkeypatch, tmp_path, tiny_model, tiny_shards):
    monkeypatch.setattr(parity, "BATCH_SIZES", (1, 7))
    index = ShardIndex.read(tiny_shards)
    rest = tuple(shard for shard in index.shards if shard.split != "test")
    index = ShardIndex(index.root, "tiny", index.schema, rest)
    bundle = export.export_bundle(tiny_model, index, tmp_path / "b", None, {}, None, split="val")
    assert bundle.details["parity"]["split"] == "val"
    held = [tiny_model.preprocess.load(sample.picture) for sample in iterate(index, "val")]
    golden = Golden.read(bundle.path / "golden.npz").images
    assert all(any(np.array_equal(one, other) for other in held) for one in golden)


def test_a_nan_does_not_pass_the_gate():
    report = {
        "max_error": float("nan"),
        "errors_by_batch": {"1": {"query": 0.0, "logits": float("nan")}},
        "top30": {"identical": float("nan"), "queries": 3},
    }
    with pytest.raises(UserError, match=r"logits at batch 1.*identical top-30"):
        parity.require_parity(report)


def test_only_ties_may_change_places():
    # Items on a circle; 1 and 2 are the same to 1e-8, 3 is further.
    angles = np.array([0.0, 0.5, 0.5 + 1e-8, 0.7, 0.9])
    items = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None, :].astype(np.float32)
    query = np.array([[1.0, 0.0]] * 4, np.float32)
    ours = np.array([[0, 1, 2]] * 4)
    theirs = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [0, 1, 3]])
    found = parity.same_but_for_ties(query, items, ours, theirs)
    assert found.tolist() == [True, True, False, False]


def test_random_edits_take_away_the_seen_value():
    schema = Schema((Attribute("a", ("x", "y")), Attribute("b", ("p", "q", "r"))))
    logits = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    indicator = parity.random_edits(logits, schema)
    for row, scores in zip(indicator, logits):
        for columns in (slice(0, 2), slice(2, 5)):
            part = row[columns]
            assert part.sum() == 0
            if part.any():
                assert part[scores[columns].argmax()] == -1
                assert sorted(part[part != 0]) == [-1, 1]
    assert indicator.any(axis=1).mean() > 0.4


def test_the_preprocessing_is_the_backbones(tiny_bundle):
    # test_resnet says 0.5 where the usual ImageNet values stand: a default would be noticed.
    assert Bundle.read(tiny_bundle).preprocess == Preprocess(32, (0.5,) * 3, (0.5,) * 3, "pad")


PLAIN = Calibration((1.0, 1.0), (), 0.01, 2.0)


class Crowded:
    """A model whose items lie 1e-4 apart, all of it off by `error`."""

    def __init__(self, error):
        rng = np.random.default_rng(0)
        self.embeddings = 1 + 1e-4 * rng.standard_normal((24, 2, 170)).astype(np.float32)
        self.logits = rng.standard_normal((24, 5)).astype(np.float32)
        self.embeddings *= 1 + error * rng.standard_normal(self.embeddings.shape, np.float32)

    def encode(self, images):
        rows = images[:, 0, 0, 0]
        return Outputs(self.embeddings[rows], self.logits[rows], None)

    def edit(self, embeddings, indicator):
        # Far from every item, as edits by an untrained memory are.
        flat = embeddings.reshape(len(embeddings), -1).copy()
        flat[:, :5] += 20 * indicator
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def measure_crowded(error):
    schema = Schema((Attribute("a", ("x", "y")), Attribute("b", ("p", "q", "r"))))
    labels = np.random.default_rng(0).integers(0, 2, (24, 2))
    pictures = np.arange(24, dtype=np.uint8)[:, None, None, None]
    split = [(pictures[rows], labels[rows]) for rows in np.split(np.arange(24), [10, 20])]
    return parity.measure(Crowded(0), Crowded(error), split, schema, PLAIN)


@pytest.mark.parametrize(("error", "passes"), [(1e-7, True), (3e-5, False)])
def test_rounding_is_told_from_difference_where_items_are_crowded(error, passes):
    report = measure_crowded(error)
    assert report["max_error"] < 1e-3
    assert (report["top30"]["identical"] == 1.0) == passes
    assert report["top30"]["queries"] == 48
    # Ranked in float32, 42 queries change places here by the ranking's own rounding.
    assert report["top30"]["exchanged_ties"] <= 10 or not passes


def test_of_very_many_queries_some_are_asked(monkeypatch):
    monkeypatch.setattr(parity, "MAX_QUERIES", 30)
    report = measure_crowded(3e-5)
    assert report["top30"]["queries"] == 30
    assert report["top30"]["identical"] < 1
    assert report["drop"]["points"]["hit@30"] == 0  # 30 answers of 24 items
    assert report["drop"]["points"]["ndcg@30"] != 0
    # Both sides have the same logits, which alone rank matches.
    assert report["drop"]["points"]["match_ndcg@30"] == 0


def test_a_split_without_queries_claims_no_ranking(capsys):
    schema = Schema((Attribute("a", ("x", "y")), Attribute("b", ("p", "q", "r"))))
    labels = np.zeros((24, 2), np.int64)
    pictures = np.arange(24, dtype=np.uint8)[:, None, None, None]
    report = parity.measure(Crowded(0), Crowded(1e-7), [(pictures, labels)], schema, PLAIN)
    assert report["top30"] == {"queries": 0, "identical": None, "exchanged_ties": 0}
    parity.require_parity(report)
    with pytest.raises(UserError, match="largest error"):
        parity.require_parity({**report, "max_error": 0.1})
    export.print_report(report)
    printed = capsys.readouterr().out
    assert "parity of the top 30: not compared, the test split has no queries" in printed
    assert "100" not in printed
