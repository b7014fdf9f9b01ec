"""Splits in memory, cut into batches: augmented and scaled on the device, a batch at a time."""

from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saol_lib.data.splits import Split
from saol_lib.streams import stream

FLIPS = {"digits": False}  # a mirrored 3 is not a 3; the pictures of every other set may be mirrored

Rows = Callable[[int], Tensor]  # step to the rows (n,) of the global batch that this process needs
Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W) and labels (B,)


class Batches:
    """A split on the device: random passes for training (`epoch`), and the whole in order for evaluation (`all`).

    pad: pixels that a random crop may reach beyond the border, reflected there. flip: mirror half of the images.
    mean, std: of the channels (3,) in 0..1, what `normalise` takes to 0 and 1. dtype: of what `normalise` gives,
    float32 or float64. `damaged` holds the files that were skipped when the split was read.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        mean: Tensor,
        std: Tensor,
        pad: int = 0,
        flip: bool = False,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device
        self.pad = pad
        self.flip = flip
        self.size = split.size  # (H, W) that the network sees
        self.source_size = split.source_size  # (H, W) of the pictures
        self.scaling = Scaling(mean, std, split.size, device, dtype)
        self.labels = split.labels.to(device)
        self.damaged: Set[str] = frozenset(split.damaged)

        padded = _padded(split.images, pad)
        channels_last = padded.permute(0, 2, 3, 1)
        self.pixels = channels_last.contiguous().to(device)  # (N, H + 2 pad, W + 2 pad, 3) uint8

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kept(self) -> Tensor:
        """Indices (n,) of the images that `all` gives: of all of them; as `Stream` has it."""
        return torch.arange(len(self))

    def epoch(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        first: int = 0,
        rows: Rows | None = None,
    ) -> Iterator[Batch]:
        """Yield uint8 images (B, 3, H, W) and labels (B,) of a shuffled, cropped, mirrored pass; full batches only.

        first: the batch to begin with. rows: step -> which rows of the global batch are wanted, in that order; None:
        all of them.
        """
        order = self._order(seed, epoch)
        augmentation = self._augmentation(seed, epoch)
        steps = len(self) // batch_size

        for step in range(first, steps):
            wanted = torch.arange(batch_size)
            if rows is not None:
                wanted = rows(step)
            places = wanted + step * batch_size
            places = places.to(self.device, non_blocking=True)

            chosen = order[places]
            images = self._crop(chosen, augmentation.at(places))
            yield images, self.labels[chosen]

    def _order(self, seed: int, epoch: int) -> Tensor:
        """The images' indices (N,) in the order of a pass."""
        generator = stream(seed, "order", epoch)
        order = torch.randperm(len(self), generator=generator)
        return order.to(self.device)

    def _augmentation(self, seed: int, epoch: int) -> "Augmentation":
        """What happens to the picture at every place (N,) of a pass."""
        count = len(self)
        generator = stream(seed, "augment", epoch)
        largest = 2 * self.pad
        shifts = torch.randint(largest + 1, (2, count), generator=generator)
        lots = torch.rand(count, generator=generator)

        chance = 0.5 if self.flip else 0.0
        mirrored = lots < chance
        return Augmentation(shifts.to(self.device), mirrored.to(self.device))

    def _crop(self, chosen: Tensor, augmentation: "Augmentation") -> Tensor:
        """The images `chosen` (B,), each moved and perhaps mirrored in its own way."""
        height, width = self.source_size
        down = torch.arange(height, device=self.device)
        right = torch.arange(width, device=self.device)
        left = right.flip(0)

        shift_down, shift_right = augmentation.shifts[:, :, None]
        mirrored = augmentation.mirrored[:, None]
        rows = shift_down + down  # (B, H)
        columns = shift_right + torch.where(mirrored, left, right)  # (B, W)

        picture = chosen[:, None, None]
        row = rows[:, :, None]
        column = columns[:, None, :]
        images = self.pixels[picture, row, column]
        return images.permute(0, 3, 1, 2)

    def all(self, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yield (images as `normalise` gives them, labels) of the whole split in order.

        part: (n, count): batches n, n + count, n + 2 count, ... alone, the share of process n of `count`.
        """
        number, count = part
        first = number * batch_size
        stride = count * batch_size
        pictures = self._unpadded()

        for start in range(first, len(self), stride):
            here = slice(start, start + batch_size)
            images = self.normalise(pictures[here])
            yield images, self.labels[here]

    def _unpadded(self) -> Tensor:
        """The pictures (N, 3, H, W) uint8 as they are, a view."""
        height, width = self.source_size
        rows = slice(self.pad, self.pad + height)
        columns = slice(self.pad, self.pad + width)
        inner = self.pixels[:, rows, columns]
        return inner.permute(0, 3, 1, 2)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, h, w) to floats (B, 3, *size), channels last: enlarged if need be, mean 0 and deviation 1."""
        return self.scaling(images)


class Augmentation(NamedTuple):
    """How pictures are moved and mirrored, one by one."""

    shifts: Tensor  # (2, B): pixels down and right
    mirrored: Tensor  # (B,) bool

    def at(self, places: Tensor) -> "Augmentation":
        return Augmentation(self.shifts[:, places], self.mirrored[places])


class Scaling:
    """uint8 images to what the network sees: enlarged bicubically where it wants more pixels, then scaled."""

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        size: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.size = size
        self.dtype = dtype

        std = std.double()
        scale = 1 / (255 * std)
        shift = -mean.double() / std
        self.scale = scale.to(device, dtype)
        self.shift = shift.to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        values = images.to(self.dtype)
        if values.shape[2:] != self.size:
            values = F.interpolate(values, self.size, mode="bicubic", antialias=True)
            values.clamp_(0, 255)  # bicubic curves overshoot
        elif values is images:  # given floats: they stay the caller's
            values = values.clone()

        channels_last = values.permute(0, 2, 3, 1)
        channels_last.mul_(self.scale)
        channels_last.add_(self.shift)
        return values.contiguous(memory_format=torch.channels_last)


def _padded(images: Tensor, pad: int) -> Tensor:
    """Images (N, 3, H, W) with `pad` pixels more on every side, mirrored at the border pixels."""
    height, width = images.shape[2:]
    rows = _reflect(height, pad)
    columns = _reflect(width, pad)
    taller = images[:, :, rows]
    return taller[:, :, :, columns]


def _reflect(count: int, pad: int) -> Tensor:
    """Indices that pad a line of `count` pixels by `pad` on both sides, mirrored at the border pixels."""
    if pad >= count:
        raise ValueError(f"pad={pad} must be smaller than the image, {count}")
    last = count - 1
    line = torch.arange(-pad, count + pad).abs()
    folded = 2 * last - line
    return torch.where(line > last, folded, line)


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and deviation (3,) of uint8 images (N, 3, H, W), in 0..1, float64."""
    histograms = []
    for channel in images.unbind(dim=1):
        histogram = channel.flatten().bincount(minlength=256)
        histograms.append(histogram)
    counts = torch.stack(histograms).double()
    total = counts.sum(dim=1)

    levels = torch.arange(256, dtype=torch.float64)
    values = levels / 255
    mean = (counts * values).sum(dim=1) / total
    squares = (values - mean[:, None]) ** 2
    variance = (counts * squares).sum(dim=1) / total
    return mean, variance.sqrt()
