"""How much of the attention lies where (the paper's section 5.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saol_lib.localization.boxes import box_areas, check_boxes, true_boxes


def mass_inside(attention: Tensor, boxes: Sequence, size: tuple[int, int]) -> Tensor:
    """The share (B,) of every attention map that lies inside its box; each cell's mass is spread evenly over the cell.

    attention (B, 1, Ho, Wo) summing to 1 over positions; boxes (B, 4) x0, y0, x1, y1, both ends inclusive pixels of the
    image, or B entries (n, 4), of which the union counts; size (H, W) of the image.
    Raises ValueError for a box outside it. Boxes are checked where they lie: keep them on the CPU.
    """
    inside = cells_inside(boxes, attention.shape[2:], size)
    inside = inside.to(attention.device, attention.dtype)
    return (attention[:, 0] * inside).sum(dim=(1, 2))


def cells_inside(boxes: Sequence, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The share (B, Ho, Wo) of each of the `cells` (Ho, Wo) that an image's box or boxes cover, float64.

    boxes and size: as for `mass_inside`.
    """
    if isinstance(boxes, Tensor) and boxes.ndim == 2:
        return _cells_in_boxes(boxes, cells, size)
    return _cells_in_unions(true_boxes(boxes, size), cells, size)


def area_share(boxes: Sequence, size: tuple[int, int]) -> Tensor:
    """The share (B,) of the image (H, W) that each image's box or boxes cover: what uniform attention would score.

    boxes: as for `mass_inside`.
    """
    pixels = size[0] * size[1]
    if isinstance(boxes, Tensor) and boxes.ndim == 2:
        check_boxes(boxes, size)
        return box_areas(boxes) / pixels
    masks = _union_masks(true_boxes(boxes, size), size)
    return masks.sum(dim=(1, 2)) / pixels


def _cells_in_boxes(boxes: Tensor, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The share (B, Ho, Wo) of each cell that one box an image covers, float64."""
    check_boxes(boxes, size)
    rows = _overlap(cells[0], size[0], boxes[:, 1], boxes[:, 3])
    columns = _overlap(cells[1], size[1], boxes[:, 0], boxes[:, 2])
    return rows[:, :, None] * columns[:, None, :]


def _overlap(cells: int, pixels: int, first: Tensor, last: Tensor) -> Tensor:
    """The share (B, cells) of each cell of a line of `pixels` that the inclusive range first..last (B,) covers."""
    width = pixels / cells
    low = torch.arange(cells, dtype=torch.float64, device=first.device) * width
    begin = torch.maximum(low, first[:, None].double())
    end = torch.minimum(low + width, last[:, None] + 1.0)
    return (end - begin).clamp(min=0) / width


def _cells_in_unions(boxes: list[Tensor], cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The share (B, Ho, Wo) of each cell that the union of an image's boxes covers, float64."""
    masks = _union_masks(boxes, size).double()
    rows = _pixels_in_cells(cells[0], size[0])
    columns = _pixels_in_cells(cells[1], size[1])
    return rows @ masks @ columns.T


def _pixels_in_cells(cells: int, pixels: int) -> Tensor:
    """The share (cells, pixels) of each cell that each pixel of a line covers."""
    line = torch.arange(pixels)
    return _overlap(cells, pixels, line, line).T


def _union_masks(boxes: list[Tensor], size: tuple[int, int]) -> Tensor:
    """True (B, H, W) where a pixel lies in any of an image's boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, own in zip(masks, boxes, strict=True):
        for x0, y0, x1, y1 in own.tolist():
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return masks
