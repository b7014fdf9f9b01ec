"""CUB-200-2011 in its own layout: 200 birds, one box an image, streamed by workers."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from saol_lib.data.boxes import Box, all_seen, numbers
from saol_lib.data.images import evenly, read_table
from saol_lib.data.splits import Files

SPLIT = {"1": "training", "0": "test"}  # what train_test_split.txt says


def load_cub(root: Path, count: int | None, side: int, skip_damaged: bool) -> tuple[Files, Files, list[str]]:
    """Training files, test files and the names of `count` classes; boxes (N, 4) in pixels of the evaluated middle."""
    if not (root / "images.txt").is_file():
        raise FileNotFoundError(f"{root} has no images.txt; give the folder CUB_200_2011 as data_dir")
    names = _table(root, "images")
    words = {image: line[0] for image, line in names.items()}
    classes = {number: line[0] for number, line in _table(root, "classes").items()}
    class_of = _column(root, "image_class_labels", words, classes)
    part_of = _column(root, "train_test_split", words, SPLIT)
    boxes = _boxes(root, words)

    chosen = evenly(list(classes.values()), count, root)
    label_of = {name: label for label, name in enumerate(chosen)}
    parts = []
    for flag, part in SPLIT.items():
        images = [i for i in words if part_of[i] == flag and classes[class_of[i]] in label_of]
        labels = [label_of[classes[class_of[i]]] for i in images]
        missing = set(range(len(chosen))) - set(labels)
        if missing:
            name = chosen[min(missing)]
            raise ValueError(f"class {name} has no {part} image in {root / 'images.txt'}; mend the lists")
        parts.append(_files(root, images, words, labels, boxes, side, skip_damaged))
    return *parts, chosen


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
    found = {image: words[0] for image, words in _matching(root, name, images).items()}
    for image, word in found.items():
        if word not in known:
            raise ValueError(f"{root / name}.txt gives image {image} {word!r}; expected one of {', '.join(known)[:60]}")
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


def _files(
    root: Path,
    images: Sequence[str],
    names: dict[str, str],
    labels: Sequence[int],
    boxes: dict[str, Box],
    side: int,
    skip_damaged: bool,
) -> Files:
    paths = [root / "images" / names[image] for image in images]
    annotations = [(None, [boxes[image]]) for image in images]
    kept, found, skipped = all_seen(paths, annotations, side, skip_damaged)
    encoded = np.array([os.fsencode(f"images/{names[images[row]]}") for row in kept])
    return Files(str(root), encoded, torch.tensor(labels)[kept], torch.tensor(found)[:, 0], side, damaged=skipped)
