"""How well boxes fit: MaxBoxAcc and MaxBoxAccV2 of score maps (Choe et al., CVPR 2020), and boxes that look at nothing.

Boxes are x0, y0, x1, y1, both ends inclusive pixels. The definitions are those of clovaai's public wsolevaluation.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saol_lib.layers import at_least_float32

GRID = np.arange(0, 1, 0.001)  # the literature's thresholds
IOUS = (0.3, 0.5, 0.7)
_CHUNK = 16


class BoxAccuracy(NamedTuple):
    """Percent of the images whose box fits, at the best of the thresholds: one threshold for all images."""

    max_box_acc: float  # the box of the largest contour, IoU at least 0.5
    best_threshold: float  # of max_box_acc; the first one of equals
    per_iou: dict[float, float]  # any contour's box, IoU at least 0.3, 0.5, 0.7; each at its own best threshold
    max_box_acc_v2: float  # the mean of per_iou
    thresholds: np.ndarray  # (T,)
    curve: np.ndarray  # (T,) percent; max_box_acc is its maximum
    curves_v2: dict[float, np.ndarray]  # (T,) percent each; per_iou are their maxima


def box_accuracy(
    maps: np.ndarray | Tensor | Iterable, boxes: Sequence, thresholds: Sequence[float] | np.ndarray = GRID
) -> BoxAccuracy:
    """MaxBoxAcc and MaxBoxAccV2 of score maps (N, H, W) in [0, 1]; an iterable of such batches is held one by one.

    boxes: for every map its true boxes (n, 4) in pixels of the map, n at least 1; to fit any of them is a hit.
    At threshold tau a map's foreground is u > int(tau * max u), where u = floor(255 * map). A box runs from the first
    pixel of a contour (holes have contours too) to one past its last, clipped to the map. The largest contour is that
    of the largest polygon area. A map of zeros has the box 0, 0, 0, 0. The numbers are those of taking contours at
    every threshold; but equal foregrounds are looked at once, and those in which no box can fit any more not at all.
    Raises ValueError for maps outside [0, 1], wrong or missing boxes, counts that differ, thresholds outside [0, 1);
    ImportError without OpenCV, the extra `localize`.
    """
    thresholds = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if not len(thresholds) or not ((thresholds >= 0) & (thresholds < 1)).all():
        raise ValueError(f"thresholds={thresholds} must be at least one number, all in [0, 1)")
    hits, count, opencv = np.zeros((1 + len(IOUS), len(thresholds))), 0, _opencv()
    for batch in [maps] if hasattr(maps, "shape") else maps:
        for score_map in _numbers(batch):
            if count == len(boxes):
                raise ValueError(f"there are more maps than the {count} entries of boxes; give every map its boxes")
            truth = _true_boxes(boxes[count], score_map.shape, count)
            hits += _hits(score_map, truth, thresholds, opencv)
            count += 1
        batch = score_map = None  # let go of it before the next one is made
    if count < len(boxes) or not count:
        raise ValueError(f"there are {count} maps and {len(boxes)} entries of boxes; give every map its boxes")
    curve, *rest = 100 * hits / count
    curves, best = dict(zip(IOUS, rest, strict=True)), int(curve.argmax())
    per_iou = {iou: float(values.max()) for iou, values in curves.items()}
    mean = sum(per_iou.values()) / len(IOUS)
    return BoxAccuracy(float(curve[best]), float(thresholds[best]), per_iou, mean, thresholds, curve, curves)


def _opencv():
    try:
        import cv2
    except ImportError:
        raise ImportError("box_accuracy needs OpenCV for its contours: pip install 'saol_lib[localize]'") from None
    return cv2


def _numbers(batch: np.ndarray | Tensor) -> np.ndarray:
    maps = at_least_float32(torch.as_tensor(batch)).detach().cpu().numpy()
    if maps.ndim != 3:
        raise ValueError(f"maps have shape {maps.shape}; expected (N, H, W), or an iterable of such batches")
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):  # NaN is neither
        raise ValueError(f"maps have values from {maps.min()} to {maps.max()}; stretch every map to [0, 1] first")
    return maps


def _true_boxes(boxes: Sequence, size: tuple[int, int], number: int) -> np.ndarray:
    boxes = torch.as_tensor(boxes)
    if not boxes.numel() or boxes.shape[-1] != 4:
        raise ValueError(f"image {number} has boxes of shape {tuple(boxes.shape)}; expected (n, 4) with n at least 1")
    check_boxes(boxes.reshape(-1, 4), size)
    return boxes.reshape(-1, 4).cpu().numpy()


def contour_boxes(score_map: np.ndarray | Tensor, threshold: float) -> np.ndarray:
    """The boxes (n, 4) of all contours of a map (H, W) in [0, 1], as in `box_accuracy`; the largest contour's first."""
    levels = _levels(_numbers(score_map[None])[0])
    rectangles, largest = _contours(levels, int(threshold * levels.max()), _opencv())
    return _clipped([rectangles.pop(largest), *rectangles], levels.shape)


def _levels(score_map: np.ndarray) -> np.ndarray:
    return (score_map * 255).astype(np.uint8)


