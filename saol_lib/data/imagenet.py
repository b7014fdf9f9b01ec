"""ImageNet and Tiny-ImageNet in their original layouts: Tiny-ImageNet in memory, ImageNet streamed by workers.

Every image of a streamed pass draws its crop from a seed of its own, so the pictures of an epoch are the same whatever
the number of workers is, and an interrupted pass goes on at any batch without decoding what came before.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from saol_lib.data import small as data
from saol_lib.data.small import Batches, Dataset, Split, read_image
from saol_lib.streams import stream, stream_seed

CLASSES = {"tiny-imagenet": 200, "imagenet": 1000}
SIZES = {"tiny-imagenet": 64, "imagenet": 224}  # pixels a side of their images, unless asked otherwise
SCALING = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's own, as torchvision's pretrained networks expect
log = logging.getLogger("saol_lib")


class Files(NamedTuple):
    """Image files with labels, read when they are needed."""

    paths: tuple[Path, ...]
    labels: Tensor  # (N,) int64
    boxes: Tensor | None = None  # (N, 4) int64  x0, y0, x1, y1, both ends inclusive pixels of the file
    size: int = 224  # pixels a side of what is made of a file

    def subset(self, index: Tensor) -> "Files":
        chosen = tuple(self.paths[i] for i in index.tolist())
        boxes = None if self.boxes is None else self.boxes[index]
        return Files(chosen, self.labels[index], boxes, self.size)


@lru_cache(maxsize=2)
def load(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    skip_damaged: bool = False,
) -> Dataset:
    """Any data set: those of `saol_lib.data.small.load`, Tiny-ImageNet (as uint8 tensors) or ImageNet (as `Files`).

    classes: so many, evenly spaced in the sorted list of the class folders that are there; None: all. skip_damaged:
    leave out images that cannot be read, with a warning that names and counts them. Raises FileNotFoundError where
    there is no data, ValueError for damaged images and annotations, for classes without images and for more classes
    than are there.
    """
    if name not in CLASSES:
        return data.load(name, data_dir, image_size)
    data_dir = data.own_folder(name, data_dir)
    if not data_dir or not (root := Path(data_dir).expanduser()).is_dir():
        raise FileNotFoundError(
            f"{name} was looked for in data_dir={data_dir!r}; give the folder with its original layout"
        )
    return _load_folders(name, root, classes, image_size or SIZES[name], skip_damaged)


def _load_folders(name: str, root: Path, count: int | None, image_size: int, skip_damaged: bool) -> Dataset:
    if name == "tiny-imagenet":
        train, test, classes = _tiny_files(root, count)
        parts = [_read_all(files, skip_damaged) for files in (train, test)]
        content = [part.images.numpy().data for part in parts] + [part.labels.numpy().data for part in parts]
    else:
        classes = _chosen([path.name for path in _folder(root / "train", name).iterdir() if path.is_dir()], count, root)
        parts = [_class_files(_folder(root / part, name), classes, image_size) for part in ("train", "val")]
        names = ((f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in part.paths) for part in parts)
        content = ["\n".join(part).encode() for part in names]
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
    return Dataset(*parts, tuple(_words(root, classes)), digest.hexdigest()[:16])


def _folder(path: Path, name: str) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{name} was looked for in {path.parent}, but there is no {path.name}/ in it; give the "
                                "folder with the original layout as data_dir")  # fmt: skip
    return path


def _chosen(names: Sequence[str], count: int | None, root: Path) -> list[str]:
    names, count = sorted(names), count or len(names)
    if not 2 <= count <= len(names):
        raise ValueError(f"classes={count} cannot be chosen from the {len(names)} classes in {root}; give 2 or more")
    return [names[i * len(names) // count] for i in range(count)]


def _words(root: Path, wnids: Sequence[str]) -> list[str]:
    """The first word for each WordNet id, where words.txt is there."""
    path = root / "words.txt"
    lines = (line.split("\t") for line in path.read_text().splitlines()) if path.exists() else ()
    known = {parts[0]: parts[1].split(",")[0] for parts in lines if len(parts) > 1}
    return [known.get(wnid, wnid) for wnid in wnids]


def _class_files(folder: Path, classes: Sequence[str], size: int) -> Files:
    found = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    return Files(tuple(path for path, _ in found), torch.tensor([label for _, label in found]), None, size)


def _images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".txt") if folder.is_dir() else []
    if not found:
        raise ValueError(f"class folder {folder} has no images; put them back or leave the class out everywhere")
    return found


def _tiny_files(root: Path, count: int | None) -> tuple[Files, Files, list[str]]:
    listed = _folder(root, "tiny-imagenet") / "wnids.txt"
    if not listed.exists():
        raise FileNotFoundError(f"{root} has no wnids.txt; give the folder tiny-imagenet-200 as data_dir")
    known = listed.read_text().split()
    classes = _chosen(known, count, root)
    label_of, train = {wnid: label for label, wnid in enumerate(classes)}, []
    for wnid, label in label_of.items():
        boxes = {line[0]: line[1:] for line in _table(root / "train" / wnid / f"{wnid}_boxes.txt", 5)}
        images = _images(root / "train" / wnid / "images")
        train += [(path, label, _box(boxes.get(path.name), path)) for path in images]
    annotated, test = root / "val" / "val_annotations.txt", []
    for image, wnid, *box in _table(annotated, 6):
        if wnid not in known:
            raise ValueError(f"{annotated} gives {image} the class {wnid}, which wnids.txt does not have; mend it")
        if wnid in label_of:
            path = root / "val" / "images" / image
            test.append((path, label_of[wnid], _box(box, path)))
    if missing := set(range(len(classes))) - {label for _, label, _ in test}:
        raise ValueError(f"class {classes[min(missing)]} has no image in {annotated}; mend it or leave the class out")
    parts = ([tuple(column) for column in zip(*rows, strict=True)] for rows in (train, test))
    train, test = (Files(paths, torch.tensor(labels), torch.tensor(boxes), 64) for paths, labels, boxes in parts)
    return train, test, classes


def _table(path: Path, columns: int) -> list[list[str]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; the original layout has it, unpack the data again")
    rows = [line.split("\t") for line in path.read_text().splitlines() if line]
    if wrong := [row for row in rows if len(row) != columns]:
        raise ValueError(f"{path} has a line of {len(wrong[0])} columns; expected {columns}, tabs between")
    return rows


def _box(words: Sequence[str] | None, path: Path, size: int = 64) -> tuple[int, ...]:
    """x0, y0, x1, y1, both ends inclusive: a box one pixel wide has x0 == x1."""
    if words is None:
        raise ValueError(f"{path} has no box in its class's list of boxes; mend the list or remove the image")
    try:
        x0, y0, x1, y1 = box = tuple(map(int, words))
    except ValueError:
        raise ValueError(f"{path} has the box {' '.join(words)}; expected four whole numbers") from None
    if not (0 <= x0 <= x1 < size and 0 <= y0 <= y1 < size):
        raise ValueError(f"{path} has the box {box}, which is not inside its {size} x {size} pixels; mend the list")
    return box


def _read_all(files: Files, skip_damaged: bool) -> Split:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: _try(path, files.size), files.paths))
    damaged = [error for error in found if isinstance(error, Exception)]
    if damaged and not skip_damaged:
        raise damaged[0]
    if damaged:
        log.warning("%d of %d images were skipped; the first: %s", len(damaged), len(found), damaged[0])
    kept = torch.tensor([i for i, image in enumerate(found) if isinstance(image, np.ndarray)])
    pixels = torch.from_numpy(np.stack([found[i] for i in kept.tolist()])).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, files.labels[kept], files.boxes[kept])


def _try(path: Path, size: int) -> np.ndarray | Exception:
    try:
        if (image := read_image(path)).shape[:2] == (size, size):
            return image
        return ValueError(f"{path} is {image.shape[:2]} pixels high and wide; expected {size} x {size}")
    except (OSError, ValueError) as error:
        return error


class Stream(Batches):
    """`Files` decoded by `workers` processes: randomly cropped, resized and flipped (`epoch`), or the middle (`all`).

    `damaged` holds the files that could not be read; each raises ValueError unless `skip_damaged`, where the next file
    takes its place.
    """

    def __init__(self, files: Files, device: torch.device, workers: int = 0, skip_damaged: bool = False) -> None:
        mean, std = map(torch.tensor, SCALING)
        self.files, self.labels, self.device, self.workers = files, files.labels.to(device), device, workers
        self.skip_damaged, self.damaged, self.size = skip_damaged, set(), (files.size, files.size)
        self.scale, self.shift = (1 / (255 * std)).to(device), (-mean / std).to(device)

    def epoch(self, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images (B, 3, H, W) and labels (B,) of a shuffled pass from batch `first` on, full ones only."""
        order = torch.randperm(len(self), generator=stream(seed, "order", epoch)).tolist()
        picks = [(i, stream_seed(seed, "augment", epoch, place)) for place, i in enumerate(order)]
        starts = range(first * batch_size, len(picks) - batch_size + 1, batch_size)
        yield from self._decoded([picks[start : start + batch_size] for start in starts])

    def all(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (float images, labels) of the whole split in order."""
        picks = [(i, None) for i in range(len(self))]
        batches = [picks[start : start + batch_size] for start in range(0, len(picks), batch_size)]
        yield from ((self.normalise(images), labels) for images, labels in self._decoded(batches))

    def _decoded(self, batches: list[list[tuple[int, int | None]]]) -> Iterator[tuple[Tensor, Tensor]]:
        reader = _Reader(self.files, self.skip_damaged)
        own = torch.Generator()  # DataLoader draws from it for its workers, and from the global one without it
        options = {"num_workers": self.workers, "collate_fn": _collate, "generator": own}
        for images, chosen, damaged in DataLoader(reader, batch_sampler=batches, **options):
            for path in set(damaged) - self.damaged:
                log.warning("%s cannot be read and was skipped, %d so far", path, len(self.damaged) + 1)
                self.damaged.add(path)
            yield images.to(self.device, non_blocking=True), self.labels[chosen.to(self.device)]


class _Reader:
    """What a worker does: (index, seed or None) to (uint8 image (3, H, W), index, the damaged files on the way)."""

    def __init__(self, files: Files, skip_damaged: bool) -> None:
        self.files, self.skip_damaged, size = files, skip_damaged, files.size
        self.random = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
        self.middle = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])

    def __getitem__(self, pick: tuple[int, int | None]) -> tuple[Tensor, int, list[str]]:
        (index, seed), damaged = pick, []
        while True:
            try:
                pixels = torch.from_numpy(read_image(self.files.paths[index])).permute(2, 0, 1)
                break
            except (OSError, ValueError) as error:
                damaged.append(str(self.files.paths[index]))
                if not self.skip_damaged or len(damaged) == len(self.files.paths):
                    raise ValueError(f"{error}; or set skip_damaged to go on without") from None
                index = (index + 1) % len(self.files.paths)
        if seed is None:
            return self.middle(pixels), index, damaged
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.random(pixels), index, damaged


def _collate(samples: list[tuple[Tensor, int, list[str]]]) -> tuple[Tensor, Tensor, list[str]]:
    images, chosen, damaged = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(chosen), [path for part in damaged for path in part]
