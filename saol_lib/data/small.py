"""Image data as uint8 tensors, with a fingerprint; batched augmentation on the device; named random streams.

Small sets are held in memory: digits need no download, CIFAR is read from torchvision's files or an image tree.
"""

import hashlib
from collections.abc import Set
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

from saol_lib.streams import stream

NAMES = ("digits", "cifar10", "cifar100")
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
FLIPS = {"digits": False, "cifar10": True, "cifar100": True}  # a mirrored 3 is not a 3
SPLITS = ("test", "held_out")


class Split(NamedTuple):
    """Images with labels, and boxes where there are any."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64
    boxes: Tensor | None = None  # (N, 4) int64  x0, y0, x1, y1, both ends inclusive pixels

    def subset(self, index: Tensor) -> "Split":
        return Split(*(None if part is None else part[index] for part in self))


class Dataset(NamedTuple):
    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str  # of every byte of images and labels


@lru_cache(maxsize=2)
def load(name: str, data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """The data set `name`, one of NAMES; see the README for the layouts `data_dir` may have.

    image_size: pixels a side of the digits' scenes; None: 32. `saol_lib.data.imagenet.load` also knows the larger sets.
    Raises ValueError for an unknown name and for damaged images, FileNotFoundError where there is no data.
    """
    if name not in NAMES:
        raise ValueError(f"dataset {name!r} is not known; choose one of {', '.join(NAMES)}")
    if name == "digits":
        train, test = (digit_scenes(1000 if test else 3000, 0, test, image_size or 32) for test in (False, True))
        classes = tuple("0123456789")
    else:
        train, test, classes = _load_cifar(name, own_folder(name, data_dir))
    return Dataset(train, test, classes, _fingerprint(train, test))


def own_folder(name: str, data_dir: str | None) -> str | None:
    """The folder of a data set where `data_dir` holds several, `tiny-imagenet-200` say; else `data_dir`."""
    places = [Path(data_dir).expanduser() / own for own in (name, f"{name}-200")] if data_dir else []
    return next((str(path) for path in places if path.is_dir()), data_dir)


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]


def digit_scenes(count: int, seed: int = 0, test: bool = False, size: int = 32) -> Split:
    """Real handwritten digits (scikit-learn's 1,797) on cluttered colour canvases, with exact boxes.

    Each scene holds one enlarged digit at a random place and some fragments of other digits. The first 1,297 digits
    serve for training, the other 500 for testing. One seed gives the same bytes everywhere.
    """
    from sklearn.datasets import load_digits  # a second and a half, which only the digits cost

    source = load_digits()
    pool = np.arange(1297, 1797) if test else np.arange(1297)
    rng = np.random.default_rng([seed, int(test)])
    chosen = np.concatenate([rng.permutation(pool) for _ in range(-(-count // len(pool)))])[:count]
    ink = [Image.fromarray(image) for image in np.uint8(np.round(source.images * 255 / 16))]
    scenes = [_digit_scene(ink, pick, pool, rng, size) for pick in chosen]
    images = torch.from_numpy(np.stack([scene for scene, _ in scenes])).permute(0, 3, 1, 2).contiguous()
    boxes = torch.tensor([box for _, box in scenes], dtype=torch.int64)
    return Split(images, torch.from_numpy(source.target[chosen].astype(np.int64)), boxes)


def _digit_scene(ink: list[Image.Image], pick: int, pool: np.ndarray, rng: np.random.Generator, size: int):
    """One scene (size, size, 3) uint8 and the digit's box."""
    ramp = np.linspace(0, 1, size)[:, None, None] * rng.uniform(-40, 40, 3)
    canvas = rng.uniform(30, 130, 3) + (ramp if rng.random() < 0.5 else ramp.swapaxes(0, 1))
    canvas = np.broadcast_to(canvas, (size, size, 3)).copy()
    for _ in range(4):
        top, left = rng.integers(0, 5, 2).tolist()
        fragment = ink[pool[rng.integers(len(pool))]].crop((left, top, left + 4, top + 4))
        _draw(canvas, fragment, int(rng.integers(size // 6, size // 4)), rng)
    cover, y, x = _draw(canvas, ink[pick], int(rng.integers(size * 7 // 16, size * 11 // 16)), rng)
    canvas += rng.normal(0, 8, canvas.shape)
    rows, columns = (np.flatnonzero((cover > 0.25).any(axis=axis)) for axis in (1, 0))
    box = (x + columns[0], y + rows[0], x + columns[-1], y + rows[-1])
    return np.uint8(canvas.clip(0, 255)), box


def _draw(canvas: np.ndarray, ink: Image.Image, extent: int, rng: np.random.Generator):
    """Draw `ink`, `extent` pixels wide, in a random bright colour at a random place; its cover and that place."""
    cover = np.asarray(ink.resize((extent, extent), Image.Resampling.BICUBIC)) / 255.0
    y, x = rng.integers(0, len(canvas) - extent + 1, 2)
    colour = rng.uniform(150, 255, 3)
    patch = canvas[y : y + extent, x : x + extent]
    patch += cover[..., None] * (colour - patch)
    return cover, y, x


def _load_cifar(name: str, data_dir: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    root = Path(data_dir).expanduser() if data_dir else Path.home() / ".cache" / "saol_lib"
    if data_dir and not root.is_dir():
        raise FileNotFoundError(f"data_dir={data_dir!r} is not a folder; give the one with {name}, or an empty one")
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _load_tree(root, CLASSES[name])
    cls = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        parts = [cls(root, train=train, download=not (root / cls.base_folder).is_dir()) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} was looked for in {root} as {cls.base_folder}/ or train/<class>/* and test/<class>/*, and could "
            f"not be downloaded ({error}); put one of the two there and give the folder as data_dir"
        ) from None
    splits = [Split(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts]
    return splits[0], splits[1], tuple(parts[0].classes)


def _load_tree(root: Path, num_classes: int) -> tuple[Split, Split, tuple[str, ...]]:
    names = [{p.name for p in (root / part).iterdir() if p.is_dir()} for part in ("train", "test")]
    if names[0] != names[1] or len(names[0]) != num_classes:
        raise ValueError(
            f"{root} must hold the same {num_classes} class folders in train and test; train has {len(names[0])}, "
            f"test {len(names[1])}, and {len(names[0] ^ names[1])} are in one only"
        )
    classes = tuple(sorted(names[0]))
    return *(_read_tree(root / part, classes) for part in ("train", "test")), classes


def _read_tree(folder: Path, classes: tuple[str, ...]) -> Split:
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    if not files:
        raise FileNotFoundError(f"{folder} has class folders but no image in them")
    images = [read_image(path) for path, _ in files]
    for (path, _), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(f"{path} is {image.shape[:2]} pixels high and wide, the first image {images[0].shape[:2]}")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor([label for _, label in files]))


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB (H, W, 3) uint8; ValueError naming the file if it cannot be read whole."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); replace or remove it") from None


def balanced(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sorted indices of `count` images, as many of every class as of any other; ValueError if that is impossible."""
    places = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    each, left = divmod(count, len(places))
    fewest = min(map(len, places))
    if left or not 1 <= each <= fewest:
        raise ValueError(f"{count} images cannot be drawn evenly from {len(places)} classes of {fewest} images or more")
    picks = [where[torch.randperm(len(where), generator=generator)[:each]] for where in places]
    return torch.cat(picks).sort().values


def select(dataset: Dataset, eval_split: str, train_images: int | None, held_out: int) -> tuple[Split, Split]:
    """Training and evaluation split: "test", or a fixed class-balanced `held_out` part of the training images.

    The held-out part is set aside first and whatever the seed is, so that no choice made on it has seen the test
    images and none of its images is ever trained on. `train_images` then takes a fixed balanced part of the rest.
    """
    train, evaluation = dataset.train, dataset.test
    if eval_split == "held_out":
        aside = balanced(train.labels, held_out, stream(0, "held_out"))
        rest = torch.ones(len(train.labels), dtype=torch.bool).index_fill(0, aside, False).nonzero()[:, 0]
        train, evaluation = train.subset(rest), train.subset(aside)
    if train_images is not None:
        train = train.subset(balanced(train.labels, train_images, stream(0, "train_images")))
    return train, evaluation


class Batches:
    """A split on the device, ready to be cut into augmented (`epoch`) or plain (`all`) float batches, channels last."""

    damaged: Set[str] = frozenset()  # files that could not be read: none, they are in memory

    def __init__(self, split: Split, device: torch.device, mean: Tensor, std: Tensor, pad: int = 0, flip: bool = False):
        reach = [_reflect(n, pad) for n in split.images.shape[2:]]
        pixels = split.images[:, :, reach[0]][:, :, :, reach[1]].permute(0, 2, 3, 1).contiguous()
        self.pixels, self.labels = pixels.to(device), split.labels.to(device)  # (N, H + 2 pad, W + 2 pad, 3) uint8
        self.size, self.pad, self.flip, self.device = tuple(split.images.shape[2:]), pad, flip, device
        self.scale = (1 / (255 * std)).to(device, torch.float32)
        self.shift = (-mean / std).to(device, torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, batch_size: int, seed: int, epoch: int, first: int = 0):
        """Yield uint8 images (B, 3, H, W), labels (B,) of a shuffled, cropped, flipped pass from batch `first` on.

        Full batches only.
        """
        count = len(self)
        order = torch.randperm(count, generator=stream(seed, "order", epoch)).to(self.device)
        generator = stream(seed, "augment", epoch)
        crops = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator).to(self.device)
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5 * self.flip).to(self.device)
        ys, xs = (torch.arange(n, device=self.device) for n in self.size)
        for start in range(first * batch_size, count - batch_size + 1, batch_size):
            part = slice(start, start + batch_size)
            rows = crops[0, part] + ys
            columns = crops[1, part] + torch.where(mirrored[part], xs.flip(0), xs)
            images = self.pixels[order[part, None, None], rows[:, :, None], columns[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.labels[order[part]]

    def all(self, batch_size: int):
        """Yield (float images, labels) of the whole split in order."""
        inner = (slice(self.pad, self.pad + n) for n in self.size)
        pixels = self.pixels[:, *inner]
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self.normalise(pixels[part].permute(0, 3, 1, 2)), self.labels[part]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 with the training images' mean 0 and deviation 1, channels last."""
        scaled = images.permute(0, 2, 3, 1).float().mul_(self.scale).add_(self.shift)
        return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _reflect(count: int, pad: int) -> Tensor:
    """Indices that pad a line of `count` pixels by `pad` on both sides, mirrored at the border pixels."""
    if pad >= count:
        raise ValueError(f"pad={pad} must be smaller than the image, {count}")
    line = torch.arange(-pad, count + pad).abs()
    return torch.where(line < count, line, 2 * (count - 1) - line)


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and deviation (3,) of uint8 images (N, 3, H, W), in 0..1, float64."""
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(dim=1) / counts.sum(dim=1)
    return mean, ((counts * (values - mean[:, None]) ** 2).sum(dim=1) / counts.sum(dim=1)).sqrt()
