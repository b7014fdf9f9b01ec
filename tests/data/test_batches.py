"""Batches in memory: augmentation against literal loops, streams, scaling, each process its own rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import random_images, sentence
from PIL import Image

from saol_lib.data import Batches, Split, mean_and_std
from saol_lib.streams import stream, stream_seed


def make_batches(images, pad=0, flip=False):
    """Labels are the images' numbers."""
    mean, std = mean_and_std(images)
    return Batches(Split(images, torch.arange(len(images))), torch.device("cpu"), mean, std, pad, flip)


def literal_crops(image, pad, flip):
    """Every crop of one image (3, H, W) reflected by `pad`, by name (row, column, mirrored)."""
    wide = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    height, width = image.shape[1:]
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = wide[:, row : row + height, column : column + width]
            yield (row, column, False), crop
            if flip:
                yield (row, column, True), crop[:, :, ::-1]


@pytest.mark.parametrize(
    ("height", "width", "pad", "flip"), [(9, 9, 3, True), (8, 12, 2, True), (11, 7, 4, False), (6, 6, 0, True)]
)
def test_augmentation_is_a_crop_of_the_reflected_image(height, width, pad, flip):
    images = random_images(120, height, width)
    seen = set()
    for batch, labels in make_batches(images, pad, flip).epoch(30, seed=0, epoch=0):
        assert batch.shape == (30, 3, height, width) and batch.dtype == torch.uint8
        for image, number in zip(batch.numpy(), labels.tolist(), strict=True):
            how = [name for name, crop in literal_crops(images[number], pad, flip) if np.array_equal(crop, image)]
            assert len(how) == 1, "the picture is no crop of its source"
            seen |= set(how)
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(2 * pad + 1))
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if flip else {False})


def test_crops_and_flips_are_even():
    images = random_images(3000, 4, 4)
    counts, mirrored = np.zeros((3, 3)), 0
    for batch, labels in make_batches(images, 1, True).epoch(3000, 0, 0):
        for image, number in zip(batch.numpy(), labels.tolist(), strict=True):
            for (row, column, flip), crop in literal_crops(images[number], 1, True):
                if np.array_equal(crop, image):
                    counts[row, column] += 1
                    mirrored += flip
    assert counts.sum() == 3000 and counts.min() > 333 - 90 and counts.max() < 333 + 90  # five deviations
    assert abs(mirrored - 1500) < 140


def numbers(batches, size, seed, epoch):
    return torch.cat([labels for _, labels in batches.epoch(size, seed, epoch)]).tolist()


def test_an_epoch_visits_every_image_once_and_drops_the_rest():
    batches = make_batches(random_images(103, 4, 4))
    assert sorted(numbers(batches, 103, 0, 0)) == list(range(103))
    visited = numbers(batches, 10, 0, 0)
    assert len(visited) == len(set(visited)) == 100


def test_streams_of_epochs_and_seeds():
    images = random_images(64, 5, 5)

    def epoch(seed, number):
        return torch.cat([batch for batch, _ in make_batches(images, 1, True).epoch(16, seed, number)])

    torch.manual_seed(1)
    first = epoch(0, 3)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(first, epoch(0, 3))  # whatever the global generator does
    assert not torch.equal(first, epoch(0, 4)) and not torch.equal(first, epoch(1, 3))
    images = images[:1].expand(64, -1, -1, -1).contiguous()  # now it is the crops alone that can differ
    assert torch.equal(epoch(0, 3), epoch(0, 3))
    assert not torch.equal(epoch(0, 3), epoch(0, 4)) and not torch.equal(epoch(0, 3), epoch(1, 3))


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["order", "augment", "cutmix"]), st.integers(0, 9))
def test_stream_seeds_never_meet(seed, other, name, epoch):
    assert stream_seed(seed, name, epoch) == stream_seed(seed, name, epoch) < 2**63
    assert (stream_seed(seed, name, epoch) == stream_seed(other, name, epoch)) == (seed == other)
    assert stream_seed(seed, name, epoch) != stream_seed(seed, name, epoch, 0)
    assert stream_seed(seed, "order", epoch) != stream_seed(seed, "augment", epoch)


