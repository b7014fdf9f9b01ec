"""Meters that take batches against their one-call forms; several true boxes; boxes in the original picture's pixels."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from saol_lib.cutmix import paste
from saol_lib.localization import (
    BoxMeter,
    Localizer,
    PairMeasures,
    area_share,
    box_accuracy,
    box_iou,
    draw_pairs,
    fixed_box_accuracy,
    localize,
    mass_inside,
    measure_pairs,
    score_maps,
    trivial_rows,
)
from saol_lib.networks import build_model

COUNT = 14
GRID = (0.1, 0.3, 0.6)
SPLITS = ([14], [5, 5, 4], [1] * 14)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.randn(COUNT, 3, 16, 24, generator=generator(1), dtype=torch.float64)
LABELS = torch.randint(6, (COUNT,), generator=generator(2))


@pytest.fixture(scope="module")
def model():
    made = build_model("resnet-8-8", 6, heads=("gap", "saol"), seed=3, output_size=(8, 12)).double()
    made.train()(IMAGES)  # its normalisation has seen images
    return made.eval()


def random_boxes(count, size, seed):
    """One to three boxes an image, as a list of tensors."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        own = []
        for _ in range(rng.integers(1, 4)):
            ys = np.sort(rng.integers(0, size[0], 2))
            xs = np.sort(rng.integers(0, size[1], 2))
            own.append([xs[0], ys[0], xs[1], ys[1]])
        found.append(torch.tensor(np.array(own)))
    return found


def padded(boxes):
    return torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=-1)


SEVERAL = random_boxes(COUNT, (16, 24), 0)
ONE = torch.stack([own[0] for own in SEVERAL])


