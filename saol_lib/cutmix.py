"""CutMix in batches (Yun et al., ICCV 2019; the paper's section 4.1), with the masks and boxes for SAOL's losses."""

from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Generator, Tensor

from saol_lib.layers import check_choice

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SCHEDULES = ("paired", "sample", "batch")


class Mixed(NamedTuple):
    """A CutMix-ed batch. An unmixed sample has an empty box, mask 0, share 0 and itself as partner."""

    images: Tensor  # (B, C, H, W)
    targets: Tensor  # (B, K)          soft labels: share of the source's class, the rest the sample's own
    masks: Tensor  # (B, 1, H, W)    1 where the source was pasted
    boxes: Tensor  # (B, 4) int64    x0, y0, x1, y1, half-open; stays on the CPU, where it was drawn
    share: Tensor  # (B,)            pasted area over image area
    partners: Tensor  # (B,) int64      index of the source in the same batch


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Class indices (B,) in 0..K-1, or soft labels (B, K). Values are read on the CPU only, not to wait for a GPU."""
    if targets.ndim == 2 and targets.is_floating_point() and targets.shape[1] == num_classes:
        return
    if targets.ndim != 1 or targets.dtype not in INTEGERS:
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; expected integer class indices (B,) "
            f"or floating-point soft labels (B, {num_classes})"
        )
    if targets.device.type == "cpu" and targets.numel() and not 0 <= targets.min() <= targets.max() < num_classes:
        raise ValueError(f"targets reach from {targets.min()} to {targets.max()}; expected 0 to {num_classes - 1}")


def soft_labels(targets: Tensor, num_classes: int) -> Tensor:
    """Class indices (B,) or soft labels (B, K) as floating-point soft labels (B, K)."""
    check_targets(targets, num_classes)
    if targets.ndim == 2:
        return targets
    return (targets[:, None] == torch.arange(num_classes, device=targets.device)).float()


def sample_boxes(count: int, height: int, width: int, alpha: float = 1.0, generator: Generator | None = None) -> Tensor:
    """`count` rectangles (count, 4) int64, x0, y0, x1, y1 half-open, clipped to the image; they may be empty.

    CutMix's law: lam ~ Beta(alpha, alpha), sides sqrt(1 - lam) of the image's, the centre uniform over the pixels.
    """
    u, cy, cx = torch.rand(3, count, generator=generator, dtype=torch.float64)
    lam = u if alpha == 1 else torch.from_numpy(betaincinv(alpha, alpha, u.numpy()))
    side = (1 - lam).clamp(min=0).sqrt()
    half_h, half_w = ((size * side).long() // 2 for size in (height, width))
    cy, cx = (cy * height).long(), (cx * width).long()
    x0, x1 = (cx - half_w).clamp(0, width), (cx + half_w).clamp(0, width)
    y0, y1 = (cy - half_h).clamp(0, height), (cy + half_h).clamp(0, height)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _draw(batch: int, height: int, width: int, probability: float, alpha: float, schedule: str, generator):
    """Boxes (B, 4) and partners (B,) on the CPU; empty boxes where nothing is pasted."""
    boxes, partners = torch.zeros(batch, 4, dtype=torch.int64), torch.arange(batch)
    if schedule == "paired":  # a random half takes its patches from the half that stays clean
        order, half = torch.randperm(batch, generator=generator), batch // 2
        chosen, sources = order[:half], order[half : 2 * half]
        boxes[chosen], partners[chosen] = sample_boxes(half, height, width, alpha, generator), sources
    elif schedule == "sample":
        chosen = torch.rand(batch, generator=generator) < probability
        boxes = sample_boxes(batch, height, width, alpha, generator) * chosen[:, None]
        shift = torch.randint(1, batch, (batch,), generator=generator)  # never itself
        partners = torch.where(chosen, (partners + shift) % batch, partners)
    else:
        chosen = torch.rand(1, generator=generator) < probability
        box, order = sample_boxes(1, height, width, alpha, generator), torch.randperm(batch, generator=generator)
        partners = torch.where(chosen, order, partners)
        boxes = box * (partners != torch.arange(batch))[:, None]
    empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    boxes[empty] = 0
    return boxes, torch.where(empty, torch.arange(batch), partners)


def paste(images: Tensor, targets: Tensor, num_classes: int, boxes: Tensor, partners: Tensor) -> Mixed:
    """Paste `boxes` (B, 4) of the samples `partners` (B,) into `images` (B, C, H, W) and weigh the labels by area."""
    height, width = images.shape[-2:]
    device = images.device
    on_device = boxes.to(device, non_blocking=True)
    x0, y0, x1, y1 = on_device.view(-1, 4, 1, 1, 1).unbind(1)
    ys = torch.arange(height, device=device)[:, None]
    xs = torch.arange(width, device=device)
    inside = (ys >= y0) & (ys < y1) & (xs >= x0) & (xs < x1)  # (B, 1, H, W)
    partners = partners.to(device, non_blocking=True)
    labels = soft_labels(targets, num_classes)
    share = (on_device[:, 2] - on_device[:, 0]) * (on_device[:, 3] - on_device[:, 1]) / (height * width)
    share = share.to(labels.dtype)
    return Mixed(
        images=torch.where(inside, images[partners], images),
        targets=torch.lerp(labels, labels[partners], share[:, None]),
        masks=inside.to(labels.dtype),
        boxes=boxes,
        share=share,
        partners=partners,
    )


def mix(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    probability: float = 0.5,
    alpha: float = 1.0,
    schedule: str = "paired",
    generator: Generator | None = None,
) -> Mixed:
    """CutMix a batch: x' = M * source + (1 - M) * x, y' weighted by the areas.

    images (B, C, H, W) of any type and device, targets as `check_targets` says, generator on the CPU.
    schedule "paired": a random half of the batch, floor(B/2) samples, is mixed, each with its own rectangle and its own
    source in the half that stays clean (so `probability` is 0.5); "sample": each sample with `probability`, own
    rectangle, own source; "batch": the original, one rectangle and one permutation, with `probability`.
    Raises ValueError for a batch of one, a probability outside 0..1, alpha not above 0, or wrong shapes and labels.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if images.ndim != 4 or len(images) < 2 or images.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"CutMix needs images (B, C, H, W) with B of at least 2 and as many targets, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    if not 0 <= probability <= 1 or not alpha > 0:
        raise ValueError(f"probability={probability} must lie in 0..1 and alpha={alpha} above 0")
    if schedule == "paired" and probability != 0.5:
        raise ValueError(f"probability={probability}: the paired schedule always mixes half of the batch, use 0.5")
    boxes, partners = _draw(len(images), *images.shape[-2:], probability, alpha, schedule, generator)
    return paste(images, targets, num_classes, boxes, partners)


def unmixed(images: Tensor, targets: Tensor, num_classes: int) -> Mixed:
    """The batch as it is, in the form that the losses take."""
    count = len(images)
    return paste(images, targets, num_classes, torch.zeros(count, 4, dtype=torch.int64), torch.arange(count))
