"""A bundle is read as it was written, or refused by the name of the file that changed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from adde.bundle import BUNDLE_NAME, FILES, Bundle, Golden
from adde.errors import UserError
from adde.preprocess import Preprocess
from adde.schema import Attribute, Schema
from adde.scoring import Calibration

SCHEMA = Schema((Attribute("colour", ("red", "blau")), Attribute("größe", ("s", "m", "l"))))
DETAILS = {
    "precision": "fp32",
    "parts": "all",
    "memory": "dense",
    "opset": 20,
    "versions": {"torch": "1"},
    "parity": {"max_error": 1e-7},
    "retrieval": None,
    "source": {"run": "x"},
    "presence": False,
}


def golden():
    rng = np.random.default_rng(0)
    shapes = {"embeddings": (3, 2, 4), "logits": (3, 5), "indicator": (3, 5), "query": (3, 8)}
    shapes |= {"presence": (3, 2), "outfit": (3, 4, 5), "queries": (3, 4, 5), "style": (3, 6)}
    arrays = {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    pictures = rng.integers(0, 256, (2, 3, 9, 9, 3), dtype=np.uint8)
    return Golden(pictures[0], **arrays, drawn=pictures[1])


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "encoder.onnx").write_bytes(bytes(range(256)) * 20)
    (path / "memory.onnx").write_bytes(b"memory" * 50)
    golden().write(path / "golden.npz")
    (path / "README.md").write_text("# A model card" * 20)
    bundle = Bundle(path, SCHEMA, Preprocess(9, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), 4, DETAILS)
    bundle.write()
    return bundle


def change(path, **fields):
    content = json.loads((path / BUNDLE_NAME).read_text())
    (path / BUNDLE_NAME).write_text(json.dumps({**content, **fields}))


def test_what_was_written_is_read(written):
    assert Bundle.read(written.path) == written
    found = Bundle.read(written.path).golden()
    for name, array in vars(golden()).items():
        assert np.array_equal(getattr(found, name), array)
        assert getattr(found, name).dtype == array.dtype


def test_vectors_without_presence_are_read_as_such(written):
    without = replace(golden(), presence=None)
    without.write(written.path / "golden.npz")
    assert Golden.read(written.path / "golden.npz").outputs.presence is None


def test_a_calibration_is_read_as_written_and_needs_what_it_uses(written):
    calibration = Calibration((1.0, 2.0), (), 0.03, 2.0)
    replace(written, calibration=calibration).write()
    assert Bundle.read(written.path).calibration == calibration
    replace(written, calibration=replace(calibration, presence=(1.0, 0.0))).write()
    with pytest.raises(UserError, match="calibration: expected no presence divisors"):
        Bundle.read(written.path)
    replace(written, calibration=Calibration((1.0,), (), 0.03, 2.0)).write()
    with pytest.raises(UserError, match="calibration of 2 attributes, found one of 1"):
        Bundle.read(written.path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_byte_is_named_by_its_file(written, name, place):
    content = bytearray((written.path / name).read_bytes())
    content[place] ^= 1
    (written.path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged: expected sha256 \w+, found"):
        Bundle.read(written.path)
    assert Bundle.read(written.path, verify=False) == written


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shorter_file_is_named_even_unverified(written, name):
    content = (written.path / name).read_bytes()
    (written.path / name).write_bytes(content[:-1])
    message = rf"{name}: expected {len(content)} bytes, found {len(content) - 1}"
    with pytest.raises(UserError, match=message):
        Bundle.read(written.path, verify=False)
    (written.path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: expected .* found no file"):
        Bundle.read(written.path, verify=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 1}, "expected format 3, found 1"),
        ({"schema_hash": "0"}, "schema_hash: expected"),
        ({"attributes": 7}, "attributes: expected 2 .* found 7"),
        ({"width": 5}, "sha256: expected .*the file was changed"),
        ({"retrieval": {"hit@1": 1.0}}, "sha256: expected .*the file was changed"),
        ({"schema": {}}, "attributes"),
        ({"files": {}}, "sha256: expected"),
    ],
)
def test_a_changed_manifest_is_refused(written, fields, message):
    change(written.path, **fields)
    with pytest.raises(UserError, match=rf"bundle\.json: .*{message}"):
        Bundle.read(written.path)


def test_a_missing_field_is_named(written):
    content = json.loads((written.path / BUNDLE_NAME).read_text())
    del content["preprocess"]
    (written.path / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"bundle\.json: sha256: expected"):
        Bundle.read(written.path)
    del content["sha256"]
    (written.path / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"expected the fields of a bundle, .*'sha256'; export"):
        Bundle.read(written.path)


def test_another_folder_is_no_bundle(tmp_path, written):
    with pytest.raises(UserError, match=r"expected a bundle with bundle\.json, found none"):
        Bundle.read(tmp_path)
    (written.path / BUNDLE_NAME).write_text('{"format": 1')
    with pytest.raises(UserError, match=r"bundle\.json: expected JSON"):
        Bundle.read(written.path)


def test_the_hash_follows_every_file_and_not_the_place(written, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(written.path, copy)
    before = Bundle.read(copy)
    assert before.hash == Bundle.read(written.path).hash != ""
    (copy / "memory.onnx").write_bytes(b"other")
    Bundle(copy, SCHEMA, written.preprocess, 4, DETAILS).write()
    assert Bundle.read(copy).hash != before.hash
    # One that is replaced where it lies stays what it was to those who have read it.
    assert before.hash == Bundle.read(written.path).hash


def test_golden_vectors_of_another_kind_are_refused(written):
    np.savez(written.path / "golden.npz", images=np.zeros(3))
    with pytest.raises(UserError, match=r"golden\.npz: expected golden vectors, found: .*embedd"):
        written.golden()
    (written.path / "golden.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"golden\.npz: expected golden vectors"):
        written.golden()
