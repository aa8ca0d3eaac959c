"""The session's entrances: shapes, and a device that is there or refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from adde.errors import UserError
from adde.serving import session as sessions
from adde.serving.session import Session


def test_golden_vectors(bundle, session):
    golden = bundle.golden()
    embeddings, logits = session.encode(golden.images)
    np.testing.assert_allclose(embeddings, golden.embeddings, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-4, atol=1e-4)
    query = session.edit(embeddings, golden.indicator)
    np.testing.assert_allclose(query, golden.query, atol=1e-5)


def test_pictures_do_not_depend_on_their_batch(bundle, session):
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    together = session.encode(images)[0]
    alone = np.concatenate([session.encode(image[None])[0] for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 3, 32, 32), "uint8"), ((32, 32, 3), "uint8"), ((1, 32, 32, 3), "float32")],
)
def test_other_pictures_are_refused_with_expected_and_found(session, shape, kind):
    message = rf"images: expected uint8 of shape \(batch, 32, 32, 3\), found {kind} of shape"
    with pytest.raises(ValueError, match=message):
        session.encode(np.zeros(shape, kind))


def test_other_edits_are_refused_with_expected_and_found(session):
    embeddings, indicator = np.zeros((2, 3, 6), np.float32), np.zeros((2, 7), np.float32)
    with pytest.raises(ValueError, match=r"embeddings: expected float32 of shape \(batch, 3, 6\)"):
        session.edit(embeddings.reshape(2, 18), indicator)
    with pytest.raises(ValueError, match=r"indicator: expected float32 .*found int64"):
        session.edit(embeddings, indicator.astype(np.int64))
    with pytest.raises(ValueError, match="as many indicators as embeddings, found 1 and 2"):
        session.edit(embeddings, indicator[:1])


def test_a_device_that_was_not_obtained_is_an_error(monkeypatch, capsys, bundle):
    # What onnxruntime does on a machine without the device's libraries.
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    asked = []

    def open_session(path, options, providers):
        asked.extend(providers)
        return fallen_back

    def preload():
        asked.append("libraries")
        print("Failed to load libcudart")

    fake = SimpleNamespace(
        SessionOptions=SimpleNamespace, InferenceSession=open_session, preload_dlls=preload
    )
    monkeypatch.setattr(sessions, "onnxruntime", fake)
    with pytest.raises(UserError, match=r"to run on cuda .*found CPUExecutionProvider; check"):
        Session(bundle, "cuda")
    # Without torch nothing else loads the libraries that pip installed.
    assert asked == ["libraries", "CUDAExecutionProvider"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "libcudart" in printed.err


def test_a_graph_that_does_not_open_is_named(bundle, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"encoder\.onnx: onnxruntime cannot open it"):
        Session(replace(bundle, path=tmp_path))
