"""Sessions: input shapes, devices that are used or rejected."""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adde.errors import UserError
from adde.serving.onnx import providers
from adde.serving.onnx import session as sessions
from adde.serving.onnx.binding import Lane
from adde.serving.onnx.providers import onnxruntime
from adde.serving.onnx.session import Session


def test_golden_vectors(bundle, session):
    golden = bundle.golden()
    embeddings, logits, presence = session.encode(golden.images)
    np.testing.assert_allclose(embeddings, golden.embeddings, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(presence, golden.presence, rtol=1e-4, atol=1e-4)
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
def test_wrong_pictures_are_rejected_with_expected_and_found(session, shape, kind):
    message = rf"images: expected uint8 of shape \(batch, 32, 32, 3\), found {kind} of shape"
    with pytest.raises(ValueError, match=message):
        session.encode(np.zeros(shape, kind))


def test_wrong_edits_are_rejected_with_expected_and_found(session):
    embeddings, indicator = np.zeros((2, 3, 6), np.float32), np.zeros((2, 7), np.float32)
    with pytest.raises(ValueError, match=r"embeddings: expected float32 of shape \(batch, 3, 6\)"):
        session.edit(embeddings.reshape(2, 18), indicator)
    with pytest.raises(ValueError, match=r"indicator: expected float32 .*found int64"):
        session.edit(embeddings, indicator.astype(np.int64))
    with pytest.raises(ValueError, match="one batch size, found 2 embeddings, 1 indicator"):
        session.edit(embeddings, indicator[:1])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 31, 64, 65, 130])
