"""Boxes of image files: as the annotators wrote them, in pixels of the file, and as they lie in the evaluated middle.

Every box is x0, y0, x1, y1 in pixels, both ends inclusive.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor

from saol_lib.data.images import ORIENTATION, read_table

Box = tuple[float, float, float, float]
Size = tuple[int, int]  # height, width
Annotation = tuple[Size | None, list[Box]]  # of one image; None: the size was not written down
log = logging.getLogger("saol_lib")


def read_xml(path: Path, class_name: str) -> Annotation:
    """The size and the boxes of a PASCAL-style annotation; where objects of the image's class are named, only those.

    The size is None where none is given. Raises ValueError naming a file that is no such annotation.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
        objects = root.findall("object")
        own = [thing for thing in objects if thing.findtext("name", "").strip() == class_name]
        boxes = [_xml_box(thing) for thing in own or objects]
        height = int(root.findtext("size/height", "0"))
        width = int(root.findtext("size/width", "0"))
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no annotation in PASCAL's form ({error}); mend or remove it") from None
    if not boxes:
        raise ValueError(f"{path} has no object with a box; mend or remove it")
    if not (height and width):
        return None, boxes
    return (height, width), boxes


def _xml_box(thing: ElementTree.Element) -> Box:
    x0 = float(thing.findtext("bndbox/xmin"))
    y0 = float(thing.findtext("bndbox/ymin"))
    x1 = float(thing.findtext("bndbox/xmax"))
    y1 = float(thing.findtext("bndbox/ymax"))
    return x0, y0, x1, y1


def read_localization(folder: Path) -> dict[str, Annotation]:
    """By file name: sizes and boxes of wsolevaluation's image_sizes.txt and localization.txt (a line for each box)."""
    sizes = {}
    for name, width, height in read_table(folder / "image_sizes.txt", 3, ","):
        sizes[Path(name).name] = (int(height), int(width))

    found: dict[str, Annotation] = {}
    for name, *words in read_table(folder / "localization.txt", 5, ","):
        key = Path(name).name
        if key not in sizes:
            raise ValueError(f"{folder / 'localization.txt'} has {name}, which image_sizes.txt does not have; mend it")
        box = numbers(words, folder / name)
        if key not in found:
            found[key] = (sizes[key], [])
        _, boxes = found[key]
        boxes.append(box)
    return found


def numbers(words: Sequence[str], path: Path) -> Box:
    """Four finite numbers, or ValueError naming the image."""
    try:
        a, b, c, d = map(float, words)
    except ValueError:
        raise ValueError(f"{path} has the box {' '.join(words)}; expected four numbers") from None
    box = (a, b, c, d)
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{path} has the box {' '.join(words)}; expected four finite numbers")
    return box


def seen(path: Path, boxes: Sequence[Box], side: int, size: Size | None = None) -> list[list[int]]:
    """Where the boxes of an image file lie in its evaluated middle (side x side), cut off at the border.

    The shorter side is resized to 8/7 of `side` and the middle cut out, as `images.middle` does. A box outside of
    the middle becomes a line at its border, so that no image loses its last box. size: the one the annotation gives.
    Raises ValueError for a box that is not inside its image and for another size than the file's, OSError for a file
    that is no image.
    """
    stored, orientation = _header(path)
    if size is not None and size not in (stored, stored[::-1]):
        raise ValueError(
            f"{path} is {stored[0]} pixels high and {stored[1]} wide, its annotation says {size[0]} and {size[1]}; "
            "one of the two is another image's"
        )
    result = []
    for box in boxes:
        box = _inside(path, box, stored)
        box, (height, width) = turned(box, stored, orientation)
        result.append(_in_the_middle(box, height, width, side))
    return result


def all_seen(
    paths: Sequence[Path], annotations: Sequence[Annotation], side: int, skip_damaged: bool
) -> tuple[list[int], list[list[list[int]]], tuple[str, ...]]:
    """`seen` for many images: the rows that were kept, each one's boxes, and the files that were skipped.

    A file that is no image raises ValueError naming it; skip_damaged: it is left out, with a warning.
    """
    kept, found, skipped = [], [], []
    for row, (path, annotation) in enumerate(zip(paths, annotations, strict=True)):
        size, boxes = annotation
        try:
            found.append(seen(path, boxes, side, size))
            kept.append(row)
        except OSError as error:
            if not skip_damaged:
                raise ValueError(f"{error}; or set skip_damaged to go on without") from None
            log.warning("%s", error)
            skipped.append(str(path))
    return kept, found, tuple(skipped)


def _header(path: Path) -> tuple[Size, int]:
    """Height and width as stored, and the EXIF orientation, 1 to 8."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width), image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # a reader of a broken file may raise anything
        raise OSError(f"{path} cannot be read as an image ({error}); replace or remove it") from None


def _inside(path: Path, box: Box, size: Size) -> Box:
    """The box, one pixel beyond the right and lower border taken back: some annotators count from 1."""
    height, width = size
    x0, y0, x1, y1 = box
    fits_across = 0 <= x0 <= x1 <= width and x0 < width
    fits_down = 0 <= y0 <= y1 <= height and y0 < height
    if not (fits_across and fits_down):
        raise ValueError(f"{path} has the box {box}, which is not inside its {width} x {height} pixels; mend it")
    return x0, y0, min(x1, width - 1), min(y1, height - 1)


def turned(box: Box, size: Size, orientation: int) -> tuple[Box, Size]:
    """A box in stored pixels of an image of `size` as it lies after the turn that EXIF asks for, and the new size."""
    height, width = size
    x0, y0, x1, y1 = box
    if orientation in (2, 3):
        x0, x1 = width - 1 - x1, width - 1 - x0
    if orientation in (3, 4):
        y0, y1 = height - 1 - y1, height - 1 - y0
    if orientation < 5:
        return (x0, y0, x1, y1), size

    x0, y0, x1, y1 = y0, x0, y1, x1  # transposed: now in an image `height` wide and `width` high
    if orientation in (6, 7):
        x0, x1 = height - 1 - x1, height - 1 - x0
    if orientation in (7, 8):
        y0, y1 = width - 1 - y1, width - 1 - y0
    return (x0, y0, x1, y1), (width, height)


def _in_the_middle(box: Box, height: int, width: int, side: int) -> list[int]:
    x0, y0, x1, y1 = box
    shorter = min(height, width)
    left, right = _along(x0, x1, width, shorter, side)
    top, bottom = _along(y0, y1, height, shorter, side)
    return [left, top, right, bottom]


def _along(low: float, high: float, length: int, shorter: int, side: int) -> tuple[int, int]:
    """Both ends of a box along one side of an image, after resizing and cutting out the middle."""
    resized = int(side * 8 // 7 * length / shorter)
    cut = round((resized - side) / 2)
    scale = resized / length
    border = side - 1
    first = math.floor(low * scale + 1e-9) - cut
    beyond = math.ceil((high + 1) * scale - 1e-9) - cut

    first = min(max(first, 0), border)
    last = min(max(beyond - 1, first), border)
    return first, last


def padded(found: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Lists of boxes as (N, M, 4) int64, M those of the image that has most; rows of -1 fill up."""
    most = max(map(len, found))
    result = torch.full((len(found), most, 4), -1)
    for row, boxes in zip(result, found, strict=True):
        count = len(boxes)
        row[:count] = torch.tensor(boxes)
    return result
