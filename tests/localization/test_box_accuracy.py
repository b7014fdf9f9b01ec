"""Box metrics against hand-written boxes and against the definitions taken literally, contour by contour."""

import re
import sys
import weakref

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from saol_lib.localization import (
    GRID,
    best_centred_box,
    box_accuracy,
    box_iou,
    contour_boxes,
    fixed_box_accuracy,
    largest_box,
    stretch,
)
from saol_lib.localization.boxes import IOUS

PEAK = [[0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.4, 0.4, 0.4, 0.0],
        [0.0, 0.4, 1.0, 0.8, 0.0],
        [0.0, 0.4, 0.4, 0.4, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0]]  # fmt: skip
RING = [[1.0, 1.0, 1.0, 0.0, 0.0],
        [1.0, 0.0, 1.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.0, 0.6],
        [0.0, 0.0, 0.0, 0.0, 0.6],
        [0.0, 0.0, 0.0, 0.0, 0.6]]  # fmt: skip
LINE = [[1.0, 1.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0, 0.0],
        [0.0, 0.5, 0.5, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0]]  # fmt: skip
BLANK = [[0.0] * 5] * 5
ring, hole, bar, line, corner = [0, 0, 3, 3], [0, 0, 3, 3], [4, 2, 4, 4], [0, 0, 4, 1], [1, 2, 3, 4]
BY_HAND = [  # map, threshold: the largest contour's box, the other contours' (of the hole, too), the largest area's
    (PEAK, 0.0, [1, 1, 4, 4], [], (1, 1, 3, 3)),
    (PEAK, 0.2, [1, 1, 4, 4], [], (1, 1, 3, 3)),
    (PEAK, 0.4, [2, 2, 4, 3], [], (2, 2, 3, 2)),
    (PEAK, 0.6, [2, 2, 4, 3], [], (2, 2, 3, 2)),
    (PEAK, 0.8, [2, 2, 3, 3], [], (2, 2, 2, 2)),
    (RING, 0.0, ring, [bar, hole], (0, 0, 2, 2)),
    (RING, 0.2, ring, [bar, hole], (0, 0, 2, 2)),
    (RING, 0.4, ring, [bar, hole], (0, 0, 2, 2)),
    (RING, 0.6, ring, [hole], (0, 0, 2, 2)),
    (RING, 0.8, ring, [hole], (0, 0, 2, 2)),
    (LINE, 0.0, corner, [line], (0, 0, 4, 0)),  # three pixels round a corner have an area, a line of five has none
    (LINE, 0.2, corner, [line], (0, 0, 4, 0)),
    (LINE, 0.4, corner, [line], (0, 0, 4, 0)),
    (LINE, 0.6, line, [], (0, 0, 4, 0)),
    (LINE, 0.8, line, [], (0, 0, 4, 0)),
    *((BLANK, threshold, [0, 0, 0, 0], [], None) for threshold in (0.0, 0.2, 0.4, 0.6, 0.8)),
]


@pytest.mark.parametrize(("values", "threshold", "first", "others", "area"), BY_HAND)
def test_small_maps_have_the_boxes_written_by_hand(values, threshold, first, others, area):
    for score_map in (torch.tensor(values), torch.tensor(values, dtype=torch.float64), np.array(values)):
        found = contour_boxes(score_map, threshold).tolist()
        assert found[0] == first and sorted(found[1:]) == sorted(others)
    assert largest_box(torch.tensor(values), threshold) == area


def test_the_accuracy_of_the_small_maps_is_the_one_worked_out_by_hand():
    truth = [[[1, 1, 4, 4]], [[4, 2, 4, 4], [1, 1, 1, 1]], [[0, 0, 4, 1]], [[1, 0, 1, 1]]]
    thresholds = [0.0, 0.4, 0.8]
    # IoU of the largest contour's box: peak 1, 6/16, 4/16; ring 1/16 always; line 2/17, 2/17, 1; blank 0
    # the best of all contours: ring 1, 1, then 1/16; line 1 always
    found = box_accuracy(torch.tensor([PEAK, RING, LINE, BLANK]), truth, thresholds)
    assert found.curve.tolist() == [25.0, 0.0, 25.0] and found.max_box_acc == 25 and found.best_threshold == 0
    curves = {iou: values.tolist() for iou, values in found.curves_v2.items()}
    assert curves == {0.3: [75.0, 75.0, 25.0], 0.5: [75.0, 50.0, 25.0], 0.7: [75.0, 50.0, 25.0]}
    assert found.per_iou == {0.3: 75.0, 0.5: 75.0, 0.7: 75.0} and found.max_box_acc_v2 == 75
    assert found.thresholds.tolist() == thresholds


def test_one_threshold_serves_all_images():
    first, second = [[0, 0, 4, 4]], [[0, 0, 1, 1]]
    low = torch.full((5, 5), 0.4).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(1.0))
    found = box_accuracy(torch.stack([low, low]), [first, second], [0.2, 0.6])
    assert found.curve.tolist() == [50.0, 50.0] and found.max_box_acc == 50  # each image has its own best one