def test_on_the_cpu_results_do_not_depend_on_the_batch(bundle, session, count):
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    together = session.encode(images)
    assert session.providers == ("CPUExecutionProvider",)
    for row in {0, count // 2, count - 1}:
        alone = session.encode(images[row : row + 1])
        for one, many in zip(alone, together):
            assert len(many) == count
            assert np.array_equal(one[0], many[row])


def test_an_empty_batch_has_empty_answers(session):
    embeddings, logits, presence = session.encode(np.empty((0, 32, 32, 3), np.uint8))
    assert (embeddings.shape, logits.shape) == ((0, 3, 6), (0, 7))
    assert presence.shape == (0, 3)


@pytest.fixture
def as_on_a_gpu(bundle, monkeypatch):
    """A session that takes the GPU's path: bound buffers, buckets and lanes, on the CPU."""
    real, runs = onnxruntime.InferenceSession, []

    class Pretender:
        def __init__(self, path, options, providers):
            self.session = real(path, options, providers=["CPUExecutionProvider"])
            self.asked = [name for name, _ in providers]

        def get_providers(self):
            return [*self.asked, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self):
            return [SimpleNamespace(ep_name=self.asked[0])]

        def __getattr__(self, name):
            return getattr(self.session, name)

    class Recorder(Lane):
        def run(self, inputs):
            runs.append({name: array.shape for name, array in inputs.items()})
            return super().run(inputs)

    monkeypatch.setattr(sessions, "missing", lambda device, _: [])
    monkeypatch.setattr(sessions, "preload", lambda devices: None)
    monkeypatch.setattr(sessions, "Lane", lambda session, graph, _: Recorder(session, graph, "cpu"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Pretender)
    return Session(bundle, "cuda"), runs


def test_bound_buffers_equal_plain_runs_for_any_batches(session, as_on_a_gpu):
    bound, runs = as_on_a_gpu
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (150, 32, 32, 3), dtype=np.uint8)
    kept = []
    for count in (3, 1, 64, 2, 65, 3, 33, 150, 1, 3):
        rows = draws.permutation(150)[:count]
        kept.append((rows, bound.encode(images[rows])))
    # Compared after all runs: results are copies that later runs do not overwrite.
    expected = session.encode(images)
    for rows, outputs in kept:
        for found, right in zip(outputs, expected):
            np.testing.assert_allclose(found, right[rows], rtol=1e-4, atol=1e-5)
    batches = [shape["images"][0] for shape in runs]
    assert batches == [4, 1, 64, 2, 64, 1, 4, 64, 64, 64, 32, 1, 4]
    assert bound.providers == ("CUDAExecutionProvider",)


def test_threads_that_share_a_session_get_their_own_answers(session, as_on_a_gpu):
    bound, _ = as_on_a_gpu
    images = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    expected = session.encode(images)[0]
    with ThreadPoolExecutor(8) as pool:
        parts = [slice(at, at + 1 + at % 5) for at in range(35)] * 3
        for part, (found, *_) in zip(parts, pool.map(lambda p: bound.encode(images[p]), parts)):
            np.testing.assert_allclose(found, expected[part], rtol=1e-4, atol=1e-5)


def test_warming_up_visits_every_bucket_on_every_lane(as_on_a_gpu):
    bound, runs = as_on_a_gpu
    bound.warm_up()
    assert Counter(shape["images"][0] for shape in runs if "images" in shape) == dict.fromkeys(
        sessions.BUCKETS, sessions.STREAMS
    )
    assert Counter(len(shape) for shape in runs) == {1: 14, 2: 14}


def test_a_device_that_lacks_a_library_is_an_error_that_names_it(monkeypatch, capsys, bundle):
    lacks = {"tensorrt": ["libnvinfer.so.10 is not found: pip install it"]}
    monkeypatch.setattr(sessions, "missing", lambda device, _: lacks.get(device, []))
    message = r"to run on tensorrt, which it cannot: libnvinfer\.so\.10 .*pip install it; or use"
    with pytest.raises(UserError, match=message):
        Session(bundle, ("tensorrt", "cpu"))
    # A fallback is reported, and health names the providers in use.
    session = Session(bundle, ("tensorrt", "cpu"), allow_fallback=True)
    assert session.providers == ("CPUExecutionProvider",)
    printed = capsys.readouterr()
    assert "warning: expected onnxruntime to run on tensorrt" in printed.err
    assert printed.out == ""


CPU, CUDA, TENSORRT = (providers.PROVIDERS[name] for name in ("cpu", "cuda", "tensorrt"))


def gives(monkeypatch, registered, given):
    """Fake what onnxruntime's sessions report."""
    found = SimpleNamespace(
        get_providers=lambda: registered,
        get_provider_graph_assignment_info=lambda: [SimpleNamespace(ep_name=ep) for ep in given],
    )
    monkeypatch.setattr(sessions, "missing", lambda device, _: [])
    monkeypatch.setattr(sessions, "preload", lambda devices: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: found)


def test_active_providers_come_from_onnxruntime(bundle):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(providers.RECORD, "1")
    opened = onnxruntime.InferenceSession(bundle.memory, options, providers=[CPU])
    assert providers.active_providers(opened) == (CPU,)


def test_a_device_not_used_by_onnxruntime_is_an_error(monkeypatch, bundle):
    # No library is missing, and still onnxruntime logs a line and uses the CPU.
    gives(monkeypatch, registered=[CPU], given=[CPU])
    for allow in (False, True):
        with pytest.raises(UserError, match=f"run on {CUDA}, found providers {CPU}, of which"):
            Session(bundle, "cuda", allow)


def test_a_device_without_nodes_is_an_error(monkeypatch, bundle):
    gives(monkeypatch, registered=[TENSORRT, CUDA, CPU], given=[CPU, CUDA])
    with pytest.raises(
        UserError, match=f"found providers {TENSORRT}, {CUDA}, {CPU}, of which {CUDA}"
    ):
        Session(bundle, ("tensorrt", "cuda", "cpu"))
    assert Session(bundle, ("cuda", "cpu")).providers == (CUDA, CPU)
    # Later devices run what is left, possibly nothing.
    gives(monkeypatch, registered=[TENSORRT, CUDA, CPU], given=[TENSORRT])
    assert Session(bundle, ("tensorrt", "cuda", "cpu")).providers == (TENSORRT,)


def test_an_old_onnxruntime_reports_its_registered_providers(monkeypatch, bundle):
    older = SimpleNamespace(get_providers=lambda: [CUDA, CPU])
    monkeypatch.setattr(sessions, "missing", lambda device, _: [])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: older)
    assert Session(bundle, "cuda").providers == (CUDA, CPU)


def driver(monkeypatch, code=0, newest=13020):
    def read_int(version):
        version._obj.value = newest

    found = SimpleNamespace(cuInit=lambda flags: code, cuDriverGetVersion=read_int)
    monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: found)


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("libnvinfer.so.10", r"libnvinfer\.so\.10 is not found: pip install 'tensorrt-cu1\d>=10"),
        ("libcudnn.so.9", r"libcudnn\.so\.9 is not found: pip install 'onnxruntime-gpu\[cuda,cud"),
        ("libcublas.so.13", r"libcublas\.so\.13 is not found: pip install 'onnxruntime-gpu\[cuda"),
    ],
)
def test_missing_libraries_are_reported_with_what_to_install(monkeypatch, library, expected):
    driver(monkeypatch)
    found = SimpleNamespace(stdout=f"{library}\n")
    monkeypatch.setattr(providers.subprocess, "run", lambda *_, **__: found)
    (reason,) = providers.missing("tensorrt")
    assert re.search(expected, reason)
    assert providers.missing("cpu") == []


