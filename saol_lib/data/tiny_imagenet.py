"""Tiny-ImageNet in its original layout: 64 x 64 pixels in memory, one box an image."""

from collections.abc import Sequence
from pathlib import Path

import torch

from saol_lib.data.images import evenly, image_names, read_images, read_table, read_text
from saol_lib.data.splits import Split

SIDE = 64  # pixels of its pictures
Box = tuple[int, ...]
Row = tuple[Path, int, Box]  # an image, its label, its box


def load_tiny_imagenet(root: Path, count: int | None, skip_damaged: bool) -> tuple[Split, Split, list[str]]:
    """Training split, validation split as test, and the WordNet ids of `count` classes."""
    if not (root / "wnids.txt").exists():
        raise FileNotFoundError(f"{root} has no wnids.txt; give the folder tiny-imagenet-200 as data_dir")
    known = read_text(root / "wnids.txt").split()
    classes = evenly(known, count, root)

    train = _read(_training_rows(root, classes, skip_damaged), skip_damaged)
    test = _read(_validation_rows(root, known, classes), skip_damaged)
    return train, test, classes


def _training_rows(root: Path, classes: Sequence[str], skip_damaged: bool) -> list[Row]:
    rows = []
    for label, wnid in enumerate(classes):
        listed = read_table(root / "train" / wnid / f"{wnid}_boxes.txt", 5, "\t")
        boxes = {name: words for name, *words in listed}
        folder = root / "train" / wnid / "images"
        names = image_names(folder, skip_damaged)
        if not names:
            raise ValueError(f"class folder {folder} has no images; put them back or leave the class out everywhere")
        for name in names:
            path = folder / name
            if name not in boxes:
                raise ValueError(f"{path} has no box in its class's list of boxes; mend the list or remove the image")
            rows.append((path, label, _box(boxes[name], path)))
    return rows


def _validation_rows(root: Path, known: Sequence[str], classes: Sequence[str]) -> list[Row]:
    annotated = root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    rows = []
    for name, wnid, *words in read_table(annotated, 6, "\t"):
        if wnid not in known:
            raise ValueError(f"{annotated} gives {name} the class {wnid}, which wnids.txt does not have; mend it")
        if wnid in label_of:
            path = root / "val" / "images" / name
            rows.append((path, label_of[wnid], _box(words, path)))

    missing = set(range(len(classes))) - {label for _, label, _ in rows}
    if missing:
        name = classes[min(missing)]
        raise ValueError(f"class {name} has no image in {annotated}; mend it or leave the class out")
    return rows


def _box(words: Sequence[str], path: Path) -> Box:
    """x0, y0, x1, y1, both ends inclusive: a box one pixel wide has x0 == x1."""
    try:
        box = tuple(int(word) for word in words)
    except ValueError:
        raise ValueError(f"{path} has the box {' '.join(words)}; expected four whole numbers") from None
    x0, y0, x1, y1 = box
    if not (0 <= x0 <= x1 < SIDE and 0 <= y0 <= y1 < SIDE):
        raise ValueError(f"{path} has the box {box}, which is not inside its {SIDE} x {SIDE} pixels; mend the list")
    return box


def _read(rows: list[Row], skip_damaged: bool) -> Split:
    paths = [path for path, _, _ in rows]
    labels = torch.tensor([label for _, label, _ in rows])
    boxes = torch.tensor([box for _, _, box in rows])
    images, kept, skipped = read_images(paths, (SIDE, SIDE), skip_damaged)
    return Split(images, labels[kept], boxes[kept], damaged=skipped)
