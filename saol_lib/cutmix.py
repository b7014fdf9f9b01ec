"""CutMix in batches (Yun et al., ICCV 2019; the paper's section 4.1), with the masks and boxes for SAOL's losses.

`mix` = `draw` (on the CPU, from a generator: who is pasted where) and then `paste` (on the images' device).
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from saol_lib.layers import at_least_float32
from saol_lib.options import check_choice

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SCHEDULES = ("paired", "sample", "batch")


class Patches(NamedTuple):
    """What `draw` draws: on the CPU, whatever the images' device. An unmixed sample has an empty box and itself."""

    boxes: Tensor  # (B, 4) int64    x0, y0, x1, y1, half-open
    partners: Tensor  # (B,) int64      index of the source in the same batch
    clean_sources: bool  # every source is an unmixed member of the batch (the paired schedule)


class Mixed(NamedTuple):
    """A CutMix-ed batch. An unmixed sample has an empty box, mask 0, share 0 and itself as partner.

    boxes and partners stay on the CPU, where they were drawn, so that nothing has to wait for the device.
    """

    images: Tensor  # (B, C, H, W)
    targets: Tensor  # (B, K)          soft labels: share of the source's class, the rest the sample's own
    masks: Tensor  # (B, 1, H, W)    1 where the source was pasted
    boxes: Tensor  # (B, 4) int64    x0, y0, x1, y1, half-open; on the CPU
    share: Tensor  # (B,)            pasted area over image area
    partners: Tensor  # (B,) int64      index of the source in the same batch; on the CPU
    clean_sources: bool  # the sources are unmixed members of the batch, so that L_SS2 needs no second pass


