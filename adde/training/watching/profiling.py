"""Profile a few steps of each stage with torch.profiler: where a step's time goes.

Rank 0 writes to `run`/profile/, for each stage:

    <stage>.json    trace for chrome://tracing or ui.perfetto.dev
    <stage>.html    the page
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from adde.files import atomic_path, write_text
from adde.pages import render

PREFIX = "adde/"
PARTS = (
    "loading",
    "augmentation",
    "forward",
    "mining and losses",
    "collectives",
    "backward",
    "optimiser",
    "logging",
)
"""Parts of a step, in order. Collectives are those of labels, embeddings and losses; gradients are
communicated within the backward pass, overlapped with a GPU's computation."""

SKIPPED, WARM_UP, RECORDED = 3, 2, 6
"""Steps of a stage before the profiler starts, while it warms up, and that it records."""


def part(name: str) -> record_function:
    """Mark a part of a step in profiles; a context manager that costs little without a profile."""
    return record_function(PREFIX + name)


@dataclass
class Breakdown:
    """Mean milliseconds of a recorded step."""

    steps: int = 0
    """Number of recorded steps."""
    step: float = 0.0
    host: dict[str, float] = field(default_factory=dict)
    """Host time by part, without nested parts; `other` is the rest of the step."""
    device: dict[str, float] = field(default_factory=dict)
    """Time of GPU kernels by the part that launched them; empty on a CPU."""
    gradients: float = 0.0
    """Communication of gradients within `backward`, overlapped or not."""
    operators: list[tuple[str, float, int]] = field(default_factory=list)
    """The most expensive ones: name, milliseconds without their callees, calls."""


class Profile:
    """Profile a stage; does nothing unless `wanted`.

    Args:
        folder: `run`/profile.
        stage: its name.
        wanted: whether to record.
    """

    def __init__(self, folder: Path, stage: str, wanted: bool) -> None:
        self._folder, self._stage = folder, stage
        self._profiler: Any = None
        if not wanted:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(
                skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=RECORDED, repeat=1
            ),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._profiler.start()

    def step(self) -> None:
        """Mark the end of a step."""
        if self._profiler is not None:
            self._profiler.step()

    def close(self) -> None:
        """End the recording; write it even if the stage was too short."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: Any) -> None:
        found = break_down(profiler.events())
        if not found.step:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._folder / f"{self._stage}.json") as temporary:
            profiler.export_chrome_trace(str(temporary))
        page = render(
            Path(__file__).with_name("profile.html.j2"), **page_content(self._stage, found)
        )
        write_text(self._folder / f"{self._stage}.html", page)


def break_down(events: Any) -> Breakdown:
    """Sum up a profile's events; steps are the profiler's `ProfilerStep#` ranges."""
    on_host = [e for e in events if e.device_type == DeviceType.CPU]
    steps = [e for e in on_host if e.name.startswith("ProfilerStep")]
    if not steps:
        return Breakdown()
    main = steps[0].thread
    first = min(e.time_range.start for e in steps)
    last = max(e.time_range.end for e in steps)
    within = [e for e in on_host if first <= e.time_range.start < last]
    ranges = [e for e in within if e.name.startswith(PREFIX) and e.thread == main]
    per = 1e3 * len(steps)  # microseconds of all steps -> milliseconds of one
    found = Breakdown(steps=len(steps), step=(last - first) / per)
    spent: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    for one in ranges:
        name = one.name.removeprefix(PREFIX)
        spent[name] += _length(one)
        kernels[name] += one.device_time_total
        if outer := _smallest_around(one, ranges):
            spent[outer.name.removeprefix(PREFIX)] -= _length(one)
            kernels[outer.name.removeprefix(PREFIX)] -= one.device_time_total
    for root in within:
        # The backward pass runs in another thread.
        elsewhere = root.thread != main and root.cpu_parent is None and root.device_time_total
        if elsewhere and (outer := _smallest_around(root, ranges)):
            kernels[outer.name.removeprefix(PREFIX)] += root.device_time_total
    found.host = {name: spent[name] / per for name in PARTS if spent[name]}
    found.host["other"] = max(0.0, found.step - sum(found.host.values()))
    found.device = {name: kernels[name] / per for name in PARTS if kernels[name] > 0}
    backward = [e for e in ranges if e.name == PREFIX + "backward"]
    sent = [e for e in within if e.name.startswith("gloo:") and _smallest_around(e, backward)]
    # NCCL's host ranges end when the collective is queued. Other sums over ranks are small.
    sent += [
        e
        for e in events
        if e.device_type != DeviceType.CPU
        and re.match("ncclDevKernel_(AllReduce|ReduceScatter)", e.name)
        and first <= e.time_range.start < last
    ]
    found.gradients = sum(map(_length, sent)) / per
    own: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for one in within:
        if not one.name.startswith((PREFIX, "ProfilerStep")):
            own[one.name] += one.self_cpu_time_total
            calls[one.name] += 1
    found.operators = [
        (name, time / per, round(calls[name] / len(steps))) for name, time in own.most_common(12)
    ]
    return found


def page_content(stage: str, found: Breakdown) -> dict[str, Any]:
    """Return the variables of profile.html.j2."""
    names = [name for name in (*PARTS, "other") if name in found.host]
    rows = [
        {
            "name": name,
            "host": found.host[name],
            "share": found.host[name] / found.step,
            "device": found.device.get(name),
            "colour": number,
        }
        for number, name in enumerate(names)
    ]
    return {
        "stage": stage,
        "step": found.step,
        "steps": found.steps,
        "rows": rows,
        "gradients": found.gradients,
        "operators": found.operators,
        "on_gpu": bool(found.device),
    }


def _length(event: Any) -> float:
    return event.time_range.end - event.time_range.start


def _smallest_around(event: Any, ranges: list[Any]) -> Any:
    """Return the innermost other range that contains the event's start; None if there is none."""
    start = event.time_range.start
    around = [
        r
        for r in ranges
        if r is not event
        and r.time_range.start <= start < r.time_range.end
        and _length(r) >= _length(event)
    ]
    return min(around, key=_length, default=None)