def test_libraries_are_loaded_in_another_process(monkeypatch):
    driver(monkeypatch)
    monkeypatch.setattr(providers, "CUDNN", "libnone.so.9")
    loaded = "import sys, ctypes; sys.argv[2:] = sys.argv[-1:]" + providers.LOAD
    monkeypatch.setattr(providers, "LOAD", loaded)  # the provider itself needs a driver
    (reason,) = providers.missing("cuda")
    assert reason.startswith("libnone.so.9 is not found: pip install")
    monkeypatch.setattr(providers, "CUDNN", "libc.so.6")
    assert providers.missing("cuda") == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"code": 100}, r"driver finds no device \(cuInit: 100\)"),
        ({"newest": 11080}, r"driver supports CUDA up to 11\.8, .* CUDA 1\d: install a newer"),
    ],
)
def test_an_unsuitable_driver_is_reported(monkeypatch, settings, expected):
    driver(monkeypatch, **settings)
    monkeypatch.setattr(providers.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    (reason,) = providers.missing("cuda")
    assert re.search(expected, reason)


def test_a_missing_driver_is_reported_alone():
    try:
        providers.ctypes.CDLL(providers.DRIVER)
        pytest.skip("this machine has a driver")
    except OSError:
        pass
    for device in ("cuda", "tensorrt"):
        assert re.search(r"libcuda\.so\.1 is not found: install the", providers.missing(device)[-1])


def test_tensorrt_rejects_int8(monkeypatch):
    driver(monkeypatch)
    monkeypatch.setattr(providers.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    (reason,) = providers.missing("tensorrt", "int8")
    assert "zero points: use a bundle of --precision fp16" in reason
    assert providers.missing("cuda", "int8") == providers.missing("tensorrt", "fp16") == []


def test_libraries_that_pip_installed_are_loaded_and_nothing_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudart"))
    providers.preload(["cpu"])
    assert capsys.readouterr().err == ""
    providers.preload(["cuda", "cpu"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "libcudart" in printed.err


def test_tensorrt_keeps_float32_whole(monkeypatch):
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    providers.preload(["cuda"])
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    providers.preload(["tensorrt"])
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.fixture
def asked(as_on_a_gpu, monkeypatch, cache):
    """The options requested of providers, for the encoder and then the memory."""
    pretender, options_of = onnxruntime.InferenceSession, []

    def record(path, options, providers):
        options_of.append(dict(providers))
        return pretender(path, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    monkeypatch.setattr(sessions, "tensorrt_version", lambda: 101302)
    return options_of


def test_tensorrt_gets_every_batch_size_and_caches_its_engines(bundle, asked, cache):
    Session(bundle, ("tensorrt", "cuda"))
    encoder, memory = (options["TensorrtExecutionProvider"] for options in asked)
    assert encoder["trt_profile_max_shapes"] == "images:64x32x32x3"
    assert memory["trt_profile_min_shapes"] == "embeddings:1x3x6,indicator:1x7"
    assert encoder["trt_engine_cache_enable"] == "1"
    engines = Path(encoder["trt_engine_cache_path"])
    assert engines.parent == cache / "tensorrt" and engines.name.endswith("-101302")
    assert list(asked[0]) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_only_fp16_bundles_use_tensor_cores(bundle, asked, precision):
    half = replace(bundle, details={**bundle.details, "precision": precision})
    Session(half, ("tensorrt", "cuda"))
    enabled = "1" if precision == "fp16" else "0"
    for options in asked:
        # With a precision enabled TensorRT would choose types regardless of the graph.
        assert options["TensorrtExecutionProvider"]["trt_fp16_enable"] == "0"
        assert options["CUDAExecutionProvider"] == {
            "use_tf32": enabled,
            "cudnn_conv_algo_search": "HEURISTIC",
        }


def test_a_graph_that_does_not_open_is_named(bundle, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"encoder\.onnx: onnxruntime cannot open it"):
        Session(replace(bundle, path=tmp_path))


def test_concurrent_cpu_batches_use_half_the_threads_and_give_equal_bits(bundle):
    session = Session(bundle, threads=2)
    runner = session._encoder
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    alone = session.encode(images)
    used, whole, shared = [], runner._session, runner._shared

    def recording(name, of):
        def run(*arguments):
            used.append(name)
            return of.run(*arguments)

        return SimpleNamespace(run=run)

    runner._session, runner._shared = recording("whole", whole), recording("shared", shared)
    session.encode(images)
    lane = runner._lanes.get()  # another batch is under way
    together = session.encode(images)
    runner._lanes.put(lane)
    assert used == ["whole", "shared"]
    assert whole.get_session_options().intra_op_num_threads == 2
    assert shared.get_session_options().intra_op_num_threads == 1
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