def _contours(levels: np.ndarray, cut: int, cv2) -> tuple[list, int]:
    """The rectangles x, y, w, h of all contours of levels > cut, and the place of the largest contour's among them."""
    _, binary = cv2.threshold(levels, cut, 1, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    areas = [*map(cv2.contourArea, contours)] or [0]
    return [*map(cv2.boundingRect, contours)] or [(0, 0, 0, 0)], areas.index(max(areas))


def _clipped(rectangles: list, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) whose far ends are one pixel past the rectangles, but inside the map."""
    boxes = np.array(rectangles)
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], [size[1] - 1, size[0] - 1])
    return boxes


def _hits(score_map: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, cv2) -> np.ndarray:
    """Which thresholds hit, (1 + len(IOUS), T): the largest contour's box at IoU 0.5, then any box at each of IOUS."""
    levels = _levels(score_map)
    cuts = (thresholds * levels.max()).astype(int)
    present = np.bincount(levels.ravel(), minlength=256) > 0
    _, first, same = np.unique(present.cumsum()[cuts], return_index=True, return_inverse=True)
    found = np.zeros((1 + len(IOUS), len(first)), dtype=bool)
    for start in range(0, len(first), _CHUNK):
        rectangles, starts, largest = [], [], []
        for cut in cuts[first[start : start + _CHUNK]].tolist():
            more, place = _contours(levels, cut, cv2)
            starts.append(len(rectangles))
            largest.append(len(rectangles) + place)
            rectangles += more
        boxes = _clipped(rectangles, levels.shape)
        common, areas, true_areas = _common(boxes, truth)
        fit = (common / (areas[:, None] + true_areas - common)).max(axis=1)
        part = slice(start, start + len(starts))
        found[0, part] = fit[largest] >= 0.5
        found[1:, part] = np.maximum.reduceat(fit, starts) >= np.array(IOUS)[:, None]
        if (common[starts[-1] :] / true_areas).max() < min(IOUS):
            break  # what is found at higher thresholds lies inside these boxes
    return found[:, same]


def box_iou(boxes: Sequence, others: Sequence) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and others (m, 4): of whole pixels, both ends inclusive."""
    common, areas, other_areas = _common(np.asarray(boxes), np.asarray(others))
    return common / (areas[:, None] + other_areas - common)


def _common(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that each box shares with each of the others (n, m), pixels of the boxes (n,) and of the others (m,)."""
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    sides = [(part[:, 2:] - part[:, :2] + 1).prod(axis=1) for part in (boxes, others)]
    return (high - low + 1).clip(0).prod(axis=2), *sides


def check_boxes(boxes: Tensor, size: tuple[int, int]) -> None:
    """ValueError for the first of the boxes (n, 4) that is not inside an image `size` (H, W)."""
    limit = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    wrong = (boxes < 0) | (boxes >= limit) | (boxes[:, [0, 1, 0, 1]] > boxes)
    if wrong.any():
        bad = boxes[wrong.any(dim=1)][0].tolist()
        raise ValueError(f"box {bad} must be inclusive x0, y0, x1, y1 inside an image {size[1]} wide, {size[0]} high")


def fixed_box_accuracy(box: Sequence[int], boxes: Sequence, iou: float = 0.5) -> float:
    """Percent of the images that one and the same box hits; boxes: as for `box_accuracy`."""
    return float(_fixed(np.array([box]), *_joined(boxes), iou)[0])


def best_centred_box(boxes: Sequence, size: tuple[int, int], iou: float = 0.5) -> tuple[tuple[int, ...], float]:
    """The centred box that hits the most images, and their percentage: what can be had without looking at an image.

    The family: all boxes in the middle of the image `size` (H, W) that leave x pixels free left and right and y above
    and below, x and y in steps of 1/64 of the side, whole pixels; of equals the highest, then the widest.
    It is chosen on the images that it is measured on: no box of the family does better there.
    """
    height, width = size
    check_boxes(torch.from_numpy(_joined(boxes)[0]), size)
    ys, xs = (np.arange(0, (side + 1) // 2, max(1, side // 64)) for side in size)
    truth, found = _joined(boxes), []
    for y in ys:
        family = np.stack([xs, np.full_like(xs, y), width - 1 - xs, np.full_like(xs, height - 1 - y)], axis=1)
        found += zip(_fixed(family, *truth, iou), family.tolist(), strict=True)
    share, box = max(found, key=lambda entry: entry[0])
    return tuple(box), float(share)


def _joined(boxes: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """All true boxes (M, 4), and where each image's begin (N,)."""
    parts = [np.asarray(part).reshape(-1, 4) for part in boxes]
    if not parts or not all(map(len, parts)):
        raise ValueError(f"{len(parts)} images, {sum(not len(part) for part in parts)} without a box; each needs one")
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])


def _fixed(family: np.ndarray, truth: np.ndarray, starts: np.ndarray, iou: float) -> np.ndarray:
    """Percent of the images that each box of a family (F, 4) hits."""
    return 100 * (np.maximum.reduceat(box_iou(family, truth), starts, axis=1) >= iou).mean(axis=1)
