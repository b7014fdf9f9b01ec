"""Data sets as splits of images with labels and boxes, and the batches that are cut from them."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from saol_lib.data.batches import FLIPS, Batches, mean_and_std
from saol_lib.data.cifar import load_cifar
from saol_lib.data.cub import load_cub
from saol_lib.data.digits import digit_scenes
from saol_lib.data.imagenet import load_imagenet
from saol_lib.data.images import read_image, read_text
from saol_lib.data.splits import SPLITS, Dataset, Files, Split, balanced, select
from saol_lib.data.streaming import SCALING, Stream
from saol_lib.data.tiny_imagenet import load_tiny_imagenet

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000, "cub": 200}
NAMES = tuple(CLASSES)
# Pixels a side that the network sees, unless asked otherwise.
SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64, "imagenet": 224, "cub": 224}
FOLDERS = ("tiny-imagenet", "imagenet", "cub")  # in class folders: they can give fewer classes
FILES = ("imagenet", "cub")  # streamed, not held in memory

__all__ = [
    "CLASSES",
    "FILES",
    "FLIPS",
    "FOLDERS",
    "NAMES",
    "SCALING",
    "SIZES",
    "SPLITS",
    "Batches",
    "Dataset",
    "Files",
    "Split",
    "Stream",
    "balanced",
    "digit_scenes",
    "load",
    "mean_and_std",
    "read_image",
    "select",
]


def load(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    skip_damaged: bool = False,
) -> Dataset:
    """The data set `name`, one of NAMES; see README for the layouts that `data_dir` may have.

    data_dir: the data set's folder, or one with folders of several; None: embedded, or the user's cache folder.
    image_size: pixels a side that the network sees. Digits are drawn so large; pictures in memory stay as they are,
    with their boxes, and are enlarged on the device by `Batches`; files are cropped to it. None: SIZES.
    classes: so many, evenly spaced in the sorted list of the classes that are there; None: all. skip_damaged: leave
    out images that cannot be read, with a warning that names and counts them.
    Raises FileNotFoundError where there is no data, ValueError for an unknown name, for damaged images and annotations,
    for classes without images and for more classes than are there.
    """
    if name not in NAMES:
        raise ValueError(f"dataset {name!r} is not known; choose one of {', '.join(NAMES)}")
    if classes is not None and name not in FOLDERS:
        raise ValueError(f"classes={classes}: {name} always has its {CLASSES[name]}; leave it out")

    drawn_at = image_size if name == "digits" or name in FILES else None
    dataset = _read(name, data_dir, drawn_at, classes, skip_damaged)
    if image_size is None or drawn_at is not None:
        return dataset
    train, test = (split._replace(side=image_size) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


@lru_cache(maxsize=2)
def _read(name: str, data_dir: str | None, side: int | None, classes: int | None, skip_damaged: bool) -> Dataset:
    side = side or SIZES[name]
    if name == "digits":
        train = digit_scenes(3000, 0, False, side)
        test = digit_scenes(1000, 0, True, side)
        names = tuple("0123456789")
    elif name.startswith("cifar"):
        folder = _own_folder(name, data_dir)
        train, test, names = load_cifar(name, folder, skip_damaged)
    else:
        root = _existing(name, data_dir)
        if name == "tiny-imagenet":
            train, test, wnids = load_tiny_imagenet(root, classes, skip_damaged)
        elif name == "cub":
            train, test, wnids = load_cub(root, classes, side, skip_damaged)
        else:
            train, test, wnids = load_imagenet(root, classes, side, skip_damaged)
        names = _words(root, wnids)
    return Dataset(train, test, names, fingerprint(name, train, test))


def _own_folder(name: str, data_dir: str | None) -> Path | None:
    """The folder of a data set where `data_dir` holds several, `tiny-imagenet-200` say; else `data_dir`."""
    if not data_dir:
        return None
    given = Path(data_dir).expanduser()
    for own in (name, f"{name}-200", f"{name.upper()}_200_2011"):
        if (given / own).is_dir():
            return given / own
    return given


def _existing(name: str, data_dir: str | None) -> Path:
    folder = _own_folder(name, data_dir)
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f"{name} was looked for in data_dir={data_dir!r}; give the folder with its original layout"
        )
    return folder


def _words(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each WordNet id, where words.txt is there."""
    path = root / "words.txt"
    if not path.exists():
        return tuple(wnids)
    known = {}
    for line in read_text(path).splitlines():
        wnid, _, words = line.partition("\t")
        if words:
            known[wnid] = words.split(",")[0].strip()
    return tuple(known.get(wnid, wnid) for wnid in wnids)


def fingerprint(name: str, train: Split | Files, test: Split | Files) -> str:
    """16 hexadecimal digits: of every byte of images and labels, or of the files' names and sizes."""
    digest = hashlib.sha256()
    for chunk in _content(name, train, test):
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _content(name: str, train: Split | Files, test: Split | Files) -> Iterator[bytes]:
    if isinstance(train, Files):
        for files in (train, test):
            yield _listing(files)
            if files.boxes is not None:
                yield files.boxes.numpy().data
        return

    train_parts = [train.images.numpy().data, train.labels.numpy().data]
    test_parts = [test.images.numpy().data, test.labels.numpy().data]
    if name == "tiny-imagenet":  # in the order of the published fingerprints
        yield from (train_parts[0], test_parts[0], train_parts[1], test_parts[1])
    else:
        yield from (*train_parts, *test_parts)


def _listing(files: Files) -> bytes:
    lines = []
    for index in range(len(files.labels)):
        path = files.path(index)
        lines.append(f"{path.parent.name}/{path.name} {path.stat().st_size}")
    return "\n".join(lines).encode(errors="surrogateescape")
