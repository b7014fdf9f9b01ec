"""Where the network looks (the paper's sections 5 and 6): score maps, boxes, shares of attention mass inside boxes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from saol_lib.attach import SAOLNet
from saol_lib.layers import Outputs, check_choice
from saol_lib.localization.boxes import (
    GRID,
    IOUS,
    BoxAccuracy,
    best_centred_box,
    box_accuracy,
    box_iou,
    check_boxes,
    fixed_box_accuracy,
)

METHODS = ("saol", "attention", "spatial", "mask", "cam", "grad_cam", "abn")


def score_maps(model: SAOLNet, images: Tensor, classes: Tensor, method: str = "saol") -> Tensor:
    """How strongly each pixel speaks for a class: (B, H, W) in [0, 1], for images (B, C, H, W) and classes (B,).

    method "saol": A * Y_k; "attention": A alone; "spatial": Y_k alone; "mask": the predicted CutMix mask; "cam" and
    "grad_cam" of the GAP-FC layer; "abn": M of an Attention Branch Network. All are resized bicubically to the image
    and stretched to [0, 1]; a map that is constant or no number becomes 0. One forward pass without gradient, in
    evaluation mode. Raises ValueError for an unknown method and for a network without the layer that the method reads.
    """
    return _look(model, images, classes, method)[0]


@torch.inference_mode()
def _look(model: SAOLNet, images: Tensor, classes: Tensor, method: str) -> tuple[Tensor, Outputs]:
    """`score_maps`, and the outputs of the same forward pass."""
    check_choice("method", method, METHODS)
    outputs, feature = model.eval().look(images, mask=method == "mask")
    maps = raw_maps(model, outputs, feature, classes, method)
    maps = F.interpolate(maps[:, None].float(), images.shape[2:], mode="bicubic", align_corners=False)[:, 0]
    return stretch(maps), outputs


def raw_maps(model: SAOLNet, outputs: Outputs, feature: Tensor, classes: Tensor, method: str) -> Tensor:
    """A method's map (B, Ho, Wo) at its own size and scale, from what `model.look(images)` returned.

    On GAP-FC with a linear classifier Grad-CAM of the last map is the ReLU of CAM up to a positive factor.
    """
    rows = torch.arange(len(classes), device=feature.device)
    if method in ("cam", "grad_cam"):
        maps = torch.einsum("bchw,bc->bhw", feature, _classifier(model).weight[classes])
        return maps.relu() / maps[0].numel() if method == "grad_cam" else maps
    found = outputs.mask_logits if method == "mask" else outputs.attention
    if found is None or (method == "abn") != (outputs.spatial_log_probs is None):
        raise ValueError(
            f"method={method!r} reads a layer that this network lacks; give an ABN for 'abn', else one with a SAOL"
        )
    if method in ("attention", "mask", "abn"):
        return (found.sigmoid() if method == "mask" else found)[:, 0]
    votes = outputs.spatial_log_probs[rows, classes].exp()
    return votes * found[:, 0] if method == "saol" else votes


def stretch(maps: Tensor) -> Tensor:
    """Maps (B, H, W), each stretched to [0, 1]; one that is constant or holds no number becomes 0."""
    low, high = (values[:, None, None] for values in (maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))))
    return ((maps - low) / (high - low)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(0, 1)


def _classifier(model: SAOLNet) -> nn.Linear:
    """The linear layer on the pooled map; ValueError where the network has none or more than that."""
    tail = model.gap or next((m for m in reversed([*model.body.modules()]) if isinstance(m, nn.Linear)), None)
    width = model.saol.in_channels[-1] if model.saol else getattr(tail, "in_features", None)
    if tail is None or tail.in_features != width:
        raise ValueError("CAM needs a GAP-FC layer, one linear layer right after the pooling; this network has none")
    return tail


def largest_box(score_map: Tensor, threshold: float) -> tuple[int, int, int, int] | None:
    """The box x0, y0, x1, y1 (inclusive pixels) around the largest 8-connected area of a map (H, W) above `threshold`.

    threshold is a share of the map's maximum, in [0, 1); the first area of several equal ones; None for a map of zeros.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1)")
    areas, count = ndimage.label((score_map > threshold * score_map.max()).cpu().numpy(), structure=[[1] * 3] * 3)
    if not count:
        return None
    largest = ndimage.sum_labels(areas > 0, areas, range(1, count + 1)).argmax()
    rows, columns = ndimage.find_objects(areas)[largest]
    return columns.start, rows.start, columns.stop - 1, rows.stop - 1


