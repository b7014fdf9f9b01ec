"""The embedded digits: the same bytes everywhere, exact boxes, and no digit on both sides of a split."""

import copy

import numpy as np
import torch
from sklearn.datasets import load_digits

from saol_lib.data import digits, load, select


def test_digits_are_the_same_bytes_everywhere():
    assert load("digits").fingerprint == "3477ca4101dcfb36"


def test_digits_shapes_and_balance():
    dataset = load("digits")
    for split, count in ((dataset.train, 3000), (dataset.test, 1000)):
        assert split.images.shape == (count, 3, 32, 32) and split.images.dtype == torch.uint8
        counts = split.labels.bincount(minlength=10)
        assert len(counts) == 10 and counts.min() > 0.08 * count and counts.max() < 0.12 * count
    assert dataset.classes == tuple("0123456789")


def test_train_and_test_come_from_different_digits(monkeypatch):
    used = {False: set(), True: set()}
    scene = digits._digit_scene

    def spy(ink, pick, pool, rng, size):
        used[bool(pool.min())] |= {pick, *pool}  # the digit itself, and where fragments are taken from
        return scene(ink, pick, pool, rng, size)

    monkeypatch.setattr(digits, "_digit_scene", spy)
    digits.digit_scenes(60, test=False), digits.digit_scenes(60, test=True)
    assert used[True] and used[False] and not used[True] & used[False]
    pixels = load_digits().images.reshape(1797, -1)
    same = (pixels[sorted(used[True])][:, None] == pixels[sorted(used[False])][None]).all(-1)
    assert not same.any()  # no digit of the one is a copy of one of the other


def test_labels_are_those_of_the_digits_drawn(monkeypatch):
    picks, scene = [], digits._digit_scene

    def spy(ink, pick, *rest):
        picks.append(pick)
        return scene(ink, pick, *rest)

    monkeypatch.setattr(digits, "_digit_scene", spy)
    split = digits.digit_scenes(80)
    assert split.labels.tolist() == load_digits().target[picks].tolist()


def test_boxes_are_exact_and_inside(monkeypatch):
    """The box is the smallest one around the pixels that the digit covers by more than a quarter, and is drawn last."""
    draw, boxes, drawn = digits._draw, [], []

    def spy(canvas, ink, extent, rng):
        black, white = np.zeros_like(canvas), np.ones_like(canvas)
        for plain in (black, white):
            draw(plain, ink, extent, copy.deepcopy(rng))
        drawn.append(ink.size)
        if ink.size == (8, 8):  # the digit, not a fragment
            visible = 1 - (white - black).mean(axis=2) > 0.25
            rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
            boxes.append([columns.min(), rows.min(), columns.max(), rows.max()])
        return draw(canvas, ink, extent, rng)

    monkeypatch.setattr(digits, "_draw", spy)
    split = digits.digit_scenes(100)
    assert split.boxes.tolist() == boxes
    assert drawn == ([(4, 4)] * 4 + [(8, 8)]) * 100
    x0, y0, x1, y1 = split.boxes.T
    assert (x0 >= 0).all() and (x0 < x1).all() and (x1 < 32).all()
    assert (y0 >= 0).all() and (y0 < y1).all() and (y1 < 32).all()


def test_another_seed_gives_other_scenes():
    assert not torch.equal(digits.digit_scenes(20, seed=0).images, digits.digit_scenes(20, seed=1).images)
    assert torch.equal(digits.digit_scenes(20, seed=1).images, digits.digit_scenes(20, seed=1).images)


def test_no_held_out_scene_shows_a_digit_that_is_trained_on():
    """449 of 500 did when scenes were drawn without regard to the digit that they show."""
    dataset = load("digits")
    train, aside = select(dataset, "held_out", None, 500)
    assert aside.labels.bincount().tolist() == [50] * 10
    trained = set(train.groups.tolist())
    assert not [digit for digit in aside.groups.tolist() if digit in trained]
    assert len(train.labels) > 2400  # next to nothing is lost: what is left of a class's last digit

    pixels = load_digits().images.reshape(1797, -1)
    assert len(np.unique(pixels[:1297], axis=0)) == 1297  # two numbers are two pictures


def test_groups_tell_the_digit():
    scenes = digits.digit_scenes(1400)
    target = torch.from_numpy(load_digits().target)
    assert torch.equal(scenes.labels, target[scenes.groups]) and scenes.groups.max() < 1297