# --- labels -----------------------------------------------------------------------------------------------------------


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Raise ValueError unless these are class indices (B,) in 0..K-1, or soft labels (B, K), distributions over K.

    Values are read on the CPU only, not to wait for a GPU.
    """
    if targets.ndim == 2 and targets.is_floating_point() and targets.shape[1] == num_classes:
        check_values = _check_distributions
    elif targets.ndim == 1 and targets.dtype in INTEGERS:
        check_values = _check_indices
    else:
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; expected integer class indices (B,) "
            f"or floating-point soft labels (B, {num_classes})"
        )
    if targets.device.type == "cpu" and targets.numel():
        check_values(targets, num_classes)


def _check_indices(targets: Tensor, num_classes: int) -> None:
    low, high = targets.min(), targets.max()
    if low < 0 or high >= num_classes:
        raise ValueError(f"targets reach from {low} to {high}; expected 0 to {num_classes - 1}")


def _check_distributions(targets: Tensor, num_classes: int) -> None:
    values = at_least_float32(targets.detach())
    rounding = 0.02 if targets.dtype.itemsize < 4 else 1e-3
    low = values.min()
    if not low >= -rounding:  # not a number is not at least anything
        raise ValueError(
            f"soft labels reach down to {low:.3g}; expected shares of 0 to 1 that sum to 1 over the classes"
        )
    sums = values.sum(dim=1)
    row = int((sums - 1).abs().argmax())
    if not (sums[row] - 1).abs() <= rounding:
        raise ValueError(
            f"the soft labels of sample {row} sum to {sums[row]:.3g}; expected 1: divide them by their sum"
        )


def soft_labels(targets: Tensor, num_classes: int) -> Tensor:
    """Class indices (B,) or soft labels (B, K) as floating-point soft labels (B, K); ValueError for anything else."""
    check_targets(targets, num_classes)
    if targets.ndim == 2:
        return targets
    classes = torch.arange(num_classes, device=targets.device)
    return (targets[:, None] == classes).float()


# --- who is pasted where ----------------------------------------------------------------------------------------------


def sample_boxes(count: int, height: int, width: int, alpha: float = 1.0, generator: Generator | None = None) -> Tensor:
    """`count` rectangles (count, 4) int64, x0, y0, x1, y1 half-open, clipped to the image; they may be empty.

    CutMix's law: lam ~ Beta(alpha, alpha), sides sqrt(1 - lam) of the image's, the centre uniform over the pixels.
    """
    uniform, cy, cx = torch.rand(3, count, generator=generator, dtype=torch.float64)
    lam = uniform if alpha == 1 else _sample_beta(count, alpha, generator)
    side = (1 - lam).clamp(min=0).sqrt()

    half_h = (height * side).long() // 2
    half_w = (width * side).long() // 2
    cy = (cy * height).long()
    cx = (cx * width).long()

    x0 = (cx - half_w).clamp(0, width)
    x1 = (cx + half_w).clamp(0, width)
    y0 = (cy - half_h).clamp(0, height)
    y1 = (cy + half_h).clamp(0, height)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _sample_beta(count: int, alpha: float, generator: Generator | None) -> Tensor:
    """Draws (count,) from Beta(alpha, alpha), the first part of a Dirichlet of two."""
    both = torch.full((count, 2), alpha, dtype=torch.float64)
    return torch._sample_dirichlet(both, generator)[:, 0]


def draw(
    batch: int,
    size: tuple[int, int],
    *,
    probability: float = 0.5,
    alpha: float = 1.0,
    schedule: str = "paired",
    generator: Generator | None = None,
) -> Patches:
    """Boxes and partners for a batch of images of `size` (H, W); the arguments are those of `mix`."""
    check_choice("schedule", schedule, SCHEDULES)
    if batch < 2:
        raise ValueError(f"CutMix needs a batch of at least 2, got {batch}")
    if not 0 <= probability <= 1 or not 0 < alpha < float("inf"):
        raise ValueError(f"probability={probability} must lie in 0..1 and alpha={alpha} above 0 and be finite")
    if schedule == "paired" and probability != 0.5:
        raise ValueError(f"probability={probability}: the paired schedule always mixes half of the batch, use 0.5")

    if schedule == "paired":
        boxes, partners = _draw_paired(batch, size, alpha, generator)
    elif schedule == "sample":
        boxes, partners = _draw_per_sample(batch, size, probability, alpha, generator)
    else:
        boxes, partners = _draw_per_batch(batch, size, probability, alpha, generator)

    empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    boxes[empty] = 0
    partners = torch.where(empty, torch.arange(batch), partners)
    return Patches(boxes, partners, clean_sources=schedule == "paired")


def _draw_paired(batch: int, size: tuple[int, int], alpha: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """A random half takes its patches from the half that stays clean."""
    order = torch.randperm(batch, generator=generator)
    half = batch // 2
    chosen = order[:half]
    sources = order[half : 2 * half]

    boxes = torch.zeros(batch, 4, dtype=torch.int64)
    partners = torch.arange(batch)
    boxes[chosen] = sample_boxes(half, *size, alpha, generator)
    partners[chosen] = sources
    return boxes, partners


def _draw_per_sample(
    batch: int, size: tuple[int, int], probability: float, alpha: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Each sample by itself, from any other sample, mixed or not."""
    chosen = torch.rand(batch, generator=generator) < probability
    boxes = sample_boxes(batch, *size, alpha, generator)
    shift = torch.randint(1, batch, (batch,), generator=generator)  # never itself

    own = torch.arange(batch)
    partners = torch.where(chosen, (own + shift) % batch, own)
    return boxes * chosen[:, None], partners


