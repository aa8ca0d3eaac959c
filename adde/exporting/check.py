"""Check that a bundle is undamaged and reproduces its golden vectors. Does not import torch."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adde.bundle import ENCODER, MEMORY, Bundle, Golden
from adde.errors import UserError, untrusted
from adde.exporting.parity import BATCH_SIZES, pictures_differ, relative_error
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session

TIMED_CALLS = 5
"""Per batch size, after one warm-up call."""


def check_bundle(
    path: Path, devices: Sequence[Device] = ("cpu",)
) -> tuple[Bundle, list[dict[str, Any]]]:
    """Verify hashes, schema, opset, dimensions, and the golden vectors at every batch size.

    Args:
        path: the bundle's folder.
        devices: run the bundle on each, one after another.

    Returns:
        The bundle, and for each device and batch size a row of `device`, `batch`, `max_error`
        (relative to scale), and median `encoder_ms` and `memory_ms`; for a device other than the
        CPU that fails, one row of `device` and `failure`.

    Raises:
        UserError: names the file and what is wrong with it, or the failure on the CPU.
    """
    bundle = Bundle.read(path)
    for name in (ENCODER, MEMORY, *bundle.optional_graphs):
        _check_opset(bundle, path / name)
    golden = bundle.golden()
    _check_dimensions(bundle, golden)
    rows: list[dict[str, Any]] = []
    for device in devices:
        try:
            session = Session(bundle, device)
            found = [_check_batch(bundle, session, golden, size) for size in BATCH_SIZES]
        except UserError as error:
            if device == "cpu":
                raise
            found = [{"failure": str(error)}]
        rows += [{"device": device, **row} for row in found]
    return bundle, rows


def _check_opset(bundle: Bundle, path: Path) -> None:
    with untrusted(path, "an ONNX graph"):
        imports = onnx.load(path, load_external_data=False).opset_import
    found = next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), None)
    if found != bundle.details["opset"]:
        raise UserError(f"{path}: expected opset {bundle.details['opset']}, found {found}")


def _check_dimensions(bundle: Bundle, golden: Golden) -> None:
    attributes, values = len(bundle.schema.sizes), bundle.schema.num_values
    side, count = bundle.preprocess.size, len(golden.images)
    expected = {
        "images": (count, side, side, 3),
        "embeddings": (count, attributes, bundle.width),
        "logits": (count, values),
        "indicator": (count, values),
        "query": (count, attributes * bundle.width),
    }
    if bundle.details["presence"]:
        expected["presence"] = (count, attributes)
    if bundle.category is not None:
        categories = bundle.schema.sizes[bundle.category]
        expected |= dict.fromkeys(("outfit", "queries"), (count, categories, values))
    if bundle.drawing is not None:
        style, size = bundle.drawing
        expected |= {"style": (count, style), "drawn": (count, size, size, 3)}
    for name, shape in expected.items():
        found = np.shape(getattr(golden, name))
        if found != shape:
            raise UserError(f"{bundle.path}: golden {name}: expected shape {shape}, found {found}")


def _check_batch(bundle: Bundle, session: Session, golden: Golden, size: int) -> dict[str, Any]:
    rows = np.arange(size) % len(golden.images)
    images, indicator = golden.images[rows], golden.indicator[rows]
    with untrusted(bundle.path, f"onnxruntime to run batches of {size}"):
        outputs = session.encode(images)
        query = session.edit(outputs.embeddings, indicator)
    found = {**outputs._asdict(), "query": query}
    if outputs.presence is None:
        del found["presence"]
    if golden.outfit is not None and bundle.category is not None:
        found["queries"] = session.complete(golden.outfit[rows])
    if golden.style is not None and golden.drawn is not None:
        found["style"] = session.style(images)
        edited = golden.query.reshape(golden.embeddings.shape)[rows]
        drawn = session.draw(edited, golden.style[rows])
        if problem := pictures_differ(golden.drawn[rows], drawn):
            raise UserError(
                f"{bundle.path}: pictures at batch {size}: found others than the golden ones: "
                f"{problem}"
            )
    errors: dict[str, float] = {}
    for name, array in found.items():
        expected = getattr(golden, name)[rows]
        if array.shape != expected.shape:
            raise UserError(
                f"{bundle.path}: {name} at batch {size}: expected shape {expected.shape}, found "
                f"{array.shape}"
            )
        errors[name] = relative_error(expected, array)
        allowed = bundle.details["parity"]["golden_error_allowed"]
        if not errors[name] <= allowed:
            raise UserError(
                f"{bundle.path}: {name} at batch {size}: expected the golden vectors within "
                f"{allowed:g} of their scale, found an error of {errors[name]:.3g}"
            )
    return {
        "batch": size,
        "max_error": max(errors.values()),
        "encoder_ms": _milliseconds(lambda: session.encode(images)),
        "memory_ms": _milliseconds(lambda: session.edit(outputs.embeddings, indicator)),
    }


def _milliseconds(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
