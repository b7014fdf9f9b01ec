"""CUB-200-2011 in its own layout: 200 birds, one box an image, streamed by workers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from saol_lib.data.boxes import Box, all_seen, numbers
from saol_lib.data.images import evenly, read_table
from saol_lib.data.splits import Files

SPLIT = {"1": "training", "0": "test"}  # what train_test_split.txt says


class Bird(NamedTuple):
    """One image."""

    name: str  # below the folder of the set
    label: int
    box: Box


def load_cub(root: Path, count: int | None, side: int, skip_damaged: bool) -> tuple[Files, Files, list[str]]:
    """Training files, test files and the names of `count` classes; boxes (N, 4) in pixels of the evaluated middle."""
    if not (root / "images.txt").is_file():
        raise FileNotFoundError(f"{root} has no images.txt; give the folder CUB_200_2011 as data_dir")
    images = _words(root, "images")
    classes = _words(root, "classes")
    class_of = _column(root, "image_class_labels", images, classes)
    part_of = _column(root, "train_test_split", images, SPLIT)
    boxes = _boxes(root, images)

    chosen = evenly(list(classes.values()), count, root)
    label_of = {name: label for label, name in enumerate(chosen)}
    parts = []
    for flag, part in SPLIT.items():
        birds = []
        for number, name in images.items():
            class_name = classes[class_of[number]]
            if part_of[number] == flag and class_name in label_of:
                birds.append(Bird(f"images/{name}", label_of[class_name], boxes[number]))

        _check_classes(birds, chosen, part, root)
        parts.append(_files(root, birds, side, skip_damaged))
    return *parts, chosen


def _check_classes(birds: Sequence[Bird], classes: Sequence[str], part: str, root: Path) -> None:
    """ValueError for a class that has no image."""
    shown = {bird.label for bird in birds}
    for label, name in enumerate(classes):
        if label not in shown:
            raise ValueError(f"class {name} has no {part} image in {root / 'images.txt'}; mend the lists")


def _words(root: Path, name: str) -> dict[str, str]:
    """A list's first word by its line's number."""
    table = _table(root, name)
    return {number: words[0] for number, words in table.items()}


def _table(root: Path, name: str, columns: int = 2) -> dict[str, list[str]]:
    """A list's lines by their number, which stands first; ValueError for a number that comes twice."""
    found = {}
    for number, *words in read_table(root / f"{name}.txt", columns):
        if number in found:
            raise ValueError(f"{root / name}.txt has number {number} twice; unpack the data again")
        found[number] = words
    return found


def _matching(root: Path, name: str, images: dict[str, str], columns: int = 2) -> dict[str, list[str]]:
    """A list that has a line for every image and for no other."""
    found = _table(root, name, columns)
    odd = found.keys() ^ images.keys()
    if odd:
        raise ValueError(f"{root / name}.txt and images.txt differ: image {min(odd)} is in one only; unpack them again")
    return found


def _column(root: Path, name: str, images: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    """For every image the word that a list gives it, one of `known`."""
    found = {}
    for image, words in _matching(root, name, images).items():
        word = words[0]
        if word not in known:
            raise ValueError(f"{root / name}.txt gives image {image} {word!r}; expected one of {', '.join(known)[:60]}")
        found[image] = word
    return found


def _boxes(root: Path, images: dict[str, str]) -> dict[str, Box]:
    """x0, y0, x1, y1, both ends inclusive, from x, y, width and height, which may be fractions of pixels."""
    found = {}
    for image, words in _matching(root, "bounding_boxes", images, 5).items():
        x, y, width, height = numbers(words, root / "images" / images[image])
        if width <= 0 or height <= 0:
            raise ValueError(f"{images[image]} has a box {width} wide and {height} high; mend bounding_boxes.txt")
        found[image] = (x, y, x + width - 1, y + height - 1)
    return found


def _files(root: Path, birds: Sequence[Bird], side: int, skip_damaged: bool) -> Files:
    paths = [root / bird.name for bird in birds]
    annotations = [(None, [bird.box]) for bird in birds]
    kept, found, skipped = all_seen(paths, annotations, side, skip_damaged)

    names = [os.fsencode(birds[row].name) for row in kept]
    labels = [birds[row].label for row in kept]
    boxes = torch.tensor(found)[:, 0]  # one an image
    return Files(
        str(root),
        np.array(names),
        torch.tensor(labels),
        boxes,
        side,
        damaged=skipped,
    )
