"""A network's boxes by every protocol of weakly supervised localisation (the paper's section 6): `Localizer`."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from saol_lib.layers import Outputs, attention_entropy, largest_cell
from saol_lib.localization.accuracy import GRID, BoxAccuracy, BoxMeter
from saol_lib.localization.attention import area_share, cells_inside, mass_inside
from saol_lib.localization.boxes import (
    IOUS,
    best_centred_box,
    box_areas,
    box_iou,
    fixed_box_accuracy,
    true_boxes,
)
from saol_lib.localization.maps import GAP_METHODS, METHODS, check_classes, resized_maps, stretch
from saol_lib.options import check_choice


def largest_box(score_map: Tensor, threshold: float) -> tuple[int, int, int, int] | None:
    """The box x0, y0, x1, y1 (inclusive pixels) around the largest 8-connected area of a map (H, W) above `threshold`.

    threshold is a share of the map's maximum, in [0, 1); the first area of several equal ones; None for a map of zeros.
    """
    _check_threshold(threshold)
    return _largest_box(score_map.cpu(), threshold)


def _largest_box(score_map: Tensor, threshold: float) -> tuple[int, int, int, int] | None:
    foreground = score_map > threshold * score_map.max()
    areas, count = ndimage.label(foreground.numpy(), structure=np.ones((3, 3)))
    if not count:
        return None
    sizes = ndimage.sum_labels(areas > 0, areas, range(1, count + 1))
    rows, columns = ndimage.find_objects(areas)[sizes.argmax()]
    return columns.start, rows.start, columns.stop - 1, rows.stop - 1


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1)")


class Localization(NamedTuple):
    """What one method of one network scores on a set of images, all but `accuracy` one entry an image."""

    accuracy: BoxAccuracy
    fits: Tensor  # (N,) bool: the box at the fixed threshold has IoU at least 0.5 with a true one
    ious: Tensor  # (N,) of that box with the true one that it fits best, 0 where the map has none
    sizes: Tensor  # (N,) area of that box over that true one's
    ranks: Tensor  # (N,) how many classes score above the true one in the layer that the method reads
    covered: Tensor  # (N,) share of the image inside the true boxes
    inside: Tensor | None  # (N,) share of the attention inside them; None where the method has no attention
    entropy: Tensor | None = None  # (N,) of the attention, nats; ours
    largest_cell: Tensor | None = None  # (N,) share of the attention on its largest cell; ours
    mean_map_inside: float | None = None  # share of all images' mean attention inside the true boxes, their mean; ours

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, in percent, but for best_threshold, a share of the map's maximum (0 to 1), and entropy, in nats.

        gt_known: the boxes that fit. top1_loc_error, top5_loc_error: of all images, those whose true class is not
        among the first 1 or 5, or whose box does not fit. Each predicted class has its own map; but only that of the
        true class can be right, so the map of the true class decides. box_size: the median box's area, percent of the
        true one's. mass_inside: the attention inside the true boxes, to be held against area_share, the image inside
        them, and against mean_map_inside (ours): the mean of all images' attention inside them, which knows where
        objects usually lie, and nothing of the one picture; entropy and largest_cell: how far the attention is spread
        (ours). These five for "attention" and "abn"; mean_map_inside where all maps are of one size.
        """
        found = {"max_box_acc": self.accuracy.max_box_acc, "best_threshold": self.accuracy.best_threshold}
        found |= _rates(self.accuracy.per_iou, self.fits, self.ranks)
        found["box_size"] = 100 * float(self.sizes.median())
        if self.inside is not None:
            found["mass_inside"] = _percent(self.inside)
            found["area_share"] = _percent(self.covered)
            if self.mean_map_inside is not None:
                found["mean_map_inside"] = 100 * self.mean_map_inside
            found["entropy"] = _percent(self.entropy) / 100
            found["largest_cell"] = _percent(self.largest_cell)
        return found


def _percent(values: Tensor) -> float:
    """The mean of shares or truths (N,), in percent."""
    return 100 * float(values.double().mean())


def _rates(per_iou: dict[float, float], fits: Tensor, ranks: Tensor) -> dict[str, float]:
    found = {"max_box_acc_v2": sum(per_iou.values()) / len(per_iou)}
    for iou, value in per_iou.items():
        found[f"box_acc_{100 * iou:.0f}"] = value
    found["gt_known"] = _percent(fits)
    for k in (1, 5):
        right = fits & (ranks < k)
        found[f"top{k}_loc_error"] = _percent(~right)
    return found


