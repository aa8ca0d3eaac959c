"""Augmentation against plain slicing, Pillow and SciPy."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from adde.distributed import RankRows
from adde.errors import UserError
from adde.loading.augment import BASIC, GREY, NAMES, Augmentation, augment, draw
from adde.loading.photometric import blur, jpeg, recolour
from adde.mining import uniform
from adde.schema import Attribute, Schema

STILL = {"flip": False, "shift": 0.0, "scale": 0.0}


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


def drawn(count=1, **values):
    """Draws in the middle, apart from those given."""
    rows = [values.get(name, 0.5) for name in NAMES]
    return torch.tensor([rows]).expand(count, -1)


def test_more_options_leave_the_first_draws_as_they_are():
    ranks = RankRows.equal(3)
    expected = uniform(5, torch.arange(3), len(BASIC))
    assert torch.equal(draw(pictures(), Augmentation(), 5, ranks), expected)
    more = draw(pictures(), Augmentation(blur=1.0, erase=0.5), 5, ranks)
    assert torch.equal(more[:, : len(BASIC)], expected)
    assert more.shape == (3, len(NAMES) + 3)


def test_a_crop_is_a_part_of_the_picture_enlarged():
    settings = Augmentation(**STILL, crop=0.25)
    draws = drawn(3, crop_area=1.0, crop_x=0.0, crop_y=1.0)
    found = augment(pictures(), draws, settings)
    corner = channels_first(pictures())[..., 4:, :4]
    expected = F.interpolate(corner, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=2e-3)


def test_crops_keep_their_share_and_shape():
    side, count = 64, 400
    ramp = torch.arange(side, dtype=torch.uint8).expand(side, side)
    images = torch.stack([ramp, ramp.T, ramp], 2).expand(count, -1, -1, -1)
    settings = Augmentation(**STILL, crop=0.4, crop_aspect=1.5)
    found = augment(images, draw(images, settings, 3, RankRows.equal(count)), settings)
    # Half a pixel at each border repeats the border.
    spans = (found.amax((2, 3)) - found.amin((2, 3)))[:, :2] / (side - 1)
    area, aspect = spans.prod(1), spans[:, 0] / spans[:, 1]
    assert 0.38 < area.min() < 0.43 and area.max() > 0.97
    assert aspect.max() < 1.55 and aspect.min() > 1 / 1.55
    assert aspect.max() > 1.4 and aspect.min() < 1 / 1.4
    assert found[:, 0].amin((1, 2)).max() > 15  # some start far from the border


@pytest.mark.parametrize("colours", ["batch", "neutral"])
def test_a_rectangle_is_erased_in_some_pictures(colours):
    count, side = 300, 32
    solid = (torch.arange(count * 3) % 251).view(count, 1, 1, 3).to(torch.uint8)
    images = solid.expand(-1, side, side, -1)
    settings = Augmentation(**STILL, erase=0.7, erase_area=0.3, erase_with=colours)
    draws = draw(images, settings, 3, RankRows.equal(count))
    found = augment(images, draws, settings).permute(0, 2, 3, 1)
    changed = (found != images).any(3)
    erased = changed.any(2).any(1)
    assert 0.6 < erased.float().mean() < 0.8
    shares = []
    for picture, change, before in zip(found[erased], changed[erased], images[erased]):
        rows, columns = change.any(1).nonzero()[:, 0], change.any(0).nonzero()[:, 0]
        assert change[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert change.sum() == len(rows) * len(columns)
        assert torch.equal(picture[~change], before[~change].float())
        fill = picture[change].unique(dim=0)
        assert len(fill) == 1
        if colours == "neutral":
            assert (fill == GREY).all()
        else:
            assert (solid.view(-1, 3).float() == fill).all(1).any()
        shares.append(float(change.float().mean()))
    assert 0.005 < min(shares) < 0.06 and 0.24 < max(shares) < 0.34
    if colours == "batch":
        middles = found[erased].flatten(1, 2).mode(1).values
        assert len(middles.unique(dim=0)) > 100


def photo(side=40):
    """Return a picture with edges and texture, as Pillow's image and as a batch of one."""
    random = np.random.default_rng(0)
    small = random.integers(40, 200, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(image) + random.integers(-12, 12, (side, side, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return image, channels_first(torch.from_numpy(np.asarray(image).copy())[None])


@pytest.mark.parametrize(("name", "place"), [("Brightness", 0), ("Contrast", 1), ("Color", 2)])
def test_colours_change_as_pillows(name, place):
    image, pixels = photo()
    for factor in (0.6, 1.0, 1.3):
        strengths = [torch.ones(1) for _ in range(3)]
        strengths[place] = torch.full((1,), factor)
        found = recolour(pixels, *strengths, torch.zeros(1))[0].permute(1, 2, 0)
        expected = np.asarray(getattr(ImageEnhance, name)(image).enhance(factor), np.float32)
        np.testing.assert_allclose(found, expected, atol=2.1)


def test_a_turn_of_the_hue_keeps_luminance_and_comes_round():
    _, pixels = photo()
    pixels = 100 + pixels / 8  # no value is cut off
    once = torch.ones(1)
    turned = pixels
    for _ in range(3):
        before, turned = turned, recolour(turned, once, once, once, once * 2 * torch.pi / 3)
        luminance = torch.tensor([0.299, 0.587, 0.114])
        for a, b in zip(before.movedim(1, 3) @ luminance, turned.movedim(1, 3) @ luminance):
            torch.testing.assert_close(a, b, rtol=0, atol=0.05)
        assert (before - turned).abs().mean() > 2
    torch.testing.assert_close(turned, pixels, rtol=0, atol=0.05)


@pytest.mark.parametrize("deviation", [0.0, 0.7, 1.6])
def test_a_blur_is_scipys(deviation):
    _, pixels = photo()
    found = blur(pixels, torch.tensor([deviation]))[0, :, 10:-10, 10:-10]
    expected = gaussian_filter(pixels[0].numpy(), (0, deviation, deviation), truncate=8)
    np.testing.assert_allclose(found, expected[:, 10:-10, 10:-10], atol=1e-2)
    flat = torch.full((1, 3, 9, 9), 77.0)
    torch.testing.assert_close(blur(flat, torch.tensor([deviation])), flat)


@pytest.mark.parametrize("side", [40, 37])
@pytest.mark.parametrize(("quality", "apart"), [(15, 1.0), (60, 1.0), (92, 2.0)])
def test_jpeg_noise_is_pillows(quality, apart, side):
    image, pixels = photo(side)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality, subsampling=0)
    expected = np.asarray(Image.open(file), np.float32)
    found = jpeg(pixels, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    noise = np.abs(expected - np.asarray(image, np.float32)).mean()
    # Pillow rounds the chrominance to whole numbers before it is quantised.
    assert np.abs(found - expected).mean() < min(apart, 0.5 * noise)


def test_strengths_are_those_of_the_settings():
    settings = Augmentation(
        **STILL, brightness=0.2, contrast=0.3, saturation=0.1, hue=0.1, blur=2.0, jpeg=40
    )
    _, pixels = photo()
    images = pixels.permute(0, 2, 3, 1).to(torch.uint8)
    same = drawn(blur=0.0, jpeg=1.0)
    assert (augment(images, same, settings) - pixels).abs().mean() < 1  # JPEG of quality 100
    draws = drawn(brightness=1.0, contrast=0.0, saturation=1.0, hue=0.75, blur=0.5, jpeg=0.25)
    one = torch.ones(1)
    expected = recolour(pixels, one * 1.2, one * 0.7, one * 1.1, one * 0.1 * torch.pi)
    expected = jpeg(blur(expected, one), one * 55)
    torch.testing.assert_close(augment(images, draws, settings), expected, rtol=0, atol=1e-2)


def test_changes_of_colour_are_refused_where_an_attribute_is_a_colour():
    schema = Schema((Attribute("Farbe", ("rot", "blau")), Attribute("size", ("s", "l"))))
    for settings in (Augmentation(hue=0.1), Augmentation(saturation=0.2)):
        settings.require_colours_kept(schema)
        with pytest.raises(UserError, match=r"expected 0, because the schema marks 'Farbe'"):
            settings.require_colours_kept(schema.with_colours(["Farbe"]))
    Augmentation(brightness=0.2, contrast=0.2).require_colours_kept(schema.with_colours(["Farbe"]))


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"jpeg": 0}, {"hue": 0.6}, {"erase_area": -0.1}])
def test_strengths_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: expected .*, found "):
        Augmentation(**wrong)
