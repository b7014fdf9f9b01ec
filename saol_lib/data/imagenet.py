"""ImageNet as torchvision's ImageFolder lays it out, train/<class>/* and val/<class>/*, streamed by workers."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from saol_lib.data.images import class_folders, evenly
from saol_lib.data.splits import Files


def load_imagenet(root: Path, count: int | None, side: int, skip_damaged: bool) -> tuple[Files, Files, list[str]]:
    """Training files, validation files as test, and the names of `count` class folders."""
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"imagenet was looked for in {root}, but there is no {part}/ in it; give the folder with the original "
                "layout as data_dir"
            )
    found = class_folders(root, ("train", "val"), skip_damaged)
    classes = evenly(list(found["train"]), count, root)
    train = _files(root, "train", classes, found, side)
    test = _files(root, "val", classes, found, side)
    return train, test, classes


def _files(root: Path, part: str, classes: Sequence[str], found: dict, side: int) -> Files:
    names = [os.fsencode(f"{part}/{name}/{file}") for name in classes for file in found[part][name]]
    counts = torch.tensor([len(found[part][name]) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return Files(str(root), np.array(names), labels, None, side)
