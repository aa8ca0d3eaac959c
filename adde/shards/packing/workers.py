"""Execute jobs in worker processes and yield results in order, within bounded memory."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, get_context
from types import FrameType
from typing import Any, TypeVar

from adde.errors import UserError

AHEAD = 2
"""Jobs per worker that are running or waiting; this bounds memory."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield `work` of each job, in the order of `jobs`, which are consumed lazily.

    Close the generator if you leave it early, so that no worker outlives the files it works on.

    Args:
        work: Picklable, as are its jobs and results.
        jobs: Any number of jobs.
        workers: Number of processes; 1 works in this process, None uses one per core.

    Raises:
        UserError: A worker process was killed.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(work, jobs)
        return
    # spawn, because a fork would copy locks that other threads may hold.
    context = get_context("spawn")
    leash: Any
    leash, end = Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _exit_when_closed, (leash,))
    under_way: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with _signals_delayed():  # this may start a worker
                under_way.append(pool.submit(work, job))
            if len(under_way) >= AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; "
            f"try fewer --workers than {workers}"
        ) from None
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
        leash.close()


@contextmanager
def _signals_delayed() -> Generator[None, None, None]:
    """Delay Ctrl-C and SIGTERM until the body is done; processes started in it ignore Ctrl-C.

    Ctrl-C reaches the whole process group, and the parent handles it. It is blocked before workers
    start, because they would otherwise print tracebacks while they import.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    caught: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    # Children inherit the mask. For this process it is not enough: another thread, such as a
    # progress bar's, may receive the signal, and the handler then runs here.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handlers = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in caught:
            signal.raise_signal(number)


def _exit_when_closed(leash: Any) -> None:
    """Exit this worker, whatever it is doing, when the other end of `leash` is closed.

    The parent closes it when nobody waits for results any more, and the system does if the parent
    is killed. The pool's own pipes do not suffice: a worker holds both of their ends and would wait
    for ever.
    """

    def wait() -> None:
        with suppress(EOFError, OSError):
            leash.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
