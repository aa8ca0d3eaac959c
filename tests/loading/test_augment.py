"""Augmentation against plain slicing."""

import torch

from adde.loading.augment import Augmentation, augment


def pictures():
    return torch.randint(0, 256, (3, 8, 8, 3), generator=torch.manual_seed(0)).to(torch.uint8)


def draws(flip, x, y, scale=0.5):
    return torch.tensor([[flip, x, y, scale]]).expand(3, -1)


def channels_first(images):
    return images.permute(0, 3, 1, 2).float()


def test_the_middle_of_every_draw_changes_nothing():
    found = augment(pictures(), draws(0.9, 0.5, 0.5), Augmentation())
    torch.testing.assert_close(found, channels_first(pictures()), rtol=0, atol=1e-3)


def test_a_flip_mirrors_left_and_right():
    found = augment(pictures(), draws(0.1, 0.5, 0.5), Augmentation())
    torch.testing.assert_close(found, channels_first(pictures()).flip(3), rtol=0, atol=1e-3)
    kept = augment(pictures(), draws(0.1, 0.5, 0.5), Augmentation(flip=False))
    torch.testing.assert_close(kept, channels_first(pictures()), rtol=0, atol=1e-3)


def test_a_shift_moves_by_its_share_of_the_side_and_repeats_the_border():
    settings = Augmentation(flip=False, shift=0.25, scale=0.0)
    found = augment(pictures(), draws(0.9, 1.0, 0.5), settings)  # a quarter of 8 pixels
    original = channels_first(pictures())
    torch.testing.assert_close(found[..., :6], original[..., 2:], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[..., 7], original[..., 7], rtol=0, atol=1e-3)


def test_a_scale_makes_things_larger_about_the_middle():
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[:, 24:40, 24:40] = 255
    settings = Augmentation(flip=False, shift=0.0, scale=0.5)
    large = augment(image, torch.tensor([[0.9, 0.5, 0.5, 1.0]]), settings)
    assert abs(float((large[0, 0] > 127).sum()) ** 0.5 - 24) <= 1
