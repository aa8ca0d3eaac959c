"""A CUDA device gives the results of the CPU; `make gpu-check` runs these tests."""

import pytest
import torch

from adde.distributed import RankRows
from adde.loading.augment import Augmentation, augment, draw
from adde.mining import draw_edits, mine, uniform

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # in a rehearsal


@pytest.mark.parametrize("items", [1, 3, 127, 513])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_mining_equals_the_cpu(items, dtype, rtol):
    """`auto` takes tiles for float64 and kernels for other dtypes.

    Distances are exact in every dtype: in another order of sums rounding would else choose another
    negative here and there.
    """
    draws = torch.Generator().manual_seed(items)
    vectors = (torch.randint(-8, 9, (4, items, 64), generator=draws) / 64).to(dtype)
    labels = torch.randint(-1, 6, (4, items), generator=draws)
    results = []
    for device in ("cpu", DEVICE):
        leaf = vectors.to(device, copy=True).requires_grad_()
        mined = mine(leaf, labels.to(device), margin=0.5)
        mined.loss_sum.sum().backward()
        results.append((mined, leaf.grad.cpu().double()))
    (one, one_grad), (two, two_grad) = results
    assert torch.equal(one.pairs, two.pairs.cpu())
    torch.testing.assert_close(one.loss_sum, two.loss_sum.cpu(), rtol=rtol, atol=rtol)
    scale = float(one_grad.abs().max())
    torch.testing.assert_close(one_grad, two_grad, rtol=rtol, atol=rtol * scale)


EVERYTHING = Augmentation(
    crop=0.5, erase=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, blur=1.0
)


@pytest.mark.parametrize("settings", [Augmentation(), EVERYTHING, Augmentation(jpeg=40)])
def test_augmentation_equals_the_cpu(settings):
    # Smooth pictures: one value more or less at an edge of a JPEG's step changes a whole block.
    waves = torch.linspace(0, 3, 32)[:, None] + torch.linspace(0, 2, 32)
    images = (127 + 100 * torch.sin(waves[..., None] + torch.arange(3))).to(torch.uint8)
    images = images.expand(5, -1, -1, -1).contiguous()
    draws = draw(images, settings, 11, RankRows.equal(5))
    expected = augment(images, draws, settings)
    there = images.to(DEVICE)
    for mode in ("default", "error"):  # the first call copies constants to the device
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
        try:
            drawn = draw(there, settings, 11, RankRows.equal(5))
            found = augment(there, drawn, settings)
        finally:
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(drawn.cpu(), draws)
    apart = (found.cpu() - expected).abs()
    assert apart.mean() < 1e-2
    assert settings.jpeg < 100 or apart.max() < 0.1


def test_draws_and_edits_equal_the_cpus_to_the_last_bit():
    labels = torch.randint(-1, 4, (300, 5), generator=torch.Generator().manual_seed(1))
    offsets = 4 * torch.arange(5)
    results = []
    for device in ("cpu", DEVICE):
        items, own = torch.arange(300, device=device), labels.to(device)
        edits = draw_edits(own, own, items, 2**61 + 5, offsets.to(device))
        results.append((*edits, uniform(2**61 + 7, items, 4)))
    for one, other in zip(*results):
        assert torch.equal(one, other.cpu())