def test_maps_that_are_constant_or_no_numbers_have_the_box_of_zeros():
    maps = stretch(torch.stack([torch.full((5, 5), 0.7), torch.full((5, 5), torch.nan), torch.rand(5, 5)]))
    assert not maps[:2].any() and maps[2].max() == 1
    assert box_accuracy(maps[:2], [[[0, 0, 0, 0]]] * 2).curve.tolist() == [100.0] * 1000
    assert box_accuracy(maps[:2], [[[0, 0, 1, 0]], [[0, 0, 1, 1]]]).per_iou == {0.3: 50.0, 0.5: 50.0, 0.7: 0.0}


def test_iou_counts_whole_pixels():
    assert box_iou([[1, 2, 5, 6]], [[3, 1, 4, 5]])[0, 0] == 8 / 27


corners = st.lists(st.integers(0, 6), min_size=4, max_size=4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


@given(st.lists(corners, min_size=1, max_size=4), st.lists(corners, min_size=1, max_size=4))
def test_iou_is_that_of_sets_of_pixels(boxes, others):
    def pixels(x0, y0, x1, y1):
        return {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)}

    expected = [[len(pixels(*a) & pixels(*b)) / len(pixels(*a) | pixels(*b)) for b in others] for a in boxes]
    assert box_iou(boxes, others).tolist() == expected


def literal_box(contour, width, height):
    x, y, w, h = cv2.boundingRect(contour)
    return [x, y, min(x + w, width - 1), min(y + h, height - 1)]


