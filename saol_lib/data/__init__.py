"""Data sets as splits of images with labels and boxes, and the batches that are cut from them."""

from saol_lib.data.imagenet import CLASSES as LARGE
from saol_lib.data.imagenet import SIZES, Files, Stream, load
from saol_lib.data.small import (
    CLASSES as SMALL,
)
from saol_lib.data.small import (
    FLIPS,
    NAMES,
    SPLITS,
    Batches,
    Dataset,
    Split,
    balanced,
    digit_scenes,
    mean_and_std,
    read_image,
    select,
)

CLASSES = SMALL | LARGE

__all__ = [
    "CLASSES",
    "FLIPS",
    "LARGE",
    "NAMES",
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
