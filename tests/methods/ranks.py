"""A function on two ranks of this machine, forked from the server of tests/programs.py."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests import programs as _preloads  # noqa: F401 - names what the server imports
from tests.distributed.test_ranks import free_port


def run_rank(rank, function, counts, port, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(counts))
    torch.set_num_threads(1)
    try:
        found = function(counts, rank)
        if rank == len(counts) - 1:
            queue.put(found)
            queue.join()
    finally:
        dist.destroy_process_group()


def on_ranks(function, counts):
    """What `function(counts, rank)`, of a module, gives on the last rank; numpy arrays at most."""
    queue = mp.get_context("forkserver").JoinableQueue()
    arguments = (function, counts, free_port(), queue)
    processes = mp.start_processes(
        run_rank, arguments, len(counts), join=False, start_method="forkserver"
    )
    result = queue.get(timeout=120)
    queue.task_done()
    while not processes.join():
        pass
    return result
