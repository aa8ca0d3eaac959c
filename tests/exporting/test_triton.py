"""The model repository, read as Triton reads it: by protobuf, against the graphs themselves.

The messages below are those fields of Triton's model_config.proto that may appear; any other field
or a value of another kind is an error of the parser.
"""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from adde.bundle import Bundle
from adde.serving.onnx.session import BUCKETS, Session

PROGRAM = Path(__file__).parents[2] / "export" / "to_triton.py"
F = descriptor_pb2.FieldDescriptorProto
MESSAGES = {
    "Tensor": [
        ("name", 1, F.TYPE_STRING),
        ("data_type", 2, "DataType"),
        ("dims*", 3, F.TYPE_INT64),
    ],
    "Group": [("name", 1, F.TYPE_STRING), ("kind", 4, "Kind"), ("count", 2, F.TYPE_INT32)],
    "Batching": [
        ("preferred_batch_size*", 1, F.TYPE_INT32),
        ("max_queue_delay_microseconds", 2, F.TYPE_UINT64),
    ],
    "Value": [("string_value", 1, F.TYPE_STRING)],
    "Parameter": [("key", 1, F.TYPE_STRING), ("value", 2, "Value")],
    "Option": [("key", 1, F.TYPE_STRING), ("value", 2, F.TYPE_STRING)],
    "Accelerator": [("name", 1, F.TYPE_STRING), ("parameters*", 2, "Option")],
    "Accelerators": [("gpu_execution_accelerator*", 1, "Accelerator")],
    "Optimization": [("execution_accelerators", 5, "Accelerators")],
    "Config": [
        ("name", 1, F.TYPE_STRING),
        ("backend", 17, F.TYPE_STRING),
        ("max_batch_size", 4, F.TYPE_INT32),
        ("input*", 5, "Tensor"),
        ("output*", 6, "Tensor"),
        ("instance_group*", 7, "Group"),
        ("default_model_filename", 8, F.TYPE_STRING),
        ("dynamic_batching", 11, "Batching"),
        ("optimization", 10, "Optimization"),
        ("parameters*", 14, "Parameter"),
    ],
}
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}
NUMPY = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}


def config_class():
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = F.LABEL_REPEATED if field.endswith("*") else F.LABEL_OPTIONAL
            added = message.field.add(name=field.strip("*"), number=number, label=label)
            if isinstance(kind, str):
                added.type = F.TYPE_ENUM if kind in ENUMS else F.TYPE_MESSAGE
                added.type_name = f".t.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Config"))


def program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["to_triton.py", *map(str, arguments)])
    runpy.run_path(str(PROGRAM), run_name="__main__")


def read(repository, name):
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, config_class()())


def tensors(side):
    enum = {number: name for name, number in ENUMS["DataType"].items()}
    return [(t.name, NUMPY[enum[t.data_type]], ["batch", *t.dims]) for t in side]


def of_session(side):
    return [(t.name, t.type, ["batch", *t.shape[1:]]) for t in side]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_configs_say_what_the_graphs_take_and_give(monkeypatch, tmp_path, tiny_bundle, kind):
    out = tmp_path / "repository"
    program(monkeypatch, "--bundle", tiny_bundle, "--out", out, "--kind", kind)
    assert sorted(path.name for path in out.iterdir()) == ["adde_encoder", "adde_memory"]
    for name in ("adde_encoder", "adde_memory"):
        config = read(out, name)
        assert (config.name, config.backend) == (name, "onnxruntime")
        graph = out / name / "1" / config.default_model_filename
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        assert tensors(config.input) == of_session(session.get_inputs())
        assert tensors(config.output) == of_session(session.get_outputs())
        assert all(isinstance(t.shape[0], str) for t in session.get_inputs())  # the batch is free
        assert config.max_batch_size == BUCKETS[-1]
        sizes = list(config.dynamic_batching.preferred_batch_size)
        assert sizes == sorted(sizes) and sizes[-1] == BUCKETS[-1] and set(sizes) <= set(BUCKETS)
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        (group,) = config.instance_group
        assert (group.kind, group.count) == ((2, 1) if kind == "cpu" else (1, 2))
        parameters = {p.key: p.value.string_value for p in config.parameters}
        assert parameters["bundle"] == Bundle.read(tiny_bundle).hash
        assert parameters.get("cudnn_conv_algo_search") == ("1" if kind == "gpu" else None)
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [(c.name, {o.key: o.value for o in c.parameters}) for c in cuda] == (
            [("cuda", {"use_tf32": "0"})] if kind == "gpu" else []
        )


def test_the_graphs_of_the_repository_answer_as_the_bundle(monkeypatch, tmp_path, tiny_bundle):
    program(monkeypatch, "--bundle", tiny_bundle, "--out", tmp_path / "repository")
    bundle = Bundle.read(tiny_bundle)
    images = bundle.golden().images
    session = onnxruntime.InferenceSession(
        tmp_path / "repository" / "adde_encoder" / "1" / "encoder.onnx",
        providers=["CPUExecutionProvider"],
    )
    found = session.run(["embeddings", "logits"], {"images": images})
    for ours, theirs in zip(Session(bundle).encode(images), found):
        assert np.array_equal(ours, theirs)


def test_weights_beside_the_graph_come_along(monkeypatch, tmp_path, tiny_bundle):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = onnx.load(folder / "encoder.onnx")
    onnx.save(
        graph, folder / "encoder.onnx", save_as_external_data=True, location="encoder.onnx.data"
    )
    read_before = Bundle.read(tiny_bundle)
    Bundle(
        folder,
        read_before.schema,
        read_before.preprocess,
        read_before.width,
        read_before.details,
    ).write()
    program(monkeypatch, "--bundle", folder, "--out", tmp_path / "repository")
    graph = tmp_path / "repository" / "adde_encoder" / "1" / "encoder.onnx"
    assert graph.with_name("encoder.onnx.data").exists()
    onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def test_a_repository_is_replaced_and_anything_else_is_not(
    monkeypatch, capsys, tmp_path, tiny_bundle
):
    out = tmp_path / "repository"
    for _ in range(2):
        program(monkeypatch, "--bundle", tiny_bundle, "--out", out)
    (out / "mine").mkdir()
    for arguments, message in (
        (("--out", out), "found mine"),
        (("--out", tmp_path / "new", "--instances", 0), "expected 1 to 64 instances"),
    ):
        with pytest.raises(SystemExit):
            program(monkeypatch, "--bundle", tiny_bundle, *arguments)
        assert message in capsys.readouterr().err
    assert (out / "mine").exists() and not (tmp_path / "new").exists()
