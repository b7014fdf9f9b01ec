"""MaxBoxAcc and MaxBoxAccV2 of score maps (Choe et al., CVPR 2020), by the definitions of clovaai's wsolevaluation."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saol_lib.layers import at_least_float32
from saol_lib.localization.boxes import IOUS, box_areas, common_areas, true_boxes

GRID = np.arange(0, 1, 0.001)  # the literature's thresholds
_CHUNK = 16  # thresholds that are looked at together


class BoxAccuracy(NamedTuple):
    """Percent of the images whose box fits, at the best of the thresholds: one threshold for all images."""

    max_box_acc: float  # the box of the largest contour, IoU at least 0.5
    best_threshold: float  # of max_box_acc; the first one of equals
    per_iou: dict[float, float]  # any contour's box, IoU at least 0.3, 0.5, 0.7; each at its own best threshold
    max_box_acc_v2: float  # the mean of per_iou
    thresholds: np.ndarray  # (T,)
    curve: np.ndarray  # (T,) percent; max_box_acc is its maximum
    curves_v2: dict[float, np.ndarray]  # (T,) percent each; per_iou are their maxima


class BoxMeter:
    """MaxBoxAcc and MaxBoxAccV2 of maps that come in batches: `update` with each batch, then `result`.

    At threshold tau a map's foreground is u > int(tau * max u), where u = floor(255 * map). A box runs from the first
    pixel of a contour (holes have contours too) to one past its last, clipped to the map. The largest contour is that
    of the largest polygon area. A map of zeros has the box 0, 0, 0, 0. The numbers are those of taking contours at
    every threshold; but equal foregrounds are looked at once, and those in which no box can fit any more not at all.
    Raises ValueError for thresholds outside [0, 1); ImportError without OpenCV, the extra `localize`.
    """

    def __init__(self, thresholds: Sequence[float] | np.ndarray = GRID) -> None:
        self.thresholds = np.asarray(thresholds, dtype=np.float64).reshape(-1)
        inside = (self.thresholds >= 0) & (self.thresholds < 1)
        if not len(inside) or not inside.all():
            raise ValueError(f"thresholds={self.thresholds} must be at least one number, all in [0, 1)")
        self._opencv = _opencv()
        self._hits = np.zeros((1 + len(IOUS), len(self.thresholds)), dtype=np.int64)
        self.count = 0

    def update(self, maps: np.ndarray | Tensor, boxes: Sequence) -> None:
        """Maps (B, H, W) in [0, 1], and for each its true boxes in pixels of the map: to fit any of them is a hit.

        boxes: (B, 4), or B entries (n, 4) with n at least 1, whole pixels, both ends inclusive.
        Raises ValueError for maps outside [0, 1], wrong or missing boxes, counts that differ.
        """
        maps = _numbers(maps)
        if len(maps) != len(boxes):
            raise ValueError(f"there are {len(maps)} maps and {len(boxes)} entries of boxes; give every map its boxes")

        truth = true_boxes(boxes, maps.shape[1:], first=self.count)
        for score_map, own in zip(maps, truth, strict=True):
            self._hits += _hits(score_map, own.numpy(), self.thresholds, self._opencv)
        self.count += len(maps)

    def result(self) -> BoxAccuracy:
        """The accuracies over all maps so far; ValueError where there was none."""
        if not self.count:
            raise ValueError("there are 0 maps and 0 entries of boxes; give every map its boxes")

        curve, *rest = 100 * self._hits / self.count
        best = int(curve.argmax())
        curves = dict(zip(IOUS, rest, strict=True))
        per_iou = {iou: float(values.max()) for iou, values in curves.items()}
        return BoxAccuracy(
            max_box_acc=float(curve[best]),
            best_threshold=float(self.thresholds[best]),
            per_iou=per_iou,
            max_box_acc_v2=sum(per_iou.values()) / len(per_iou),
            thresholds=self.thresholds,
            curve=curve,
            curves_v2=curves,
        )


def box_accuracy(
    maps: np.ndarray | Tensor | Iterable, boxes: Sequence, thresholds: Sequence[float] | np.ndarray = GRID
) -> BoxAccuracy:
    """MaxBoxAcc and MaxBoxAccV2 of score maps (N, H, W) in [0, 1]; an iterable of such batches is held one by one.

    boxes: (N, 4) or N entries (n, 4), see `BoxMeter`, which says what is measured and what raises.
    """
    meter = BoxMeter(thresholds)
    batches = [maps] if hasattr(maps, "shape") else maps
    for batch in batches:
        numbers = _numbers(batch)
        own = boxes[meter.count : meter.count + len(numbers)]
        if len(own) < len(numbers):
            raise ValueError(f"there are more maps than the {len(boxes)} entries of boxes; give every map its boxes")
        meter.update(numbers, own)
        batch = numbers = None  # let go of it before the next one is made

    if meter.count < len(boxes):
        raise ValueError(f"there are {meter.count} maps and {len(boxes)} entries of boxes; give every map its boxes")
    return meter.result()


def contour_boxes(score_map: np.ndarray | Tensor, threshold: float) -> np.ndarray:
    """The boxes (n, 4) of all contours of a map (H, W) in [0, 1], as in `BoxMeter`; the largest contour's first."""
    levels = _levels(_numbers(score_map[None])[0])
    cut = int(threshold * levels.max())
    rectangles, largest = _contours(levels, cut, _opencv())
    first = rectangles.pop(largest)
    return _clipped([first, *rectangles], levels.shape)


