"""Work done by worker processes and handed over in order, within bounded memory."""

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
"""Jobs per worker that are under way or wait to be taken; what bounds memory."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int | None = None
) -> Generator[Result, None, None]:
    """`work` of each job, in the order of `jobs`, which are taken as they are needed.

    Close it when it is left early, so that no worker outlives what it works on.

    Args:
        work: picklable, as are its jobs and results.
        jobs: any number.
        workers: processes; 1 works in this process, None is one per core.

    Raises:
        UserError: a worker process was killed.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(work, jobs)
        return
    # spawn: a fork copies locks that threads of this process may hold.
    context = get_context("spawn")
    leash: Any
    leash, end = Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _end_when_let_go, (leash,))
    under_way: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with _signals_held_back():  # a worker may be started here
                under_way.append(pool.submit(work, job))
            if len(under_way) >= AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; "
            f"try fewer --workers than {workers}"
        ) from None
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
        leash.close()


@contextmanager
def _signals_held_back() -> Generator[None, None, None]:
    """Ctrl-C and SIGTERM wait until the body is done; processes started in it see no Ctrl-C.

    It reaches the whole process group, and the process that started the others deals with it.
    Held back from before they start, as they would else complain while they import.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    # The mask is what children inherit. It is not enough for this process: another thread, such
    # as a progress bar's, may take the signal, and the handler then runs here all the same.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in caught:
            signal.raise_signal(number)


def _end_when_let_go(leash: Any) -> None:
    """Has this worker end, whatever it is at, when the other end of `leash` is closed.

    The process that started it closes it when nobody waits for the work any more, and the system
    does where that process was killed: a worker holds both ends of the pool's own pipes, and
    would wait at them for ever.
    """

    def wait() -> None:
        with suppress(EOFError, OSError):
            leash.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
