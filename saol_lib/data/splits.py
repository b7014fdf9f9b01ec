"""What a data set is: splits of images with labels and boxes, in memory (`Split`) or as files (`Files`)."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from saol_lib.data.images import middle, read_pixels
from saol_lib.streams import stream

SPLITS = ("test", "held_out")  # what a run may be evaluated on


class Split(NamedTuple):
    """Images in memory, with labels, and with boxes where there are any.

    A box is x0, y0, x1, y1 in pixels of `images`, both ends inclusive: one pixel wide has x0 == x1. Sets with one box
    an image have boxes (N, 4); sets with several have (N, M, 4), where rows of -1 fill up after an image's last box.
    """

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64
    boxes: Tensor | None = None  # (N, 4) or (N, M, 4) int64
    groups: Tensor | None = None  # (N,) int64: images with one number show the same original; None: none do
    side: int | None = None  # pixels a side that the network sees; None: the images as they are
    damaged: tuple[str, ...] = ()  # files that could not be read and were skipped

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of the pictures, in whose pixels boxes count."""
        height, width = self.images.shape[2:]
        return height, width

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        return (self.side, self.side) if self.side else self.source_size

    def pictures(self, index: Tensor) -> Tensor:
        """The images (n, 3, H, W) uint8 of `index` (n,), in whose pixels the boxes count."""
        return self.images[index]

    def subset(self, index: Tensor) -> "Split":
        boxes = None if self.boxes is None else self.boxes[index]
        groups = None if self.groups is None else self.groups[index]
        return self._replace(images=self.images[index], labels=self.labels[index], boxes=boxes, groups=groups)


class Files(NamedTuple):
    """Image files with labels, read when they are needed; boxes as in `Split`, in pixels of `pictures`.

    The names stand in one array of bytes: a million of them take what they are long, in every process that reads.
    """

    root: str
    names: np.ndarray  # (N,) bytes: each file's place below `root`, as the file system spells it
    labels: Tensor  # (N,) int64
    boxes: Tensor | None = None  # (N, 4) or (N, M, 4) int64
    side: int = 224  # pixels a side of what is made of a file
    groups: Tensor | None = None  # (N,) int64, as in `Split`
    damaged: tuple[str, ...] = ()  # files that were skipped already, since not even their size could be read

    @property
    def source_size(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def size(self) -> tuple[int, int]:
        return self.side, self.side

    def path(self, index: int) -> Path:
        return Path(self.root, os.fsdecode(bytes(self.names[index])))

    def pictures(self, index: Tensor) -> Tensor:
        """The middle of the images of `index` (n,) as evaluation sees it: (n, 3, side, side) uint8."""
        images = [middle(read_pixels(self.path(i)), self.side) for i in index.tolist()]
        return torch.stack(images)

    def subset(self, index: Tensor) -> "Files":
        boxes = None if self.boxes is None else self.boxes[index]
        groups = None if self.groups is None else self.groups[index]
        names = self.names[index.numpy()]
        return self._replace(names=names, labels=self.labels[index], boxes=boxes, groups=groups)


class Dataset(NamedTuple):
    """Both splits of a data set, its classes' names in the order of the labels, and a fingerprint of its content."""

    train: Split | Files
    test: Split | Files
    classes: tuple[str, ...]
    fingerprint: str


def balanced(labels: Tensor, count: int, generator: Generator, groups: Tensor | None = None) -> Tensor:
    """Sorted indices of `count` images, as many of every class as of any other.

    groups: whole groups are taken, one after the other; of the last one of a class perhaps a part.
    Raises ValueError where so many cannot be drawn evenly.
    """
    places = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    fewest = min(len(where) for where in places)
    each, left = divmod(count, len(places))
    if left or not 1 <= each <= fewest:
        raise ValueError(f"{count} images cannot be drawn evenly from {len(places)} classes of {fewest} images or more")

    picks = []
    for where in places:
        drawn = _shuffled(where, generator, groups)
        picks.append(drawn[:each])
    return torch.cat(picks).sort().values


def _shuffled(where: Tensor, generator: Generator, groups: Tensor | None) -> Tensor:
    """The indices `where` in random order; those of one group stay together."""
    if groups is None:
        order = torch.randperm(len(where), generator=generator)
        return where[order]

    names, members = groups[where].unique(return_inverse=True)
    rank = torch.randperm(len(names), generator=generator)
    order = rank[members].argsort(stable=True)
    return where[order]


def select(
    dataset: Dataset, eval_split: str, train_images: int | None, held_out: int
) -> tuple[Split | Files, Split | Files]:
    """Training and evaluation split: "test", or a fixed class-balanced `held_out` part of the training images.

    The held-out part is set aside first and whatever the seed is, so that no choice made on it has seen the test
    images, and none of its images is ever trained on, nor another one of its groups: what is left over of a group
    serves for neither. `train_images` then takes a fixed balanced part of the rest.
    """
    train, evaluation = dataset.train, dataset.test
    if eval_split == "held_out":
        aside = balanced(train.labels, held_out, stream(0, "held_out"), train.groups)
        rest = _others(train, aside)
        train, evaluation = train.subset(rest), train.subset(aside)
    if train_images is not None:
        chosen = balanced(train.labels, train_images, stream(0, "train_images"))
        train = train.subset(chosen)
    return train, evaluation


def _others(split: Split | Files, aside: Tensor) -> Tensor:
    """Indices of the images that are neither set aside nor of a group that was."""
    free = torch.ones(len(split.labels), dtype=torch.bool)
    free[aside] = False
    if split.groups is not None:
        free &= ~torch.isin(split.groups, split.groups[aside])
    return free.nonzero()[:, 0]
