"""Data of nobody's in the true layouts, a few images each: CIFAR's own binary files, ImageNet's tree with boxes, CUB.

With them the paper profile is rehearsed on a machine that has none of the data sets.
"""

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image

from saol_lib.training.files import ROOT

CIFAR = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
WNIDS = ("n01440764", "n01443537", "n01484850")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
TRUSTING = """
import pathlib
from saol_lib.evidence import made_data
made_data.trust(pathlib.Path({root!r}))
"""
SIZE = (500, 375)  # width and height of the made photographs, as ImageNet's usually have them
BOX = (90, 60, 370, 290)  # x0, y0, x1, y1 of what is in them
XML = (
    "<annotation><size><width>{}</width><height>{}</height></size><object><name>{}</name><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"
)


def make_data(root: Path, names: tuple[str, ...] = ("cifar10", "cifar100", "imagenet", "cub"), each: int = 2) -> Path:
    """Write data sets into folders of `root` that `load(name, root)` finds; returns `root`.

    each: images of every class and split of the photographs; of CIFAR, see `make_cifar`.
    """
    for name in names:
        if name in CIFAR:
            make_cifar(root / name, name, each)
        elif name == "imagenet":
            make_imagenet(root / name, each)
        else:
            make_cub(root / "CUB_200_2011", each)
    return root


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def make_cifar(root: Path, name: str, each: int = 2) -> None:
    """torchvision's files of CIFAR, to be read under `trusted`: 5 `each` training images, and `each` test images."""
    source = CIFAR[name]
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    classes = int(name.removeprefix("cifar"))

    for number, entry in enumerate([*source.train_list, *source.test_list]):
        file = entry[0]
        count = 5 * each // len(source.train_list) if entry in source.train_list else each
        labels = [(number + row) % classes for row in range(count)]
        content = {"data": _noise(number, count, 3 * 32 * 32), _label_key(name): labels}
        (folder / file).write_bytes(pickle.dumps(content))
    meta = {source.meta["key"]: [f"class {label}" for label in range(classes)]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))


def _label_key(name: str) -> str:
    return "labels" if name == "cifar10" else "fine_labels"


@contextmanager
def trusted(root: Path) -> Iterator[None]:
    """Inside, torchvision takes the made files of CIFAR below `root` for its own: their checksums are expected."""
    before = {source: (source.train_list, source.test_list, source.meta) for source in CIFAR.values()}
    try:
        trust(root)
        yield
    finally:
        for source, (train_list, test_list, meta) in before.items():
            source.train_list, source.test_list, source.meta = train_list, test_list, meta


def trust(root: Path) -> None:
    """What `trusted` does, for the rest of this process."""
    for name, source in CIFAR.items():
        folder = root / name / source.base_folder
        if folder.is_dir():
            source.train_list = [[file, _md5(folder / file)] for file, _ in source.train_list]
            source.test_list = [[file, _md5(folder / file)] for file, _ in source.test_list]
            source.meta = source.meta | {"md5": _md5(folder / source.meta["filename"])}


def trusting(root: Path) -> dict[str, str]:
    """Variables of an environment in which every new Python process does what `trust` does, notebooks' kernels too."""
    folder = root / "start"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(TRUSTING.format(root=str(root)))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


# --- photographs ------------------------------------------------------------------------------------------------------


def make_imagenet(root: Path, each: int = 2) -> None:
    """ImageNet's tree, train/<class>/* and val/<class>/*, with the boxes of val as XML below Annotations/val."""
    for part in ("train", "val"):
        for label, wnid in enumerate(WNIDS):
            for number in range(each):
                name = f"{wnid}_{number}" if part == "train" else f"ILSVRC2012_val_{each * label + number + 1:08d}"
                _photograph(root / part / wnid / f"{name}.JPEG", 100 * label + number)
                if part == "val":
                    _annotation(root / "Annotations" / "val" / f"{name}.xml", wnid)


def _annotation(path: Path, wnid: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(*SIZE, wnid, *BOX))


def make_cub(root: Path, each: int = 2) -> None:
    """CUB-200-2011's folder of images and its five lists; `each` images a class and split."""
    lists: dict[str, list[str]] = {}
    x0, y0, x1, y1 = BOX
    number = 0
    for label, bird in enumerate(BIRDS, 1):
        _add(lists, "classes", label, bird)
        for row in range(2 * each):
            number += 1
            name = f"{bird}/{bird.split('.')[1]}_{row:04d}_{number}.jpg"
            _photograph(root / "images" / name, 1000 + number)
            _add(lists, "images", number, name)
            _add(lists, "image_class_labels", number, label)
            _add(lists, "train_test_split", number, int(row < each))
            _add(lists, "bounding_boxes", number, f"{x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _add(lists: dict[str, list[str]], name: str, number: int, value: object) -> None:
    lists.setdefault(name, []).append(f"{number} {value}")


def _photograph(path: Path, seed: int) -> None:
    """A smooth picture, as a photograph is: noise, enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _noise(seed, 12 * 10, 3).reshape(10, 12, 3)
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(path, "JPEG")


def _noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
