"""Run an onnxruntime session with input and output buffers that stay on the device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.serving.onnx.providers import onnxruntime

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """Input and output rows: name to (shape without the batch, dtype)."""

    inputs: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
    outputs: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]


@dataclass
class Lane:
    """Runs one batch at a time; several lanes of one session run concurrently, each on a stream.

    Every batch size has its own buffers and binding, made once. Reusing a binding for several
    shapes returns stale or partial outputs (onnxruntime 10103, 9162, 10299).
    """

    session: Any
    graph: Graph
    device: str
    """onnxruntime's name for the buffers' device: "cuda" or "cpu"."""
    _bound: dict[int, tuple[Any, dict[str, Any], dict[str, Any]]] = field(
        default_factory=lambda: {}
    )

    def run(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Run inputs of one batch size; return copies of the outputs in the graph's order."""
        batch = len(next(iter(inputs.values())))
        binding, buffers, outputs = self._bound.get(batch) or self._bind(batch)
        for name, array in inputs.items():
            buffers[name].update_inplace(np.ascontiguousarray(array))
        # The copies are complete, and this call waits for its own stream. A binding's
        # synchronize_inputs and synchronize_outputs would wait for all streams of the device, and
        # hold the GIL meanwhile.
        self.session.run_with_iobinding(binding, _synchronous_run())
        # On the CPU numpy() may be a view of the buffer, which the next run overwrites.
        return tuple(np.array(outputs[name].numpy()) for name in self.graph.outputs)

    def _bind(self, batch: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        binding = self.session.io_binding()
        inputs, outputs = (
            {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    [batch, *shape], kind, self.device, 0
                )
                for name, (shape, kind) in side.items()
            }
            for side in (self.graph.inputs, self.graph.outputs)
        )
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        self._bound[batch] = binding, inputs, outputs
        return self._bound[batch]


def _synchronous_run() -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "0")
    return options
