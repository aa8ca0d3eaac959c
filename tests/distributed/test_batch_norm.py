"""Compare batch norms over ranks with torch's batch norm on the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_ranks import free_port
from timm.layers import BatchNormAct2d
from torch import nn

from adde.training.config import Config, Data
from adde.training.strategies.batch_norm import synchronise

COUNT = 6


def build(momentum):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, momentum=momentum)
    nn.init.normal_(norm.weight)
    act = BatchNormAct2d(5, act_layer=nn.SiLU)
    return nn.Sequential(norm, nn.Conv2d(5, 5, 3), act, nn.Flatten(), nn.BatchNorm1d(5 * 3))


def images():
    random = torch.Generator().manual_seed(1)
    # The ranks' means differ, so local statistics would be wrong.
    return torch.randn(COUNT, 5, 5, 3, generator=random) + torch.arange(COUNT)[:, None, None, None]


def step(model, rows):
    """Return outputs, input gradients, and the model's gradients and buffers after one step."""
    x = images()[rows].requires_grad_()
    out = model(x)
    (out * torch.arange(COUNT)[rows, None]).square().sum().backward()
    return out.detach(), x.grad, [p.grad for p in model.parameters()], list(model.buffers())


def run_rank(rank, ranks, port, momentum, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    try:
        model = build(momentum)
        synchronise(model, Config(data=Data(batch_size=COUNT)), torch.device("cpu"))
        assert list(model.state_dict()) == list(build(momentum).state_dict())
        size = COUNT // ranks
        out, grad, grads, buffers = step(model, slice(rank * size, (rank + 1) * size))
        for g in grads:
            dist.all_reduce(g)
        everyone = [torch.empty_like(out) for _ in range(ranks)]
        dist.all_gather(everyone, out)
        of_input = [torch.empty_like(grad) for _ in range(ranks)]
        dist.all_gather(of_input, grad)
        eval_out = model.eval()(images())
        if rank == ranks - 1:
            found = torch.cat(everyone), torch.cat(of_input), grads, buffers, eval_out.detach()
            queue.put([[t.numpy() for t in f] if isinstance(f, list) else f.numpy() for f in found])
            queue.join()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("ranks", "momentum"), [(2, 0.1), pytest.param(3, None, marks=pytest.mark.slow)]
)
def test_ranks_normalise_as_one(ranks, momentum):
    context = mp.get_context("spawn")
    queue = context.JoinableQueue()
    arguments = (ranks, free_port(), momentum, queue)
    processes = mp.spawn(run_rank, arguments, ranks, join=False, start_method="spawn")
    found = queue.get(timeout=120)
    queue.task_done()
    while not processes.join():
        pass
    model = build(momentum)
    expected = [*step(model, slice(None)), model.eval()(images()).detach()]
    for one, other in zip(found, expected):
        for a, b in zip(one, other):
            torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-4, atol=1e-4)


def test_one_rank_and_local_norms_are_left_alone():
    model = build(0.1)
    synchronise(model, Config(batch_norm="sync"), torch.device("cpu"))
    assert type(model[0]) is nn.BatchNorm2d
