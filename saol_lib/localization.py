"""Where the attention lies (the paper's section 5): shares of attention mass inside boxes."""

import torch
from torch import Tensor


def mass_inside(attention: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share (B,) of every attention map that lies inside its box; each cell's mass is spread evenly over the cell.

    attention (B, 1, Ho, Wo) summing to 1 over positions; boxes (B, 4) x0, y0, x1, y1, both ends inclusive pixels of the
    image; size (H, W) of the image. Raises ValueError for a box outside it.
    """
    _check_boxes(boxes, size)
    rows = _overlap(attention.shape[2], size[0], boxes[:, 1], boxes[:, 3])
    columns = _overlap(attention.shape[3], size[1], boxes[:, 0], boxes[:, 2])
    inside = (rows[:, :, None] * columns[:, None, :]).to(attention.dtype)
    return (attention[:, 0] * inside).sum(dim=(1, 2))


def area_share(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share (B,) of the image (H, W) that each inclusive box (B, 4) covers: what uniform attention would score."""
    _check_boxes(boxes, size)
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1) / (size[0] * size[1])


def _overlap(cells: int, pixels: int, first: Tensor, last: Tensor) -> Tensor:
    """The share (B, cells) of each cell of a line of `pixels` that the inclusive range first..last (B,) covers."""
    width = pixels / cells
    low = torch.arange(cells, dtype=torch.float64, device=first.device) * width
    inside = torch.minimum(low + width, last[:, None] + 1.0) - torch.maximum(low, first[:, None].double())
    return inside.clamp(min=0) / width


def _check_boxes(boxes: Tensor, size: tuple[int, int]) -> None:
    limit = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    wrong = (boxes < 0) | (boxes >= limit) | (boxes[:, [0, 1, 0, 1]] > boxes)
    if wrong.any():
        bad = boxes[wrong.any(dim=1)][0].tolist()
        raise ValueError(f"box {bad} must be inclusive x0, y0, x1, y1 inside an image {size[1]} wide, {size[0]} high")
