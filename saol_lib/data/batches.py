"""Splits in memory, cut into batches: augmented and scaled on the device, a batch at a time."""

from collections.abc import Callable, Iterator, Set

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
        self.device, self.pad, self.flip = device, pad, flip
        self.size, self.source_size = split.size, split.source_size  # (H, W) that the network sees, of the pictures
        self.scaling = Scaling(mean, std, split.size, device, dtype)
        self.labels = split.labels.to(device)
        self.damaged: Set[str] = frozenset(split.damaged)

        height, width = split.source_size
        rows, columns = _reflect(height, pad), _reflect(width, pad)
        padded = split.images[:, :, rows][:, :, :, columns]
        self.pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)  # (N, H + 2 pad, W + 2 pad, 3) uint8

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kept(self) -> Tensor:
        """Indices (n,) of the images that `all` gives: of all of them; as `Stream` has it."""
        return torch.arange(len(self))

    def epoch(
        self, batch_size: int, seed: int, epoch: int, first: int = 0, rows: Rows | None = None
    ) -> Iterator[Batch]:
        """Yield uint8 images (B, 3, H, W) and labels (B,) of a shuffled, cropped, mirrored pass; full batches only.

        first: the batch to begin with. rows: step -> which rows of the global batch are wanted, in that order; None:
        all of them.
        """
        count = len(self)
        generator = stream(seed, "augment", epoch)
        order = torch.randperm(count, generator=stream(seed, "order", epoch)).to(self.device)
        shifts = torch.randint(2 * self.pad + 1, (2, count), generator=generator).to(self.device)
        chance = 0.5 if self.flip else 0.0
        mirrored = (torch.rand(count, generator=generator) < chance).to(self.device)

        for step in range(first, count // batch_size):
            places = torch.arange(batch_size)
            if rows is not None:
                places = rows(step)
            places = (places + step * batch_size).to(self.device, non_blocking=True)
            chosen = order[places]
            yield self._crop(chosen, shifts[:, places], mirrored[places]), self.labels[chosen]

    def _crop(self, chosen: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        """The images `chosen` (B,), each moved by its own `shifts` (2, B) down and right, some `mirrored` (B,)."""
        height, width = self.source_size
        down = torch.arange(height, device=self.device)
        right = torch.arange(width, device=self.device)

        rows = shifts[0, :, None] + down
        columns = shifts[1, :, None] + torch.where(mirrored[:, None], right.flip(0), right)
        images = self.pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images.permute(0, 3, 1, 2)

    def all(self, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yield (images as `normalise` gives them, labels) of the whole split in order.

        part: (n, count): batches n, n + count, n + 2 count, ... alone, the share of process n of `count`.
        """
        height, width = self.source_size
        inner = self.pixels[:, self.pad : self.pad + height, self.pad : self.pad + width]
        number, count = part
        for start in range(number * batch_size, len(self), count * batch_size):
            here = slice(start, start + batch_size)
            images = inner[here].permute(0, 3, 1, 2)
            yield self.normalise(images), self.labels[here]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, h, w) to floats (B, 3, *size), channels last: enlarged if need be, mean 0 and deviation 1."""
        return self.scaling(images)


class Scaling:
    """uint8 images to what the network sees: enlarged bicubically where it wants more pixels, then scaled."""

    def __init__(
        self, mean: Tensor, std: Tensor, size: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.size, self.dtype = size, dtype
        mean, std = mean.double(), std.double()
        self.scale = (1 / (255 * std)).to(device, dtype)
        self.shift = (-mean / std).to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        values = images.to(self.dtype)
        if values.shape[2:] != self.size:
            values = F.interpolate(values, self.size, mode="bicubic", antialias=True).clamp_(0, 255)
        elif values is images:  # given floats: they stay the caller's
            values = values.clone()
        scaled = values.permute(0, 2, 3, 1).mul_(self.scale).add_(self.shift)
        return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _reflect(count: int, pad: int) -> Tensor:
    """Indices that pad a line of `count` pixels by `pad` on both sides, mirrored at the border pixels."""
    if pad >= count:
        raise ValueError(f"pad={pad} must be smaller than the image, {count}")
    line = torch.arange(-pad, count + pad).abs()
    return torch.where(line < count, line, 2 * (count - 1) - line)


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and deviation (3,) of uint8 images (N, 3, H, W), in 0..1, float64."""
    histograms = [images[:, channel].flatten().bincount(minlength=256) for channel in range(images.shape[1])]
    counts = torch.stack(histograms).double()
    total = counts.sum(dim=1)

    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(dim=1) / total
    distance = values - mean[:, None]
    variance = (counts * distance**2).sum(dim=1) / total
    return mean, variance.sqrt()
