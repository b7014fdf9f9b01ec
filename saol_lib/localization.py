"""Where the network looks (the paper's sections 5 and 6): score maps, boxes, shares of attention mass inside boxes."""

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from saol_lib.boxes import check_boxes
from saol_lib.layers import Outputs, check_choice
from saol_lib.models import SAOLNet

METHODS = ("saol", "attention", "spatial", "mask", "cam", "grad_cam")


def score_maps(model: SAOLNet, images: Tensor, classes: Tensor, method: str = "saol") -> Tensor:
    """How strongly each pixel speaks for a class: (B, H, W) in [0, 1], for images (B, C, H, W) and classes (B,).

    method "saol": A * Y_k; "attention": A alone; "spatial": Y_k alone; "mask": the predicted CutMix mask; "cam" and
    "grad_cam" of the GAP-FC layer. All are resized bicubically to the image and stretched to [0, 1]; a map that is
    constant or no number becomes 0. One forward pass without gradient, in evaluation mode.
    Raises ValueError for an unknown method and for a network without the layer that the method reads.
    """
    check_choice("method", method, METHODS)
    with torch.inference_mode():
        model.eval()
        maps = raw_maps(model, *model.look(images, mask=method == "mask"), classes, method)
        maps = F.interpolate(maps[:, None].float(), images.shape[2:], mode="bicubic", align_corners=False)[:, 0]
        return stretch(maps)


def raw_maps(model: SAOLNet, outputs: Outputs, feature: Tensor, classes: Tensor, method: str) -> Tensor:
    """A method's map (B, Ho, Wo) at its own size and scale, from what `model.look(images)` returned.

    On GAP-FC with a linear classifier Grad-CAM of the last map is the ReLU of CAM up to a positive factor.
    """
    rows = torch.arange(len(classes), device=feature.device)
    if method in ("cam", "grad_cam"):
        maps = torch.einsum("bchw,bc->bhw", feature, _classifier(model).weight[classes])
        return maps.relu() / maps[0].numel() if method == "grad_cam" else maps
    found = outputs.mask_logits if method == "mask" else outputs.attention
    if found is None:
        raise ValueError(f"method={method!r} reads a layer that this network lacks; build it with a SAOL, or use 'cam'")
    if method in ("attention", "mask"):
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
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1) / (size[0] * size[1])


def _overlap(cells: int, pixels: int, first: Tensor, last: Tensor) -> Tensor:
    """The share (B, cells) of each cell of a line of `pixels` that the inclusive range first..last (B,) covers."""
    width = pixels / cells
    low = torch.arange(cells, dtype=torch.float64, device=first.device) * width
    inside = torch.minimum(low + width, last[:, None] + 1.0) - torch.maximum(low, first[:, None].double())
    return inside.clamp(min=0) / width