class Localization(NamedTuple):
    """What one method of one network scores on a set of images, all but `accuracy` one entry an image."""

    accuracy: BoxAccuracy
    fits: Tensor  # (N,) bool: the box at the fixed threshold has IoU at least 0.5 with the true one
    ious: Tensor  # (N,) of that box, 0 where the map has none
    sizes: Tensor  # (N,) area of that box over the true one's
    ranks: Tensor  # (N,) how many classes score above the true one in the layer that the method reads
    covered: Tensor  # (N,) share of the image inside the true box
    inside: Tensor | None  # (N,) share of the attention inside it; None where the method has no attention

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, in percent, but for best_threshold, which is a share of the map's maximum (0 to 1).

        gt_known: the boxes that fit. top1_loc_error, top5_loc_error: of all images, those whose true class is not
        among the first 1 or 5, or whose box does not fit. Each predicted class has its own map; but only that of the
        true class can be right, so the map of the true class decides. box_size: the median box's area, percent of the
        true one's. mass_inside: the attention inside the true box, to be held against area_share, the image inside it;
        for "attention" and "abn".
        """
        found = {"max_box_acc": self.accuracy.max_box_acc, "best_threshold": self.accuracy.best_threshold}
        found |= _rates(self.accuracy.per_iou, self.fits, self.ranks) | {"box_size": 100 * float(self.sizes.median())}
        shares = {} if self.inside is None else {"mass_inside": self.inside, "area_share": self.covered}
        return found | {name: 100 * float(values.double().mean()) for name, values in shares.items()}


def _rates(per_iou: dict[float, float], fits: Tensor, ranks: Tensor) -> dict[str, float]:
    found = {"max_box_acc_v2": sum(per_iou.values()) / len(per_iou)}
    found |= {f"box_acc_{100 * iou:.0f}": value for iou, value in per_iou.items()}
    hits = {"gt_known": fits} | {f"top{k}_loc_error": ~(fits & (ranks < k)) for k in (1, 5)}
    return found | {name: 100 * float(values.double().mean()) for name, values in hits.items()}


def trivial_rows(boxes: Tensor, size: tuple[int, int], ranks: Tensor) -> dict[str, dict[str, float]]:
    """What the whole image (H, W) and the best centred box score as boxes (N, 4): metrics as those of `Localization`.

    Neither looks at the image. ranks (N,): of the true class, by the classifier whose classes go with these boxes.
    """
    whole, rows = (0, 0, size[1] - 1, size[0] - 1), {}
    found = {"whole image": {iou: (whole, fixed_box_accuracy(whole, boxes, iou)) for iou in IOUS}}
    found["best centred box"] = {iou: best_centred_box(boxes, size, iou) for iou in IOUS}
    for name, best in found.items():
        fits = torch.from_numpy(box_iou([best[0.5][0]], boxes)[0] >= 0.5)
        rates = _rates({iou: score for iou, (_, score) in best.items()}, fits, ranks)
        rows[name] = {"max_box_acc": best[0.5][1]} | rates
    return rows


def localize(
    model: SAOLNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    boxes: Tensor,
    method: str = "saol",
    threshold: float = 0.2,
    thresholds: Sequence[float] | np.ndarray = GRID,
) -> Localization:
    """Boxes of a method for the true classes of all images, by every protocol, in one pass of a batch at a time.

    batches: (images, labels), as `Batches.all` gives them; boxes (N, 4) inclusive pixels of the images.
    threshold: of the classical protocol (Zhou et al. 2016), see `largest_box`; thresholds: those of `box_accuracy`.
    """
    ious, sizes, ranks, covered, inside = [], [], [], [], []

    def stream() -> Iterator[Tensor]:
        for images, labels in batches:
            maps, outputs = _look(model, images, labels, method)
            truth = boxes[len(ious) : len(ious) + len(maps)].to(images.device)
            found = [largest_box(score_map, threshold) for score_map in maps]
            ious.extend(box_iou([a], [b])[0, 0] if a else 0.0 for a, b in zip(found, truth.tolist(), strict=True))
            own = torch.tensor([box or (0, 0, -1, -1) for box in found], device=images.device)
            sizes.append(_areas(own) / _areas(truth))
            scores = outputs.gap_logits if method in ("cam", "grad_cam", "abn") else outputs.saol_log_probs
            ranks.append((scores > scores.gather(1, labels[:, None])).sum(dim=1))
            covered.append(area_share(truth, images.shape[2:]))
            if method in ("attention", "abn"):
                whole = outputs.attention / outputs.attention.sum(dim=(2, 3), keepdim=True)
                inside.append(mass_inside(whole, truth, images.shape[2:]))
            yield maps

    accuracy = box_accuracy(stream(), boxes, thresholds)
    values = torch.tensor(ious, dtype=torch.float64)
    parts = (torch.cat(part).cpu() if part else None for part in (sizes, ranks, covered, inside))
    return Localization(accuracy, values >= 0.5, values, *parts)


def mass_inside(attention: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share (B,) of every attention map that lies inside its box; each cell's mass is spread evenly over the cell.

    attention (B, 1, Ho, Wo) summing to 1 over positions; boxes (B, 4) x0, y0, x1, y1, both ends inclusive pixels of the
    image; size (H, W) of the image. Raises ValueError for a box outside it.
    """
    check_boxes(boxes, size)
    rows = _overlap(attention.shape[2], size[0], boxes[:, 1], boxes[:, 3])
    columns = _overlap(attention.shape[3], size[1], boxes[:, 0], boxes[:, 2])
    inside = (rows[:, :, None] * columns[:, None, :]).to(attention.dtype)
    return (attention[:, 0] * inside).sum(dim=(1, 2))


def area_share(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share (B,) of the image (H, W) that each inclusive box (B, 4) covers: what uniform attention would score."""
    check_boxes(boxes, size)
    return _areas(boxes) / (size[0] * size[1])


def _areas(boxes: Tensor) -> Tensor:
    """Pixels (B,) of inclusive boxes (B, 4)."""
    return (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)


def _overlap(cells: int, pixels: int, first: Tensor, last: Tensor) -> Tensor:
    """The share (B, cells) of each cell of a line of `pixels` that the inclusive range first..last (B,) covers."""
    width = pixels / cells
    low = torch.arange(cells, dtype=torch.float64, device=first.device) * width
    inside = torch.minimum(low + width, last[:, None] + 1.0) - torch.maximum(low, first[:, None].double())
    return inside.clamp(min=0) / width
