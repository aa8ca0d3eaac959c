"""A load generator: clients that send their next request as soon as they have an answer."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from adde.errors import UserError

HEADERS = {"content-type": "application/json"}


@dataclass
class Load:
    """Measurements of a load test, in the order of the answers."""

    clients: int
    seconds: list[float] = field(default_factory=list)
    """Duration of each request."""
    ended: list[float] = field(default_factory=list)
    answers: dict[int, set[bytes]] = field(default_factory=dict)
    """Distinct answers to each body: one if answers do not depend on the batch."""

    @property
    def per_second(self) -> float:
        """Answers per second while all clients were active."""
        edge = self.clients
        within = self.ended[edge - 1 : len(self.ended) - edge]
        return (len(within) - 1) / (within[-1] - within[0])

    def ms(self, percentile: float) -> float:
        """Return a percentile of the durations in milliseconds."""
        return 1000 * float(np.percentile(self.seconds, percentile))


def ask(url: str, bodies: Sequence[bytes], clients: int, count: int) -> Load:
    """Send `count` requests, cycling through the bodies. Raises UserError if one fails."""
    load = Load(clients)
    asyncio.run(_ask(url, bodies, load, iter(range(count))))
    return load


async def _ask(url: str, bodies: Sequence[bytes], load: Load, numbers: Iterator[int]) -> None:
    connector = aiohttp.TCPConnector(limit=load.clients)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def client() -> None:
            for number in numbers:
                start = time.perf_counter()
                body = number % len(bodies)
                async with session.post(url, data=bodies[body]) as response:
                    content = await response.read()
                end = time.perf_counter()
                if response.status != 200:
                    raise UserError(f"{url}: {response.status}: {content[:300]!r}")
                load.seconds.append(end - start)
                load.ended.append(end)
                load.answers.setdefault(body, set()).add(content)

        await asyncio.gather(*(client() for _ in range(load.clients)))


@contextmanager
def cpu_seconds(groups: Mapping[str, Sequence[psutil.Process]]) -> Iterator[dict[str, float]]:
    """Yield a dict that has, after the body, the CPU seconds used by groups of processes."""
    before = {name: _cpu_seconds(processes) for name, processes in groups.items()}
    taken: dict[str, float] = {}
    yield taken
    taken |= {name: _cpu_seconds(group) - before[name] for name, group in groups.items()}


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def wait_until_up(url: str, process: psutil.Popen, log: Path, seconds: float = 120) -> None:
    """Wait until `url` answers 200. Raises UserError if its process ends or the time is over."""
    asyncio.run(_wait(url, process, log, time.monotonic() + seconds))


async def _wait(url: str, process: psutil.Popen, log: Path, end: float) -> None:
    async with aiohttp.ClientSession() as session:
        while process.poll() is None and time.monotonic() < end:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.01)
    last = log.read_text().strip().splitlines()[-1:]
    raise UserError(f"{url}: expected an answer, found none; its log ends with: {last}")
