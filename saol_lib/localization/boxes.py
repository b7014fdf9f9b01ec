"""Boxes: what counts as one, how far two agree, and what boxes score that look at no image.

A box is x0, y0, x1, y1 in whole pixels, both ends inclusive: 0, 0, 3, 1 has eight pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IOUS = (0.3, 0.5, 0.7)


def check_boxes(boxes: Tensor, size: tuple[int, int] | None = None) -> None:
    """ValueError for the first of the boxes (n, 4) that is not whole pixels inside an image `size` (H, W).

    Values are read, so boxes that lie on a GPU are waited for; keep them on the CPU. size None: of any image.
    """
    if boxes.is_floating_point():
        _check_whole(boxes)

    x0, y0, x1, y1 = boxes.unbind(dim=1)
    wrong = (x1 < x0) | (y1 < y0)
    if size is not None:
        height, width = size
        wrong |= (x0 < 0) | (y0 < 0)
        wrong |= (x1 >= width) | (y1 >= height)

    if wrong.any():
        bad = boxes[wrong][0].tolist()
        place = "" if size is None else f" inside an image {size[1]} wide, {size[0]} high"
        raise ValueError(f"box {bad} must be inclusive x0, y0, x1, y1{place}")


def _check_whole(boxes: Tensor) -> None:
    broken = (boxes != boxes.round()) | ~boxes.isfinite()
    if broken.any():
        bad = boxes[broken.any(dim=1)][0].tolist()
        raise ValueError(
            f"box {bad} must be whole pixels x0, y0, x1, y1, both ends inclusive; "
            f"turn shares of the image into pixels and leave out boxes that are no numbers"
        )


def true_boxes(boxes: Sequence, size: tuple[int, int] | None = None, first: int = 0) -> list[Tensor]:
    """The true boxes of each image as a list of int64 tensors (n, 4) on the CPU, n at least 1.

    boxes: a tensor (N, 4), one box an image; or a sequence with one entry an image, each (n, 4) or (4,), where rows of
    -1 count for nothing: `Split.boxes` (N, M, 4) is filled up with them.
    size: (H, W) of the image that they must lie inside. first: the number of the first image, for the messages.
    Raises ValueError for an image without a box, and for boxes that `check_boxes` refuses.
    """
    if isinstance(boxes, Tensor):
        boxes = boxes.cpu()
    found = []
    for number, own in enumerate(boxes, first):
        own = torch.as_tensor(own).cpu()
        if own.numel() and own.shape[-1] == 4:
            own = own.reshape(-1, 4)
            own = own[(own != -1).any(dim=1)]
        if not own.numel() or own.shape[-1] != 4:
            raise ValueError(f"image {number} has boxes of shape {tuple(own.shape)}; expected (n, 4) with n at least 1")
        check_boxes(own, size)
        found.append(own.long())
    return found


def box_areas(boxes: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Pixels (n,) of inclusive boxes (n, 4)."""
    widths = boxes[:, 2] - boxes[:, 0] + 1
    heights = boxes[:, 3] - boxes[:, 1] + 1
    return widths * heights


def box_iou(boxes: Sequence, others: Sequence) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and others (m, 4): of whole pixels, both ends inclusive.

    Raises ValueError for boxes that are not whole pixels, shares of the image say.
    """
    return _overlaps(_plain(boxes), _plain(others))


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    common = common_areas(boxes, others)
    areas = box_areas(boxes)[:, None]
    union = areas + box_areas(others) - common
    return common / union


def _plain(boxes: Sequence) -> np.ndarray:
    boxes = torch.as_tensor(boxes).cpu()
    check_boxes(boxes)
    return boxes.long().numpy()


def common_areas(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels (n, m) that each of the boxes (n, 4) shares with each of the others (m, 4)."""
    boxes = boxes[:, None]
    low = np.maximum(boxes[..., :2], others[:, :2])
    high = np.minimum(boxes[..., 2:], others[:, 2:])
    sides = high - low + 1
    return sides.clip(0).prod(axis=2)


def fixed_box_accuracy(box: Sequence[int], boxes: Sequence, iou: float = 0.5) -> float:
    """Percent of the images that one and the same box hits; boxes: as for `box_accuracy`."""
    family = _plain([list(box)])
    truth = _join(boxes)
    (rate,) = _hit_rates(family, truth, iou)
    return float(rate)


def best_centred_box(boxes: Sequence, size: tuple[int, int], iou: float = 0.5) -> tuple[tuple[int, ...], float]:
    """The centred box that hits the most images, and their percentage: what can be had without looking at an image.

    The family: all boxes in the middle of the image `size` (H, W) that leave x pixels free left and right and y above
    and below, x and y in steps of 1/64 of the side, whole pixels; of equals the highest, then the widest.
    It is chosen on the images that it is measured on: no box of the family does better there.
    """
    truth = _join(boxes, size)
    height, width = size
    margins_x = _margins(width)

    best_box = None
    best_share = -1.0
    for y in _margins(height):
        tops = np.full_like(margins_x, y)
        bottoms = np.full_like(margins_x, height - 1 - y)
        family = np.stack([margins_x, tops, width - 1 - margins_x, bottoms], axis=1)
        shares = _hit_rates(family, truth, iou)
        place = shares.argmax()
        if shares[place] > best_share:
            best_share = float(shares[place])
            best_box = tuple(family[place].tolist())
    return best_box, best_share


def _margins(side: int) -> np.ndarray:
    """The pixels that a centred box may leave free at either end of a side."""
    beyond = (side + 1) // 2
    step = max(1, side // 64)
    return np.arange(0, beyond, step)


class _Truth(NamedTuple):
    """The true boxes of all images in a row."""

    boxes: np.ndarray  # (M, 4)
    starts: np.ndarray  # (N,) the place of each image's first box


def _join(boxes: Sequence, size: tuple[int, int] | None = None) -> _Truth:
    empty = sum(not len(own) for own in boxes)
    if empty or not len(boxes):
        raise ValueError(f"{len(boxes)} images, {empty} without a box; each needs one")
    parts = true_boxes(boxes, size)
    counts = [len(part) for part in parts]
    starts = np.cumsum([0, *counts[:-1]])
    return _Truth(torch.cat(parts).numpy(), starts)


def _hit_rates(family: np.ndarray, truth: _Truth, iou: float) -> np.ndarray:
    """Percent of the images that each box of a family (F, 4) hits."""
    overlaps = _overlaps(family, truth.boxes)
    best = np.maximum.reduceat(overlaps, truth.starts, axis=1)
    hits = best >= iou
    return 100 * hits.mean(axis=1)
