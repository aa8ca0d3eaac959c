"""Signs of life of all ranks, so that an end names the rank that caused it, and why.

A collective only tells that a peer is gone, or nothing for half an hour. Here a thread of every
rank writes to the ranks' common store what the rank is at, every other second; rank 0 reads them
all (rank 1 reads rank 0's), and ends the run once one has fallen silent or nothing moves.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from adde.distributed import gather_objects, rank, world_size
from adde.errors import UserError
from adde.training.config import Limits

INTERVAL = 2.0
"""Seconds between two signs of life."""

GRACE = 5.0
"""Seconds that a main thread has to end by itself once the run is known to have failed."""

PAUSE = 3
"""Intervals without a look at the others after which this process itself was stopped, a whole job
as a rule (`scontrol suspend`): what it has seen before says nothing about them."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_COLLECTIVE = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|Connection (closed|reset)|peer")


class Heartbeat:
    """This rank's signs of life, and a look at the others'; of a rank alone, whether it gets on.

    Made and closed on all ranks. It ends the process (exit status 1) where the main thread waits
    in a collective for a rank that will not come.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._interval = min(INTERVAL, limits.silence / 5) if limits.silence else INTERVAL
        self._step, self._phase, self._moves, self._parts = 0, "starting", 0, 0
        self._verdict: str | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if world_size() == 1 and not limits.stall:
            return
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self._looked = time.monotonic()
        self._moved = (0, self._looked)
        if world_size() > 1:
            self._oom_kills = _oom_kills()
            self._store = self._open_store()
            self._beats = 0
            self._beat()
            self._places: list[tuple[str, int, str]] = gather_objects(_place())
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()

    # What the main thread tells and asks

    def say(self, phase: str, step: int) -> None:
        """Says what this rank does from now on, all ranks in the same order."""
        self._step, self._phase, self._moves = step, phase, self._moves + 1

    def get_on(self) -> None:
        """Says that part of a long phase is done, of which ranks may have more or fewer."""
        self._parts += 1

    def explain(self, error: BaseException) -> BaseException:
        """A UserError that names the rank at fault, if `error` is about a peer; else `error`.

        It takes a few seconds to find out who is gone.
        """
        self._closed.set()  # from here on the main thread ends by itself
        if world_size() == 1 or not _of_a_collective(error):
            return error
        deadline = time.monotonic() + GRACE
        while self._verdict is None and time.monotonic() < deadline:
            self._verdict = self._find_ended()
            time.sleep(0.1)
        if self._verdict is None:
            self._verdict = self._find_behind(str(error).splitlines()[0][:200])
        return UserError(self._verdict)

    def close(self, error: BaseException | None = None) -> None:
        """Ends the signs; the others are told what this rank ended with, if it did not end well."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(GRACE)  # in torch's code it must not meet the interpreter's end
        if world_size() > 1 and error is not None and self._verdict is None:
            words = str(error) or type(error).__name__
            words = words.removeprefix(f"rank {rank()}: ")[:2000]
            with contextlib.suppress(dist.DistError):  # whoever held the store went first
                self._tell(f"rank {rank()} ended with: {words}")

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
        # The launcher's store outlives a start: keys of another must not be taken for this one's.
        return dist.PrefixStore(f"adde/{gather_objects(uuid.uuid4().hex)[0]}", store)

    def _live(self) -> None:
        while not self._closed.wait(self._interval):
            try:
                verdict = self._look()
            except dist.DistError as error:
                verdict = (
                    "rank 0, or the launcher that holds the ranks' store, is gone or stopped: "
                    f"{str(error).splitlines()[0][:200]}"
                )
            if verdict is not None:
                self._end(verdict)
                return

    def _beat(self) -> None:
        self._beats += 1
        state = {"beat": self._beats, "parts": self._parts, **self._own_state()}
        self._store.set(f"beat/{rank()}", json.dumps(state))

    def _look(self) -> str | None:
        """What ends the run, found by this rank or another."""
        if world_size() == 1:
            self._read([])
            return self._find_stalled()
        self._beat()
        if (ended := self._find_ended()) is not None:
            return ended
        # Only these look at many: a thousand ranks that each asked for a thousand were too much.
        self._read(range(1, world_size()) if rank() == 0 else [0] if rank() == 1 else [])
        found = self._find_silent() or self._find_stalled()
        return found and self._tell(found)

    def _tell(self, verdict: str) -> str:
        """Tells all ranks what ends the run, and returns what they were told first."""
        return self._store.compare_set("verdict", "", verdict).decode()

    def _own_state(self) -> dict[str, Any]:
        return {"moves": self._moves, "step": self._step, "at": self._phase}

    def _read(self, watched: Any) -> None:
        values = self._store.multi_get([f"beat/{r}" for r in watched]) if watched else []
        before, self._looked = self._looked, time.monotonic()
        paused = self._looked - before > PAUSE * self._interval
        if paused:
            self._moved = self._moved[0], self._looked
        for other, value in zip(watched, values):
            state = json.loads(value)
            if paused or other not in self._seen or self._seen[other][0] != state:
                self._seen[other] = state, self._looked

    def _find_ended(self) -> str | None:
        gone = [r for r in self._mates() if _state(self._places[r][1]) in ("", "Z")]
        found = None
        if gone:
            found = f"{self._name(gone[0])} has ended without a word: {self._why_killed()}"
        with contextlib.suppress(dist.DistError):  # whoever held the store went first
            if found is not None:
                return self._tell(found)  # its last words, where it has left any
            if self._store.check(["verdict"]):
                return self._store.get("verdict").decode()
        return found

    def _find_silent(self) -> str | None:
        now = self._looked  # a pause since then is not theirs
        for other, (_, since) in self._seen.items():
            if not self._limits.silence or now - since < self._limits.silence:
                continue
            pid = self._places[other][1]
            stopped = other in self._mates() and _state(pid) == "T"
            if stopped:
                # Its sockets stay open and its GPU's memory taken for as long as it is there.
                os.kill(pid, signal.SIGKILL)
            cause = "stopped (SIGSTOP); it was killed" if stopped else "stopped, or unreachable"
            return (
                f"{self._name(other)} has given no sign of life for {now - since:.0f} s "
                f"(limits.silence): its process or machine is {cause}; go on with --resume"
            )
        return None

    def _find_stalled(self) -> str | None:
        if rank() or not self._limits.stall:
            return None
        moves = sum(state["moves"] + state["parts"] for state, _ in self._seen.values())
        moves += self._moves + self._parts
        now = self._looked
        if moves != self._moved[0]:
            self._moved = moves, now
        if now - self._moved[1] < self._limits.stall:
            return None
        return self._find_behind(f"no rank got on for {now - self._moved[1]:.0f} s (limits.stall)")

    def _find_behind(self, what: str) -> str:
        """Names the ranks that the others wait for."""
        try:
            self._read([other for other in range(world_size()) if other != rank()])
        except dist.DistError:
            return f"{what}; and rank 0, or the launcher that holds the ranks' store, is gone"
        mine = self._own_state()
        states = {other: state for other, (state, _) in self._seen.items()} | {rank(): mine}
        least = min(state["moves"] for state in states.values())
        behind = sorted(other for other, state in states.items() if state["moves"] == least)
        if len(behind) == len(states):
            return f"{what}; all ranks are at the same: {_doing(mine)}"
        named = "; ".join(f"rank {r} is {_doing(states[r])}" for r in behind[:8])
        return f"{what}; {named}, and the others wait for it"

    def _end(self, verdict: str) -> None:
        self._verdict = verdict
        # With its peer gone a main thread mostly gets an error, and ends in good order.
        if self._closed.wait(GRACE):
            return
        print(f"error: rank {rank()}: {verdict}", file=sys.stderr, flush=True)
        os._exit(1)

    def _mates(self) -> list[int]:
        """The other ranks whose processes this one can see."""
        here = self._places[rank()][2]
        return [r for r, (_, _, there) in enumerate(self._places) if r != rank() and there == here]

    def _name(self, other: int) -> str:
        host, pid, _ = self._places[other]
        doing = f", last {_doing(self._seen[other][0])}" if other in self._seen else ""
        return f"rank {other} (pid {pid} on {host}{doing})"

    def _why_killed(self) -> str:
        if (kills := _oom_kills() - self._oom_kills) > 0:
            return (
                f"the kernel has killed {kills} processes here for lack of memory; lower "
                "data.workers or the ranks on this machine, then go on with --resume"
            )
        return (
            "it was killed, by hand or by the scheduler (-9), or by the kernel for lack of memory "
            "(dmesg tells); go on with --resume"
        )


def _doing(state: dict[str, Any]) -> str:
    return f"{state['at']} at step {state['step']}"


def _of_a_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_COLLECTIVE.search(str(error)))
    )


def _state(pid: int) -> str:
    """Linux's letter for a process: R, S, T (stopped), Z (ended), ...; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _place() -> tuple[str, int, str]:
    """Machine's name and process id, for messages; and who counts processes.

    Machines may share a name (cloned ones all are "localhost"), but not the id of their kernel's
    start; containers of one machine may share both, and yet count processes apart.
    """
    counted = f"{BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname(), os.getpid(), counted


def _oom_kills() -> int:
    """Processes that the kernel has killed in this container for lack of memory."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
    except OSError:
        return 0
    return next((int(n) for key, n in map(str.split, lines) if key == "oom_kill"), 0)