class Localizer:
    """Boxes of a method for the true classes of images that come in batches: `update` with each batch, then `result`.

    model       a network that `look` (SAOLNet, ABN), on any device
    method      one of those of `score_maps`
    threshold   of the classical protocol (Zhou et al. 2016), see `largest_box`
    thresholds  those of `BoxMeter`
    size        (H, W) of the pixels that the boxes are given in; None: the pixels of the images. Where pictures were
                enlarged for the network (Tiny-ImageNet's 64 x 64 to 224 x 224, say), boxes stay in the original
                picture's pixels, `size` is that picture's, and maps are resized from their own size straight to it: so
                thresholds, contours and IoU are all measured in the original picture
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "saol",
        threshold: float = 0.2,
        thresholds: Sequence[float] | np.ndarray = GRID,
        size: tuple[int, int] | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        _check_threshold(threshold)
        self.model = model
        self.method = method
        self.threshold = threshold
        self.size = size
        self._meter = BoxMeter(thresholds)
        self._parts = []
        self._means = _MeanMap()

    @property
    def count(self) -> int:
        """The images so far."""
        return self._meter.count

    def update(self, images: Tensor, labels: Tensor, boxes: Sequence) -> None:
        """Images (B, C, H, W) as the network takes them, their labels (B,) and their true boxes.

        boxes: (B, 4), or B entries (n, 4) with n at least 1: to fit any of them is a hit. Inclusive whole pixels.
        Raises ValueError for labels outside 0..K-1, wrong boxes, and scores or maps that are not numbers.
        """
        size = self.size or tuple(images.shape[2:])
        truth = true_boxes(boxes, size, first=self.count)
        labels = labels.cpu()
        if not len(images) == len(labels) == len(truth):
            raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(truth)} entries of boxes must match")

        maps, outputs = resized_maps(self.model, images, labels, self.method, size)
        maps = maps.cpu()  # one copy a batch: from here on everything is on the CPU
        ranks = self._ranks(outputs, labels)
        self._check_numbers(maps.flatten(1), "map")

        maps = stretch(maps)
        self._meter.update(maps, truth)
        ious, sizes = self._fit(maps, truth)
        part = {"ious": ious, "sizes": sizes, "ranks": ranks, "covered": _covered(truth, size)}
        if self.method in ("attention", "abn"):
            attention = _whole(outputs.attention.cpu())
            part |= _attention_measures(attention, truth, size)
            self._means.update(attention, truth, size)
        self._parts.append(part)

    def _ranks(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """How many classes score above the true one (B,)."""
        scores = outputs.gap_logits if self.method in GAP_METHODS else outputs.saol_log_probs
        scores = scores.detach().cpu()
        check_classes(labels, len(scores), scores.shape[1])
        self._check_numbers(scores, "class scores")
        own = scores.gather(1, labels[:, None])
        return (scores > own).sum(dim=1)

    def _check_numbers(self, values: Tensor, what: str) -> None:
        broken = values.isnan().any(dim=1).nonzero()
        if len(broken):
            number = self.count + int(broken[0])
            raise ValueError(
                f"{what} of image {number} by method={self.method!r} hold NaN; expected numbers, so this network "
                f"cannot be measured: train it anew, or look for what is not finite in its weights or its images"
            )

    def _fit(self, maps: Tensor, truth: list[Tensor]) -> tuple[Tensor, Tensor]:
        """IoU (B,), float64, of the box at the fixed threshold with the true one that it fits best; their sizes."""
        ious = []
        sizes = []
        for score_map, own in zip(maps, truth, strict=True):
            found = _largest_box(score_map, self.threshold)
            if found is None:
                ious.append(0.0)
                sizes.append(0.0)
                continue
            overlaps = box_iou([found], own)[0]
            best = int(overlaps.argmax())
            areas = box_areas(torch.tensor([found])), box_areas(own[best : best + 1])
            ious.append(float(overlaps[best]))
            sizes.append(float(areas[0] / areas[1]))
        return torch.tensor(ious, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float32)

    def result(self) -> Localization:
        """All measures of the images so far; ValueError where there was none."""
        accuracy = self._meter.result()
        columns = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        fits = columns["ious"] >= 0.5
        parts = {"inside": None} | columns
        return Localization(accuracy=accuracy, fits=fits, **parts, mean_map_inside=self._means.inside())


class _MeanMap:
    """The mean attention of images that come in batches, and how much of it lies inside their boxes.

    Both are means over the images: of the maps, and of the share of each cell that a box covers. Where the maps are of
    several sizes there is no mean.
    """

    def __init__(self) -> None:
        self._attention: dict[tuple[int, int], Tensor] = {}  # sums by the maps' size
        self._covered: dict[tuple[int, int], Tensor] = {}
        self._count = 0

    def update(self, attention: Tensor, truth: list[Tensor], size: tuple[int, int]) -> None:
        """Attention (B, 1, Ho, Wo), summing to 1 over positions, and the true boxes in an image of `size`."""
        cells = tuple(attention.shape[2:])
        maps = attention[:, 0].double().sum(dim=0)
        covered = cells_inside(_simplest(truth), cells, size).sum(dim=0)
        self._attention[cells] = self._attention.get(cells, 0) + maps
        self._covered[cells] = self._covered.get(cells, 0) + covered
        self._count += len(attention)

    def inside(self) -> float | None:
        if len(self._attention) != 1:
            return None
        (maps,) = self._attention.values()
        (covered,) = self._covered.values()
        return float((maps * covered).sum()) / self._count**2


def _covered(truth: list[Tensor], size: tuple[int, int]) -> Tensor:
    return area_share(_simplest(truth), size)


def _attention_measures(attention: Tensor, truth: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "inside": mass_inside(attention, _simplest(truth), size),
        "entropy": attention_entropy(attention),
        "largest_cell": largest_cell(attention),
    }


def _whole(attention: Tensor) -> Tensor:
    """Maps (B, 1, Ho, Wo) that sum to 1 over positions; SAOL's do, ABN's do not."""
    return attention / attention.sum(dim=(2, 3), keepdim=True)


def _simplest(truth: list[Tensor]) -> Tensor | list[Tensor]:
    """Boxes as one tensor (B, 4) where every image has one: the exact way without a mask of pixels."""
    if all(len(own) == 1 for own in truth):
        return torch.cat(truth)
    return truth


def localize(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    boxes: Sequence,
    method: str = "saol",
    threshold: float = 0.2,
    thresholds: Sequence[float] | np.ndarray = GRID,
    size: tuple[int, int] | None = None,
) -> Localization:
    """Boxes of a method for the true classes of all images, by every protocol: `Localizer` in one call.

    batches: (images, labels), as `Batches.all` gives them. boxes: (N, 4) inclusive pixels of the images, or a list with
    one entry (n, 4) an image, of which any may be hit. threshold, thresholds, size: see `Localizer`; with `size` the
    boxes are in pixels of a picture of that size, and maps are resized to it instead of to the images.
    """
    localizer = Localizer(model, method, threshold, thresholds, size)
    for images, labels in batches:
        own = boxes[localizer.count : localizer.count + len(images)]
        if len(own) < len(images):
            raise ValueError(f"there are more images than the {len(boxes)} entries of boxes; give each its boxes")
        localizer.update(images, labels, own)
    if localizer.count < len(boxes):
        raise ValueError(f"there are {localizer.count} images and {len(boxes)} entries of boxes; give each its boxes")
    return localizer.result()


def trivial_rows(boxes: Sequence, size: tuple[int, int], ranks: Tensor) -> dict[str, dict[str, float]]:
    """What the whole image (H, W) and the best centred box score as boxes: metrics as those of `Localization`.

    Neither looks at the image. boxes: (N, 4), or N entries (n, 4). ranks (N,): of the true class, by the classifier
    whose classes go with these boxes.
    """
    whole = (0, 0, size[1] - 1, size[0] - 1)
    same_box = {iou: (whole, fixed_box_accuracy(whole, boxes, iou)) for iou in IOUS}
    best_boxes = {iou: best_centred_box(boxes, size, iou) for iou in IOUS}
    return {
        "whole image": _trivial_row(same_box, boxes, ranks),
        "best centred box": _trivial_row(best_boxes, boxes, ranks),
    }


def _trivial_row(found: dict[float, tuple[tuple, float]], boxes: Sequence, ranks: Tensor) -> dict[str, float]:
    """One row from the box and its percentage at each IoU; the box at 0.5 is held against the true ones."""
    box, max_box_acc = found[0.5]
    best = [box_iou([box], own).max() for own in true_boxes(boxes)]
    fits = torch.tensor(best) >= 0.5
    per_iou = {iou: score for iou, (_, score) in found.items()}
    return {"max_box_acc": max_box_acc} | _rates(per_iou, fits, ranks)
