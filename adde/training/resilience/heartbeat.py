"""Heartbeats of all ranks, so that a run that fails or hangs names the rank at fault.

A failed collective reports only that a peer is gone, and a hanging one reports nothing for half an
hour. Here a thread on every rank publishes the rank's phase in the ranks' common store every two
seconds. Rank 0 watches all ranks and rank 1 watches rank 0; they abort the run once a rank is
silent or no rank makes progress. Processes that are killed are reported by the launcher.
"""

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from adde.distributed import gather_objects, rank, world_size
from adde.training.config import Limits

INTERVAL = 2.0
"""Seconds between two heartbeats."""

GRACE = 5.0
"""Seconds for the main thread to end by itself once the run is known to have failed."""

SUSPENDED_AFTER = 3
"""After this many missed polls, assume that this process was suspended (with the whole job, as by
`scontrol suspend`) and discard what it saw before."""

MAX_NAMED = 8
"""Ranks that a message names."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_COLLECTIVE = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|Connection (closed|reset)|peer")


class Verdict(NamedTuple):
    """Why the run is aborted."""

    text: str
    hanging: Sequence[int] = ()
    """Ranks that the others wait for; each prints where it hangs."""


class Location(NamedTuple):
    """A rank's process: where it runs, for messages, and which other processes it can see."""

    host: str
    pid: int
    pid_namespace: str