def test_all_keeps_the_order_and_leaves_the_padding_out():
    images = random_images(25, 6, 5)
    batches = make_batches(images, pad=2, flip=True)
    whole = torch.cat([batch for batch, _ in batches.all(10)])
    assert torch.cat([labels for _, labels in batches.all(10)]).tolist() == list(range(25))
    assert torch.equal(whole, batches.normalise(images))


@given(st.integers(0, 99))
def test_normalised_images_have_mean_0_and_deviation_1(seed):
    shade = torch.tensor([30, 100, 220]).view(1, 3, 1, 1)
    images = (random_images(40, 6, 6, seed) // 8 + shade).to(torch.uint8)
    whole = make_batches(images).normalise(images)
    assert whole.dtype == torch.float32 and whole.is_contiguous(memory_format=torch.channels_last)
    assert whole.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (whole.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_mean_and_std_in_double():
    images = random_images(30, 6, 7)
    mean, std = mean_and_std(images)
    exact = images.double() / 255
    torch.testing.assert_close(mean, exact.mean(dim=(0, 2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, exact.std(dim=(0, 2, 3), correction=0), rtol=0, atol=1e-12)


def test_padding_wider_than_the_image():
    with pytest.raises(ValueError) as error:
        make_batches(random_images(4, 6, 5), pad=5)
    sentence(error, "pad=5")


# --- each process its own rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 2])
def test_rows_are_those_of_the_global_batch(first):
    batches = make_batches(random_images(40, 5, 6), pad=1, flip=True)
    chosen = {step: torch.randperm(8, generator=stream(step, "rows"))[:3] for step in range(5)}
    whole = list(batches.epoch(8, 3, 1, first))
    own = list(batches.epoch(8, 3, 1, first, rows=chosen.get))
    assert len(own) == len(whole) == 5 - first
    for step, (part, batch) in enumerate(zip(own, whole, strict=True), first):
        assert all(torch.equal(mine, every[chosen[step]]) for mine, every in zip(part, batch, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_make_the_whole(count):
    batches = make_batches(random_images(26, 5, 6))
    whole = list(batches.all(4))
    parts = [list(batches.all(4, (number, count))) for number in range(count)]
    for number, batch in enumerate(whole):
        again = parts[number % count][number // count]
        assert all(map(torch.equal, batch, again))
    assert sum(map(len, parts)) == len(whole)


# --- what the network sees -------------------------------------------------------------------------------------------


def test_float64_on_request():
    images = random_images(6, 5, 7)
    mean, std = mean_and_std(images)
    batches = Batches(Split(images, torch.arange(6)), torch.device("cpu"), mean, std, dtype=torch.float64)
    exact = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert batches.normalise(images).dtype == torch.float64
    torch.testing.assert_close(next(batches.all(6))[0], exact, rtol=0, atol=1e-12)


def test_pictures_are_enlarged_bicubically_after_augmentation():
    images = random_images(4, 16, 16) // 2 + 64  # Pillow cuts at 0 and 255 after each of two passes
    mean, std = torch.zeros(3), torch.full((3,), 1 / 255)  # nothing but the enlarging
    split = Split(images, torch.arange(4), side=40)
    batches = Batches(split, torch.device("cpu"), mean, std, pad=2, flip=True, dtype=torch.float64)
    assert batches.size == (40, 40) and batches.source_size == (16, 16)
    small, _ = next(batches.epoch(4, 0, 0))
    assert small.shape == (4, 3, 16, 16) and small.dtype == torch.uint8
    large, _ = next(batches.all(4))
    assert large.shape == (4, 3, 40, 40) and large.dtype == torch.float64
    for image, seen in zip(images, large, strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 40), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected).astype(float) - seen.permute(1, 2, 0).numpy()).max() <= 1.5  # Pillow rounds
    hard = batches.normalise(random_images(4, 16, 16))
    assert hard.min() >= 0 and hard.max() <= 255


def test_normalise_leaves_floats_of_the_caller_alone():
    images = random_images(4, 6, 6)
    batches = make_batches(images)
    floats = images.float()
    assert torch.equal(batches.normalise(floats), batches.normalise(images)) and torch.equal(floats, images.float())
