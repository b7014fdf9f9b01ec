"""Pictures for the explorer: foreign files, and whatever a user holds: tensors, arrays, PIL images, a data set."""

import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 8_000_000
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_PICTURES = 1000  # of a data set: the first ones


class Pictures(NamedTuple):
    """What the explorer offers to choose from."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64; -1 where the class is unknown
    boxes: Tensor | None = None  # (N, 4) int64: x0, y0, x1, y1 of the object, both ends inclusive pixels


def gather(images, labels: Sequence[int] | None = None, classes: Sequence[str] | None = None):
    """Pictures and class names (or None) from what a user holds.

    images: a tensor (N, 3, H, W) or array (N, H, W, 3) or (N, 3, H, W), uint8 or floats in 0..1; a list of PIL images
    (or of such arrays without N); or a data set that gives (image, label) pairs, as torchvision's do, of which the
    first 1000 are taken, with its labels and its `classes`. Pictures of several sizes are cut to the first one's.
    Raises ValueError with one sentence for anything else.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))

    if isinstance(images, Tensor):
        pixels = _pixels(images)
    else:
        items, found = _items(images)
        labels = found if labels is None else labels
        classes = getattr(images, "classes", None) if classes is None else classes
        pixels = _stack(items)

    count = len(pixels)
    labels = [-1] * count if labels is None else labels
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if labels.shape != (count,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}; give one class number a picture, ({count},)")

    names = None if classes is None else tuple(str(name) for name in classes)
    return Pictures(pixels, labels), names


def _items(images) -> tuple[list, list[int] | None]:
    """The pictures of a list or a data set, and their labels where they come as pairs."""
    try:
        count = min(len(images), MAX_PICTURES)
        items = [images[i] for i in range(count)]
    except (TypeError, KeyError):
        raise ValueError(
            f"images is of type {type(images).__name__}; give a tensor, an array, a list of PIL images or a data set"
        ) from None

    if not items or not all(isinstance(item, tuple | list) for item in items):
        return items, None
    pictures = [item[0] for item in items]
    labels = [int(item[1]) for item in items]
    return pictures, labels


def _stack(items: list) -> Tensor:
    """Single pictures of any kind as (N, 3, H, W) uint8."""
    size = None
    pixels = []
    for item in items:
        image = item.convert("RGB") if isinstance(item, Image.Image) else _picture_of(item)
        size = size or image.size
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        pixels.append(torch.from_numpy(np.array(image)))
    if not pixels:
        raise ValueError("images is empty; give at least one picture")
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous()


def _picture_of(item) -> Image.Image:
    """One array or tensor as a PIL image."""
    if not isinstance(item, np.ndarray | Tensor):
        raise ValueError(f"a picture is of type {type(item).__name__}; give PIL images, arrays or tensors")
    pixels = _pixels(torch.as_tensor(item)[None])[0]
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _pixels(images: Tensor) -> Tensor:
    """A tensor of pictures as (N, 3, H, W) uint8."""
    shape = tuple(images.shape)
    if images.ndim != 4 or len(images) == 0 or 3 not in (shape[1], shape[3]):
        raise ValueError(f"images has shape {shape}; expected (N, 3, H, W) or (N, H, W, 3), at least one picture")
    if shape[1] != 3:
        images = images.permute(0, 3, 1, 2)

    if images.dtype == torch.uint8:
        return images.cpu().contiguous()
    if not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; give uint8 in 0..255 or floats in 0..1")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images has floats from {low:.3g} to {high:.3g}; give floats in 0..1 as they are before normalisation, "
            "and the normalisation as scaling=(mean, deviation)"
        )
    return (255 * images).round().byte().cpu().contiguous()


def read_picture(data: bytes, name: str, size: tuple[int, int]) -> tuple[Tensor, str]:
    """A foreign picture file as RGB uint8 (3, H, W), its middle cut and shrunk to `size` (H, W), and a remark or "".

    Turned as its EXIF says, transparent parts on white, the first frame of an animation. Raises ValueError with one
    sentence for what is no picture, too large (it is not unpacked then), or too small.
    """
    image, frames = _open(data, name)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{name} is {image.width} x {image.height} pixels; give one of at least {MIN_SIDE} a side")

    white = Image.new("RGBA", image.size, "white")
    opaque = Image.alpha_composite(white, image).convert("RGB")
    fitted = ImageOps.fit(opaque, size[::-1], Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)

    remark = f"{name} is animated; its first of {frames} frames is used" if frames > 1 else ""
    return pixels, remark


def _open(data: bytes, name: str) -> tuple[Image.Image, int]:
    """The first frame as RGBA, and the number of frames."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if len(data) > MAX_BYTES or image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            frames = getattr(image, "n_frames", 1)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey
                image = Image.fromarray(np.uint8(np.asarray(image) // 257))
            return image.convert("RGBA"), frames
    except Image.DecompressionBombError:
        limits = f"{MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} million pixels"
        raise ValueError(f"{name} is too large: at most {limits} are read; make it smaller first") from None
    except Exception:  # a decoder may raise anything on a damaged file
        raise ValueError(f"{name} is no whole picture; give a {', '.join(FORMATS)} file") from None


def png(image: Tensor) -> bytes:
    """An image uint8 (3, H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
