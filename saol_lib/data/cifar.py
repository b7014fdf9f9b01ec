"""CIFAR-10 and CIFAR-100: torchvision's own files, an image tree, or torchvision's download into an empty folder."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor

from saol_lib.data.images import class_folders, is_junk, read_images
from saol_lib.data.splits import Split

CLASSES = {"cifar10": 10, "cifar100": 100}
SETS = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
Parts = tuple[Split, Split, tuple[str, ...]]


def load_cifar(name: str, root: Path | None, skip_damaged: bool = False) -> Parts:
    """Training split, test split and classes, from whichever layout `root` has.

    root: the folder with torchvision's files, that folder of files itself, or a tree train/<class>/*, test/<class>/*;
    None: the user's cache folder. Only a folder with nothing in it is downloaded into.
    """
    source = SETS[name]
    given = root is not None
    root = root or Path.home() / ".cache" / "saol_lib"
    if given and not root.is_dir():
        raise FileNotFoundError(f"data_dir={str(root)!r} is not a folder; give the one with {name}, or an empty one")

    if _is_tree(root):
        return _load_tree(root, CLASSES[name], skip_damaged)
    if root.name == source.base_folder and (root / source.meta["filename"]).is_file():
        root = root.parent
    has_files = (root / source.base_folder).is_dir()
    if not has_files and given:
        _refuse_to_download(name, root)
    return _load_files(name, root, download=not has_files)


def _is_tree(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _refuse_to_download(name: str, root: Path) -> None:
    """Raise FileNotFoundError where a folder has anything in it: whoever gave it has data elsewhere."""
    source = SETS[name]
    there = sorted(path.name for path in root.iterdir() if not is_junk(path.name))
    if not there or _has_archive(source, root):
        return

    if "train" in there and "val" in there:
        hint = "it has train/ and val/: rename val to test"
    elif near := _near(root, source.base_folder):
        hint = f"give {near}"
    else:
        listed = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        hint = f"it has {listed}: give the right one, or an empty one"
    raise FileNotFoundError(
        f"{name} was looked for in data_dir={str(root)!r} as {source.base_folder}/ or train/<class>/* and "
        f"test/<class>/*; {hint}"
    )


def _has_archive(source: type, root: Path) -> bool:
    """torchvision's archive, whole: it is unpacked and nothing fetched."""
    return torchvision.datasets.utils.check_integrity(root / source.filename, source.tgz_md5)


def _near(root: Path, base_folder: str) -> Path | None:
    """A folder one level up or down that has one of the layouts."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))
    for folder in (root.parent, root.parent.parent, *below[:100]):
        if _is_tree(folder) or (folder / base_folder).is_dir():
            return folder
    return None


def _load_files(name: str, root: Path, download: bool) -> Parts:
    source = SETS[name]
    try:
        parts = [source(root, train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} was looked for in {root} as {source.base_folder}/ or train/<class>/* and test/<class>/*, and "
            f"could not be downloaded ({error}); put one of the two there and give the folder as data_dir"
        ) from None
    train, test = (Split(_channels_first(part.data), torch.tensor(part.targets)) for part in parts)
    return train, test, tuple(parts[0].classes)


def _channels_first(pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _load_tree(root: Path, num_classes: int, skip_damaged: bool) -> Parts:
    found = class_folders(root, ("train", "test"), skip_damaged)
    classes = tuple(found["train"])
    if len(classes) != num_classes:
        raise ValueError(
            f"{root} must hold the same {num_classes} class folders in train and test; both have {len(classes)} with "
            "images"
        )

    splits = []
    for part, names in found.items():
        paths = [root / part / name / file for name in classes for file in names[name]]
        counts = torch.tensor([len(names[name]) for name in classes])
        labels = torch.arange(num_classes).repeat_interleave(counts)
        images, kept, skipped = read_images(paths, None, skip_damaged)
        splits.append(Split(images, labels[kept], damaged=skipped))
    return *splits, classes