def _draw_per_batch(
    batch: int, size: tuple[int, int], probability: float, alpha: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """The original: one rectangle and one permutation, or nothing."""
    chosen = torch.rand(1, generator=generator) < probability
    box = sample_boxes(1, *size, alpha, generator)
    order = torch.randperm(batch, generator=generator)

    own = torch.arange(batch)
    partners = torch.where(chosen, order, own)
    return box * (partners != own)[:, None], partners


# --- pasting ----------------------------------------------------------------------------------------------------------


def paste(images: Tensor, targets: Tensor, num_classes: int, boxes: Tensor, partners: Tensor) -> Mixed:
    """Paste `boxes` (B, 4) of the samples `partners` (B,) into `images` (B, C, H, W) and weigh the labels by area.

    boxes: int64 on the CPU, x0, y0, x1, y1, half-open; one that is empty leaves its sample as it is.
    Raises ValueError for a box outside the image, a partner outside the batch, and wrong shapes and labels.
    """
    _check_images(images, targets)
    _check_patches(images, boxes, partners)
    height, width = images.shape[-2:]
    labels = soft_labels(targets, num_classes)

    to_device = {"device": images.device, "non_blocking": True}
    x0, y0, x1, y1 = boxes.to(**to_device).unbind(dim=1)
    sources = partners.to(**to_device)

    masks = _inside(x0, y0, x1, y1, height, width)
    share = (x1 - x0) * (y1 - y0) / (height * width)
    share = share.to(labels.dtype)
    return Mixed(
        images=torch.where(masks, images[sources], images),
        targets=torch.lerp(labels, labels[sources], share[:, None]),
        masks=masks.to(labels.dtype),
        boxes=boxes,
        share=share,
        partners=partners,
        clean_sources=_have_clean_sources(boxes, partners),
    )


def _inside(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of each image lie in its box: bool (B, 1, H, W) from the box's sides (B,)."""
    x = torch.arange(width, device=x0.device)
    y = torch.arange(height, device=x0.device)
    columns = (x >= x0[:, None]) & (x < x1[:, None])  # (B, W)
    rows = (y >= y0[:, None]) & (y < y1[:, None])  # (B, H)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _have_clean_sources(boxes: Tensor, partners: Tensor) -> bool:
    mixed = mixed_rows(boxes)
    return not boxes[partners[mixed]].any()


def mixed_rows(boxes: Tensor) -> Tensor:
    """The indices (N,) of the samples with a box that is not empty, from boxes (B, 4)."""
    wide = boxes[:, 2] > boxes[:, 0]
    high = boxes[:, 3] > boxes[:, 1]
    return (wide & high).nonzero()[:, 0]


def _check_images(images: Tensor, targets: Tensor) -> None:
    if images.ndim != 4 or images.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"CutMix needs images (B, C, H, W) and as many targets, got {tuple(images.shape)} and "
            f"{tuple(targets.shape)}"
        )


def _check_patches(images: Tensor, boxes: Tensor, partners: Tensor) -> None:
    batch, _, height, width = images.shape
    if boxes.shape != (batch, 4) or partners.shape != (batch,):
        raise ValueError(
            f"boxes {tuple(boxes.shape)} and partners {tuple(partners.shape)} must be ({batch}, 4) and ({batch},), "
            f"one for each image"
        )
    for name, value in (("boxes", boxes), ("partners", partners)):
        if value.device.type != "cpu" or value.dtype != torch.int64:
            raise ValueError(f"{name} are {value.dtype} on {value.device}; expected int64 on the CPU")

    x0, y0, x1, y1 = boxes.unbind(dim=1)
    outside = (x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height) | (x1 < x0) | (y1 < y0)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"the box {boxes[row].tolist()} of sample {row} does not lie in an image {width} wide and {height} high; "
            f"expected x0, y0, x1, y1 with 0 <= x0 <= x1 <= {width} and 0 <= y0 <= y1 <= {height}"
        )
    if batch and (partners.min() < 0 or partners.max() >= batch):
        raise ValueError(f"partners reach from {partners.min()} to {partners.max()}; expected 0 to {batch - 1}")


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

    images (B, C, H, W) of any type and device; targets: integer classes (B,) in 0..K-1, or soft labels (B, K), K being
    num_classes; generator on the CPU, None for torch's own. Returns a `Mixed`, its targets soft labels (B, K).
    schedule "paired": a random half of the batch, floor(B/2) samples, is mixed, each with its own rectangle and its own
    source in the half that stays clean (so `probability` is 0.5); "sample": each sample with `probability`, own
    rectangle, own source; "batch": the original, one rectangle and one permutation, with `probability`.
    Raises ValueError for a batch of one, a probability outside 0..1, alpha not above 0, or wrong shapes and labels.
    """
    _check_images(images, targets)
    size = images.shape[-2:]
    patches = draw(len(images), size, probability=probability, alpha=alpha, schedule=schedule, generator=generator)
    mixed = paste(images, targets, num_classes, patches.boxes, patches.partners)
    return mixed._replace(clean_sources=patches.clean_sources)


def unmixed(images: Tensor, targets: Tensor, num_classes: int) -> Mixed:
    """The batch as it is, in the form that the losses take: arguments and errors are those of `mix`."""
    count = len(images)
    nothing = torch.zeros(count, 4, dtype=torch.int64)
    return paste(images, targets, num_classes, nothing, torch.arange(count))
