"""ImageNet as torchvision's ImageFolder lays it out, train/<class>/* and val/<class>/*, streamed by workers.

Boxes of the validation images, several an image, are found as PASCAL-style XML (beside each image or in ILSVRC's own
Annotations folder) or in wsolevaluation's two text files.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from saol_lib.data.boxes import Annotation, all_seen, padded, read_localization, read_xml
from saol_lib.data.images import class_folders, evenly
from saol_lib.data.splits import Files

TEXTS = (".", "metadata", "metadata/ILSVRC/test", "metadata/ILSVRC/val", "ILSVRC/test", "test")
ANNOTATIONS = ("Annotations", "Annotations/CLS-LOC", "../../Annotations/CLS-LOC")  # below the folder that has val/


def load_imagenet(root: Path, count: int | None, side: int, skip_damaged: bool) -> tuple[Files, Files, list[str]]:
    """Training files, validation files as test, and the names of `count` class folders.

    The validation files have boxes (N, M, 4) where annotations are found, and then every one of them must have one;
    the training files have none.
    """
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
    return train, _with_boxes(test, skip_damaged), classes


def _files(root: Path, part: str, classes: Sequence[str], found: dict, side: int) -> Files:
    names = [os.fsencode(f"{part}/{name}/{file}") for name in classes for file in found[part][name]]
    counts = torch.tensor([len(found[part][name]) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return Files(str(root), np.array(names), labels, None, side)


def _with_boxes(files: Files, skip_damaged: bool) -> Files:
    """The files with their boxes; as they are where not one has an annotation."""
    paths = [files.path(i) for i in range(len(files.labels))]
    annotation_of = _annotations(Path(files.root))
    annotations = [annotation_of(path) for path in paths]
    missing = [path for path, annotation in zip(paths, annotations, strict=True) if annotation is None]
    if len(missing) == len(paths):
        return files
    if missing:
        raise ValueError(
            f"{missing[0]} has no boxes, nor have {len(missing) - 1} others of the {len(paths)} images in val, while "
            "the rest has; add them, or take all away"
        )
    kept, found, skipped = all_seen(paths, annotations, files.side, skip_damaged)
    return files.subset(torch.tensor(kept))._replace(boxes=padded(found), damaged=skipped)


def _annotations(root: Path) -> Callable[[Path], Annotation | None]:
    """How an image's annotation is found below `root`: by its name in the texts, or in an XML file."""
    for place in TEXTS:
        if (root / place / "localization.txt").is_file():
            listed = read_localization(root / place)
            return lambda path: listed.get(path.name)

    folders = [root / place / "val" for place in ANNOTATIONS]
    folders = [root / "val", *(folder for folder in folders if folder.is_dir())]

    def from_xml(path: Path) -> Annotation | None:
        for folder in folders:
            for place in (folder / path.parent.name, folder):
                file = place / f"{path.stem}.xml"
                if file.is_file():
                    return read_xml(file, path.parent.name)
        return None

    return from_xml
