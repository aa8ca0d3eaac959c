"""Sums of a profile's events, with made-up GPU events."""

from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from adde.training.watching.profiling import break_down


def event(name, start, end, device=DeviceType.CPU, on_device=0, thread=1):
    return SimpleNamespace(
        name=name,
        device_type=device,
        thread=thread,
        time_range=SimpleNamespace(start=start, end=end),
        device_time_total=on_device,
        self_cpu_time_total=end - start,
        cpu_parent=None,
    )


def test_on_a_gpu_gradients_travel_as_long_as_their_kernels():
    events = [
        event("ProfilerStep#5", 0, 10_000),
        event("adde/forward", 1000, 3000, on_device=4000),
        event("adde/backward", 3000, 6000),
        event("nccl:all_reduce", 4000, 4010),  # queued
        event("ncclDevKernel_AllGather_RING_LL", 2000, 2500, DeviceType.CUDA),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 5000, 7500, DeviceType.CUDA),
        event("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 7500, 8000, DeviceType.CUDA),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 10_500, 12_000, DeviceType.CUDA),
    ]
    found = break_down(events)
    assert found.step == pytest.approx(10)
    assert found.gradients == pytest.approx(3)
    assert found.host == pytest.approx({"forward": 2, "backward": 3, "other": 5})
    assert found.device == pytest.approx({"forward": 4})


def test_on_the_cpu_gradients_travel_within_the_backward_pass():
    events = [
        event("ProfilerStep#5", 0, 10_000),
        event("adde/backward", 3000, 6000),
        event("gloo:all_reduce", 1000, 2000),
        event("gloo:all_reduce", 4000, 5500, thread=2),
    ]
    assert break_down(events).gradients == pytest.approx(1.5)