def literal_iou(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(wide, 0) * max(high, 0)
    area = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return common / (area - common)


def literal(score_map, truth, thresholds):
    """The definitions as they stand: for every threshold the contours, their boxes, and whether they hit."""
    height, width = score_map.shape
    levels, one, several = np.floor(255 * score_map).astype(np.uint8), [], {iou: [] for iou in IOUS}
    for threshold in thresholds:
        foreground = np.uint8(levels > int(threshold * levels.max()))
        contours, _ = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        largest = [literal_box(max(contours, key=cv2.contourArea), width, height)] if contours else [[0, 0, 0, 0]]
        boxes = [literal_box(contour, width, height) for contour in contours] or [[0, 0, 0, 0]]
        one.append(max(literal_iou(box, true) for box in largest for true in truth) >= 0.5)
        best = max(literal_iou(box, true) for box in boxes for true in truth)
        for iou in IOUS:
            several[iou].append(best >= iou)
    return one, several


def random_map(rng, height, width):
    """Noise, coarse noise made smooth, a few levels only, one blob, or several of a kind: where ties are common."""
    kind, noise = rng.integers(5), rng.random((height, width))
    if kind == 1:
        small = torch.from_numpy(rng.standard_normal((1, 1, 4, 5)))
        noise = F.interpolate(small, (height, width), mode="bicubic")[0, 0].numpy()
    elif kind == 2:
        noise = rng.integers(0, 4, (height, width)) / 3
    elif kind == 3:
        ys, xs = np.mgrid[:height, :width]
        noise = np.exp(-((ys - rng.uniform(0, height)) ** 2 + (xs - rng.uniform(0, width)) ** 2) / rng.uniform(1, 30))
    elif kind == 4:
        noise = noise * (rng.random((height, width)) < 0.2)
    low, high = noise.min(), noise.max()
    if rng.random() < 0.1:
        return noise.clip(0, 1) * rng.random()  # the largest value need not be 1
    return (noise - low) / (high - low) if high > low else np.zeros_like(noise)


def random_boxes(rng, height, width):
    ys, xs = (np.sort(rng.integers(0, side, (rng.integers(1, 4), 2))) for side in (height, width))
    count = min(len(ys), len(xs))
    return np.stack([xs[:count, 0], ys[:count, 0], xs[:count, 1], ys[:count, 1]], axis=1)


@pytest.mark.parametrize(
    ("count", "sides", "thresholds"), [(2000, (1, 12), GRID[::60]), (60, (15, 40), GRID[::10]), (1, (90, 99), GRID)]
)
def test_random_maps_agree_with_the_definitions_taken_literally(count, sides, thresholds):
    rng = np.random.default_rng(count)
    for _ in range(count):
        height, width = rng.integers(*sides, 2)
        score_map, truth = random_map(rng, height, width), random_boxes(rng, height, width)
        one, several = literal(score_map, truth.tolist(), thresholds)
        found = box_accuracy(score_map[None], [truth], thresholds)
        assert found.curve.tolist() == [100.0 * hit for hit in one]
        assert {iou: v.tolist() for iou, v in found.curves_v2.items()} == {
            k: [100.0 * x for x in v] for k, v in several.items()
        }


def test_a_stream_gives_what_the_whole_gives_and_holds_one_batch():
    rng = np.random.default_rng(0)
    maps = np.stack([random_map(rng, 20, 20) for _ in range(23)]).astype(np.float32)
    truth = [random_boxes(rng, 20, 20) for _ in maps]
    alive = []

    def stream():
        for start in range(0, len(maps), 5):
            assert not [batch for batch in alive if batch() is not None], "a batch is held while the next one is made"
            yield made(start)

    def made(start):
        batch = maps[start : start + 5].copy()
        alive.append(weakref.ref(batch))
        return batch

    whole, streamed = box_accuracy(torch.from_numpy(maps), truth), box_accuracy(stream(), truth)
    assert len(alive) == 5 and 0 < whole.max_box_acc < 100
    assert whole.curve.tolist() == streamed.curve.tolist() and whole[:4] == streamed[:4]


def test_boxes_that_look_at_nothing():
    truth = torch.tensor([[0, 0, 9, 9], [2, 2, 7, 7], [2, 2, 7, 6], [0, 0, 1, 1]])
    assert fixed_box_accuracy((0, 0, 9, 9), truth) == 25  # 100, 36, 30 and 4 of 100 pixels
    assert fixed_box_accuracy((0, 0, 9, 9), truth, 0.3) == 75
    assert best_centred_box(truth, (10, 10)) == ((2, 0, 7, 9), 75.0)  # 60 of 100, 36 and 30 of 60 pixels; or lying
    assert best_centred_box(truth, (10, 10), 0.7) == ((2, 2, 7, 7), 50.0)
    several = [[[0, 0, 1, 1], [0, 0, 9, 9]], [[2, 2, 7, 7]]]
    assert fixed_box_accuracy((0, 0, 9, 9), several) == 50


@given(st.lists(corners, min_size=1, max_size=5), st.sampled_from(IOUS))
def test_no_centred_box_is_better(boxes, iou):
    size, family = (7, 8), [(x, y, 7 - x, 6 - y) for x in range(4) for y in range(4)]
    scores = {box: fixed_box_accuracy(box, boxes, iou) for box in family}
    box, score = best_centred_box(boxes, size, iou)
    assert scores[box] == score == max(scores.values())


MAPS, TRUE = torch.rand(2, 5, 6), [[[0, 0, 5, 4]], [[1, 1, 1, 1], [0, 0, 2, 2]]]


@pytest.mark.parametrize(
    ("maps", "boxes", "thresholds", "sentence"),
    [
        (MAPS * 1.5 + 1, TRUE, GRID, "stretch every map to [0, 1] first"),
        (MAPS - 1.5, TRUE, GRID, "stretch every map to [0, 1] first"),
        (MAPS.where(MAPS > 0.5, torch.nan), TRUE, GRID, "values from nan to nan"),
        (MAPS[0], TRUE, GRID, "maps have shape (5, 6); expected (N, H, W)"),
        ([MAPS[0], MAPS[1]], TRUE, GRID, "maps have shape (5, 6); expected (N, H, W)"),
        (MAPS, TRUE[:1], GRID, "there are more maps than the 1 entries of boxes"),
        (MAPS[:1], TRUE, GRID, "there are 1 maps and 2 entries of boxes"),
        (iter([]), [], GRID, "there are 0 maps and 0 entries of boxes"),
        (MAPS, [TRUE[0], torch.zeros(0, 4)], GRID, "image 1 has boxes of shape (0, 4)"),
        (MAPS, [TRUE[0], []], GRID, "image 1 has boxes of shape (0,)"),
        (MAPS, [TRUE[0], [[1, 2, 3]]], GRID, "image 1 has boxes of shape (1, 3)"),
        (
            MAPS,
            [TRUE[0], [[0, 0, 6, 4]]],
            GRID,
            "box [0, 0, 6, 4] must be inclusive x0, y0, x1, y1 inside an image 6 wide",
        ),
        (MAPS, [TRUE[0], [[0, -1, 3, 3]]], GRID, "box [0, -1, 3, 3] must be"),
        (MAPS, [TRUE[0], [[3, 0, 2, 4]]], GRID, "box [3, 0, 2, 4] must be"),
        (MAPS, TRUE, [0.5, 1.0], "thresholds=[0.5 1. ] must be"),
        (MAPS, TRUE, [-0.1], "must be at least one number, all in [0, 1)"),
        (MAPS, TRUE, [], "must be at least one number, all in [0, 1)"),
        (MAPS, TRUE, [torch.nan], "must be at least one number, all in [0, 1)"),
    ],
)
def test_bad_input_gives_one_sentence(maps, boxes, thresholds, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        box_accuracy(maps, boxes, thresholds)
    assert "\n" not in str(caught.value)


def test_images_without_a_box_have_no_trivial_row():
    for call in (lambda boxes: fixed_box_accuracy((0, 0, 1, 1), boxes), lambda boxes: best_centred_box(boxes, (9, 9))):
        with pytest.raises(ValueError, match="2 images, 1 without a box"):
            call([[[0, 0, 1, 1]], []])
    with pytest.raises(ValueError, match="inside an image 3 wide, 4 high"):
        best_centred_box([[[0, 0, 3, 3]]], (4, 3))


def test_without_opencv_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'saol_lib[localize]'")):
        box_accuracy(MAPS, TRUE)