def _opencv():
    try:
        import cv2
    except ImportError:
        raise ImportError("box_accuracy needs OpenCV for its contours: pip install 'saol_lib[localize]'") from None
    return cv2


def _numbers(maps: np.ndarray | Tensor) -> np.ndarray:
    """Maps (N, H, W) as an array, checked."""
    maps = at_least_float32(torch.as_tensor(maps)).detach().cpu().numpy()
    if maps.ndim != 3:
        raise ValueError(f"maps have shape {maps.shape}; expected (N, H, W), or an iterable of such batches")
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):  # NaN is neither
        raise ValueError(f"maps have values from {maps.min()} to {maps.max()}; stretch every map to [0, 1] first")
    return maps


def _levels(score_map: np.ndarray) -> np.ndarray:
    return (score_map * 255).astype(np.uint8)


def _contours(levels: np.ndarray, cut: int, cv2) -> tuple[list, int]:
    """The rectangles x, y, w, h of all contours of levels > cut, and the place of the largest contour's among them."""
    _, foreground = cv2.threshold(levels, cut, 1, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [(0, 0, 0, 0)], 0
    areas = [cv2.contourArea(contour) for contour in contours]
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    return rectangles, areas.index(max(areas))


def _clipped(rectangles: list, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) whose far ends are one pixel past the rectangles, but inside the map."""
    boxes = np.array(rectangles)
    ends = boxes[:, :2] + boxes[:, 2:]
    last = [size[1] - 1, size[0] - 1]
    boxes[:, 2:] = np.minimum(ends, last)
    return boxes


def _hits(score_map: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, cv2) -> np.ndarray:
    """Which thresholds hit, (1 + len(IOUS), T): the largest contour's box at IoU 0.5, then any box at each of IOUS."""
    levels = _levels(score_map)
    cuts, place = _different_cuts(levels, thresholds)
    found = np.zeros((1 + len(IOUS), len(cuts)), dtype=bool)
    for start in range(0, len(cuts), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[:, part], may_fit = _hits_of_cuts(levels, cuts[part].tolist(), truth, cv2)
        if not may_fit:
            break
    return found[:, place]


def _different_cuts(levels: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cuts (n,), rising, that give different foregrounds; and which of them each threshold (T,) stands for."""
    cuts = (thresholds * levels.max()).astype(int)
    present = np.bincount(levels.ravel(), minlength=256) > 0
    levels_up_to = present.cumsum()  # cuts that leave the same levels out have the same foreground
    _, first, place = np.unique(levels_up_to[cuts], return_index=True, return_inverse=True)
    return cuts[first], place


def _hits_of_cuts(levels: np.ndarray, cuts: list[int], truth: np.ndarray, cv2) -> tuple[np.ndarray, bool]:
    """The hits (1 + len(IOUS), n) of some cuts, and whether a box of a higher cut may still fit."""
    rectangles = []
    starts = []
    largest = []
    for cut in cuts:
        own, place = _contours(levels, cut, cv2)
        starts.append(len(rectangles))
        largest.append(len(rectangles) + place)
        rectangles += own

    boxes = _clipped(rectangles, levels.shape)
    common = common_areas(boxes, truth)
    overlaps = common / (box_areas(boxes)[:, None] + box_areas(truth) - common)
    fit = overlaps.max(axis=1)
    best = np.maximum.reduceat(fit, starts)

    one = fit[largest] >= 0.5
    several = best >= np.array(IOUS)[:, None]
    covered = common[starts[-1] :] / box_areas(truth)  # what a higher cut finds lies inside these boxes
    return np.vstack([one, several]), covered.max() >= min(IOUS)