class Heartbeat:
    """Publish this rank's phase, and watch the other ranks; a single rank watches its own progress.

    Create and close it on all ranks. It ends the process with exit status 1 if the main thread
    keeps waiting in a collective after the run was aborted.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._interval = min(INTERVAL, limits.silence / 5) if limits.silence else INTERVAL
        self._step, self._phase, self._phases, self._parts = 0, "starting", 0, 0
        self._verdict: Verdict | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if world_size() == 1 and not limits.stall:
            return
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self._polled = time.monotonic()
        self._progress = (0, self._polled)
        if world_size() > 1:
            self._store = self._open_store()
            self._beats = 0
            self._beat()
            self._locations = [Location(*found) for found in gather_objects(tuple(_locate()))]
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    # Called by the main thread

    def set_phase(self, phase: str, step: int) -> None:
        """Record what this rank does from now on; all ranks enter phases in the same order."""
        self._step, self._phase, self._phases = step, phase, self._phases + 1

    def report_progress(self) -> None:
        """Record that part of a long phase is done; ranks may differ in the number of parts."""
        self._parts += 1

    def find_cause(self, error: BaseException) -> str | None:
        """Name the rank that made a collective fail; None if `error` is not from a collective.

        Waits a few seconds for the last message of a rank that ended with an error of its own.
        """
        self._closed.set()  # from here on the main thread ends by itself
        if world_size() == 1 or not _is_of_collective(error):
            return None
        deadline = time.monotonic() + GRACE
        while self._verdict is None and time.monotonic() < deadline:
            self._verdict = self._read_verdict()
            time.sleep(0.1)
        if self._verdict is None:
            self._verdict = self._find_behind(str(error).splitlines()[0][:200])
        return self._verdict.text

    def close(self, error: BaseException | None = None) -> None:
        """Stop the heartbeat; if this rank failed, tell the others the error."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(GRACE)  # it must not be inside torch when the interpreter ends
        if world_size() > 1 and error is not None and self._verdict is None:
            text = str(error) or type(error).__name__
            text = text.removeprefix(f"rank {rank()}: ")[:2000]
            with contextlib.suppress(dist.DistError):  # the store's host ended first
                self._publish(Verdict(f"rank {rank()} ended with: {text}"))

    # The thread

    def _open_store(self) -> dist.PrefixStore:
        # A connection of its own: torch's is locked while the main thread waits on it.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(30.0, self._limits.silence)),
        )
        # The launcher's store outlives a restart: keys of another start must not be read.
        return dist.PrefixStore(f"adde/{gather_objects(uuid.uuid4().hex)[0]}", store)

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            try:
                verdict = self._poll()
            except dist.DistError as error:
                verdict = Verdict(
                    "rank 0, or the launcher that holds the ranks' store, is gone or stopped: "
                    f"{str(error).splitlines()[0][:200]}"
                )
            if verdict is not None:
                self._abort(verdict)
                return

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{rank()}", json.dumps({"beat": self._beats, **self._own_state()}))

    def _poll(self) -> Verdict | None:
        """Publish a heartbeat; return why the run is to be aborted, if any rank found a reason."""
        if world_size() == 1:
            self._read([])
            return self._find_stalled()
        self._beat()
        if (verdict := self._read_verdict()) is not None:
            return verdict
        # If every rank watched all others, a thousand ranks would overload the store.
        self._read(range(1, world_size()) if rank() == 0 else [0] if rank() == 1 else [])
        return self._find_silent() or self._find_stalled()

    def _publish(self, verdict: Verdict) -> Verdict:
        """Tell all ranks why the run is aborted; return the verdict that came first."""
        return Verdict(*json.loads(self._store.compare_set("verdict", "", json.dumps(verdict))))

    def _read_verdict(self) -> Verdict | None:
        with contextlib.suppress(dist.DistError):  # the store's host ended first
            if self._store.check(["verdict"]):
                return Verdict(*json.loads(self._store.get("verdict")))
        return None

    def _own_state(self) -> dict[str, Any]:
        return {
            "phases": self._phases,
            "parts": self._parts,
            "step": self._step,
            "phase": self._phase,
        }

    def _read(self, watched: Sequence[int]) -> None:
        values = self._store.multi_get([f"beat/{r}" for r in watched]) if watched else []
        before, self._polled = self._polled, time.monotonic()
        suspended = self._polled - before > SUSPENDED_AFTER * self._interval
        if suspended:
            self._progress = self._progress[0], self._polled
        for other, value in zip(watched, values):
            state = json.loads(value)
            if suspended or other not in self._seen or self._seen[other][0] != state:
                self._seen[other] = state, self._polled

    def _find_silent(self) -> Verdict | None:
        for other, (state, since) in self._seen.items():
            silence = self._polled - since  # without a suspension since the last poll
            if not self._limits.silence or silence < self._limits.silence:
                continue
            host, pid, namespace = self._locations[other]
            stopped = namespace == self._locations[rank()].pid_namespace and _state(pid) == "T"
            cause = "stopped (SIGSTOP) and is now killed" if stopped else "stopped or unreachable"
            verdict = Verdict(
                f"rank {other} (pid {pid} on {host}, last {_describe(state)}) has sent no "
                f"heartbeat for {silence:.0f} s (limits.silence): its process or machine is "
                f"{cause}; continue with --resume"
            )
            if stopped:
                # Print first: the launcher ends this process as soon as the other one is gone.
                print(f"error: {verdict.text}", file=sys.stderr, flush=True)
            verdict = self._publish(verdict)
            if stopped:
                # Until it is gone its sockets stay open and its GPU's memory stays allocated.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return verdict
        return None

    def _find_stalled(self) -> Verdict | None:
        if rank() or not self._limits.stall:
            return None
        states = [state for state, _ in self._seen.values()] + [self._own_state()]
        progress = sum(state["phases"] + state["parts"] for state in states)
        if progress != self._progress[0]:
            self._progress = progress, self._polled
        stalled = self._polled - self._progress[1]
        if stalled < self._limits.stall:
            return None
        verdict = self._find_behind(f"no rank made progress for {stalled:.0f} s (limits.stall)")
        return self._publish(verdict) if world_size() > 1 else verdict

    def _find_behind(self, problem: str) -> Verdict:
        """Name the ranks that the others wait for."""
        try:
            self._read([other for other in range(world_size()) if other != rank()])
        except dist.DistError:
            return Verdict(f"{problem}; rank 0, or the launcher with the ranks' store, is gone")
        states = {other: state for other, (state, _) in self._seen.items()}
        states[rank()] = self._own_state()
        least = min(state["phases"] for state in states.values())
        behind = sorted(other for other, state in states.items() if state["phases"] == least)
        if len(behind) == len(states):
            same = f"all ranks are in the same phase: {_describe(states[rank()])}"
            return Verdict(f"{problem}; {same}", behind[:MAX_NAMED])
        behind = behind[:MAX_NAMED]
        named = "; ".join(f"rank {r} is {_describe(states[r])}" for r in behind)
        return Verdict(f"{problem}; {named}, and the others wait for it", behind)

    def _abort(self, verdict: Verdict) -> None:
        self._verdict = verdict
        # If its peer is gone, the main thread usually gets an error and ends in good order.
        if self._closed.wait(GRACE):
            return
        print(f"error: rank {rank()}: {verdict.text}", file=sys.stderr, flush=True)
        if rank() in verdict.hanging:
            faulthandler.dump_traceback()
        os._exit(1)


def _describe(state: dict[str, Any]) -> str:
    return f"{state['phase']} at step {state['step']}"


def _is_of_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_COLLECTIVE.search(str(error)))
    )


def _state(pid: int) -> str:
    """Linux's letter for a process's state: R, S, T (stopped), Z (zombie), ...; "" if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _locate() -> Location:
    """This process's location.

    Machines may share a host name (cloned ones are all "localhost") but not their kernel's boot
    id. Containers of one machine may share both and still number their processes separately.
    """
    namespace = f"{BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return Location(socket.gethostname(), os.getpid(), namespace)