def same(found, expected):
    """Integers exactly, float64 to 1e-12."""
    assert found.accuracy.curve.tolist() == expected.accuracy.curve.tolist()
    assert found.accuracy[:4] == expected.accuracy[:4]
    for name in ("fits", "ranks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("ious", "sizes", "covered", "inside", "entropy", "largest_cell"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=1e-12), name


@pytest.mark.parametrize("method", ["saol", "attention", "cam"])
@pytest.mark.parametrize("boxes", [ONE, SEVERAL], ids=["one box", "several"])
def test_localisation_is_the_same_however_the_images_come(model, method, boxes):
    whole = localize(model, [(IMAGES, LABELS)], boxes, method, 0.3, GRID)
    for lengths in SPLITS[1:]:
        localizer = Localizer(model, method, 0.3, GRID)
        starts = np.cumsum([0, *lengths])
        for start, end in pairwise(starts):
            localizer.update(IMAGES[start:end], LABELS[start:end], boxes[start:end])
        assert localizer.count == COUNT
        same(localizer.result(), whole)
    assert 0.2 < whole.ious.max() < 1 and whole.ranks.max() > 0


@pytest.mark.parametrize("boxes", [ONE, SEVERAL], ids=["one box", "several"])
def test_box_accuracy_is_the_same_however_the_maps_come(boxes):
    maps = torch.rand(COUNT, 16, 24, generator=generator(5), dtype=torch.float64)
    whole = box_accuracy(maps, boxes, GRID)
    for lengths in SPLITS:
        meter = BoxMeter(GRID)
        for part, own in zip(maps.split(lengths), torch.arange(COUNT).split(lengths), strict=True):
            meter.update(part, [boxes[i] for i in own])
        assert meter.result().curve.tolist() == whole.curve.tolist() and meter.result()[:4] == whole[:4]


def test_a_meter_without_images_says_so(model):
    with pytest.raises(ValueError, match="there are 0 maps and 0 entries of boxes"):
        BoxMeter().result()
    with pytest.raises(ValueError, match="there are 0 maps and 0 entries of boxes"):
        Localizer(model).result()
    with pytest.raises(ValueError, match="no pair was measured"):
        PairMeasures(model, "saol").result()


def test_images_and_boxes_must_be_as_many(model):
    with pytest.raises(ValueError, match="more images than the 3 entries of boxes"):
        localize(model, [(IMAGES, LABELS)], ONE[:3])
    with pytest.raises(ValueError, match="3 images and 14 entries of boxes"):
        localize(model, [(IMAGES[:3], LABELS[:3])], ONE, thresholds=GRID)
    with pytest.raises(ValueError, match="3 images, 2 labels and 3 entries of boxes must match"):
        Localizer(model).update(IMAGES[:3], LABELS[:2], ONE[:3])


class Pixels:
    """Pictures that need no normalisation."""

    device = torch.device("cpu")

    def normalise(self, images):
        return images


@pytest.mark.parametrize("method", ["saol", "cam", "grad_cam"])
def test_pairs_are_the_same_however_they_come(model, method):
    labels = torch.arange(COUNT) % 5
    boxes, partners = draw_pairs(labels, (16, 24), generator(4))
    mixed = paste(IMAGES, labels, 6, boxes, partners)
    whole = measure_pairs(model, mixed, labels, Pixels(), method)
    for lengths in SPLITS[1:]:
        measures = PairMeasures(model, method)
        for part in torch.arange(COUNT).split(lengths):
            measures.update(mixed.images[part], labels[partners[part]], labels[part], boxes[part])
        pd.testing.assert_frame_equal(measures.result(), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["saol", "attention"])
def test_to_fit_any_of_several_boxes_is_a_hit(model, method):
    found = localize(model, [(IMAGES, LABELS)], SEVERAL, method, 0.3, GRID)
    each = []
    for number, own in enumerate(SEVERAL):
        image = [(IMAGES[number : number + 1], LABELS[number : number + 1])]
        each.append([localize(model, image, box[None], method, 0.3, GRID) for box in own])
    for number, alone in enumerate(each):
        best = max(alone, key=lambda part: float(part.ious))
        assert found.ious[number] == best.ious and found.fits[number] == best.fits
        assert found.sizes[number] == best.sizes
    curves = [np.max([part.accuracy.curve for part in alone], axis=0) for alone in each]
    assert found.accuracy.curve.tolist() == pytest.approx(np.mean(curves, axis=0).tolist(), abs=1e-12)
    assert {len(own) for own in SEVERAL} == {1, 2, 3}


def test_rows_of_minus_one_fill_up_and_count_for_nothing(model):
    listed = localize(model, [(IMAGES, LABELS)], SEVERAL, "attention", 0.3, GRID)
    filled = localize(model, [(IMAGES, LABELS)], padded(SEVERAL), "attention", 0.3, GRID)
    same(filled, listed)
    assert trivial_rows(padded(SEVERAL), (16, 24), listed.ranks) == trivial_rows(SEVERAL, (16, 24), listed.ranks)
    with pytest.raises(ValueError, match=r"image 1 has boxes of shape \(0, 4\)"):
        fixed_box_accuracy((0, 0, 1, 1), torch.tensor([[[0, 0, 1, 1]], [[-1, -1, -1, -1]]]))


def test_of_several_boxes_the_union_is_inside():
    size = (16, 24)
    attention = torch.rand(COUNT, 1, 5, 7, generator=generator(3), dtype=torch.float64)
    attention /= attention.sum(dim=(2, 3), keepdim=True)
    masks = torch.zeros(COUNT, *size, dtype=torch.float64)
    for mask, own in zip(masks, SEVERAL, strict=True):
        for x0, y0, x1, y1 in own.tolist():
            mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    fine = attention.repeat_interleave(16, 2).repeat_interleave(24, 3)[:, 0] / (16 * 24)  # 5 * 16 by 7 * 24
    large = masks.repeat_interleave(5, 1).repeat_interleave(7, 2)
    expected = (fine * large).sum(dim=(1, 2))
    assert torch.allclose(mass_inside(attention, SEVERAL, size), expected, rtol=0, atol=1e-12)
    assert torch.allclose(area_share(SEVERAL, size).double(), masks.mean(dim=(1, 2)), rtol=0, atol=1e-6)
    alone = [own[:1] for own in SEVERAL]
    assert torch.allclose(mass_inside(attention, alone, size), mass_inside(attention, ONE, size), rtol=0, atol=1e-12)


def test_boxes_stay_in_the_pixels_of_the_original_picture(model):
    """Pictures of 8 x 12 pixels that were enlarged to 16 x 24 for the network."""
    size = (8, 12)
    boxes = random_boxes(COUNT, size, 1)
    found = localize(model, [(IMAGES, LABELS)], boxes, "attention", 0.3, GRID, size=size)
    outputs = model(IMAGES)
    maps = score_maps(model, IMAGES, LABELS, "attention", size=size)
    own = F.interpolate(outputs.attention.float(), size, mode="bicubic")[:, 0]
    low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)
    assert torch.allclose(maps, (own - low) / (high - low), rtol=0, atol=1e-6) and maps.shape == (COUNT, *size)
    assert found.accuracy.curve.tolist() == box_accuracy(maps, boxes, GRID).curve.tolist()
    inside = mass_inside(outputs.attention, boxes, size)
    assert torch.allclose(found.inside, inside, rtol=0, atol=1e-12)
    assert torch.equal(found.covered, area_share(boxes, size))
    with pytest.raises(ValueError, match="inside an image 12 wide, 8 high"):
        localize(model, [(IMAGES, LABELS)], ONE, thresholds=GRID, size=size)


def test_without_a_size_boxes_are_in_pixels_of_the_images(model):
    assert score_maps(model, IMAGES, LABELS).shape == (COUNT, 16, 24)
    same(
        localize(model, [(IMAGES, LABELS)], ONE, thresholds=GRID),
        localize(model, [(IMAGES, LABELS)], ONE, thresholds=GRID, size=(16, 24)),
    )


def test_trivial_rows_count_any_of_several_boxes():
    boxes = [[[0, 0, 1, 1], [0, 0, 9, 9]], [[2, 2, 7, 7]]]
    row = trivial_rows(boxes, (10, 10), torch.tensor([0, 0]))["whole image"]
    assert row["gt_known"] == 50 and row["max_box_acc"] == 50
    assert box_iou([[0, 0, 9, 9]], boxes[1])[0, 0] == 0.36
