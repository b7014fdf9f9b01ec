"""The one way in which files of any data set are found and read: images, class folders, text."""

import codecs
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

log = logging.getLogger("saol_lib")

MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # of one picture; ImageNet's largest has 61 million
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
NO_IMAGES = (
    *(".txt", ".xml", ".json", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".log", ".py", ".ipynb"),
    *(".db", ".ini", ".lnk", ".mat", ".npy", ".npz", ".pt", ".zip", ".tar", ".gz"),
)
ORIENTATION = 0x0112  # the EXIF tag: 1 is upright
JUNK_FOLDERS = frozenset(("__MACOSX", "__pycache__", "lost+found"))
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


# --- one image -------------------------------------------------------------------------------------------------------


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB (H, W, 3) uint8, turned as its EXIF orientation says; ValueError naming the file.

    16-bit grey is scaled to 8 bits; what is transparent lies on white; of an animation the first picture is taken.
    Refused: what cannot be read whole, what has more than MOST_PIXELS (before it is unpacked), and 32-bit integers and
    floats, whose range is not known.
    """
    try:
        with Image.open(path) as image:
            _check(image)
            return np.array(_rgb(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large a picture to unpack ({error}); make it smaller or remove it") from None
    except Exception as error:  # a reader of a broken file may raise anything
        raise ValueError(f"{path} cannot be read as an image ({error}); replace or remove it") from None


def read_pixels(path: Path) -> Tensor:
    """`read_image` as a tensor (3, H, W) uint8."""
    image = read_image(path)
    return torch.from_numpy(image).permute(2, 0, 1)


def middle(pixels: Tensor, side: int) -> Tensor:
    """What evaluation sees of pixels (3, H, W): the middle (3, side, side) after the shorter side became 8/7 of it."""
    larger = resize(pixels, [side * 8 // 7], antialias=True)
    return center_crop(larger, [side, side])


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, at most {MOST_PIXELS} are read")


def _rgb(image: Image.Image) -> Image.Image:
    """The picture upright in three channels. What is so already, as most are, is not copied."""
    deep = _has_sixteen_bits(image)
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if deep:
        return _eight_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; expected 8 or 16 bits")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Grey PNG and PGM files of 16 bits may be given as 32-bit integers, which then lie in 0..65535."""
    as_integers = image.mode == "I" and image.format in ("PNG", "PPM")
    return as_integers or image.mode in SIXTEEN_BITS


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.uint8(np.round(values / 257)))


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


# --- many images -----------------------------------------------------------------------------------------------------


def read_images(
    paths: Sequence[Path], size: tuple[int, int] | None, skip_damaged: bool
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The images (n, 3, H, W) uint8 of one size, which of `paths` (n,) they are, and those that were skipped.

    size: height and width; None: that of most of the images. An image of another size counts as damaged.
    Raises ValueError naming the first damaged one unless `skip_damaged`, which warns with their number.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_attempt, paths))
    if size is None:
        sizes = Counter(image.shape[:2] for image in found if isinstance(image, np.ndarray))
        size = sizes.most_common(1)[0][0] if sizes else (0, 0)

    kept, pixels, damaged = [], [], []
    for i, image in enumerate(found):
        if isinstance(image, ValueError):
            damaged.append(image)
        elif image.shape[:2] != size:
            height, width = image.shape[:2]
            wrong = f"{paths[i]} is {height} pixels high and {width} wide; expected {size[0]} and {size[1]}"
            damaged.append(ValueError(wrong))
        else:
            kept.append(i)
            pixels.append(image)

    if damaged and not (skip_damaged and kept):
        raise damaged[0]
    if damaged:
        log.warning("%d of %d images were skipped; the first: %s", len(damaged), len(found), damaged[0])
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    skipped = set(range(len(paths))) - set(kept)
    return images, torch.tensor(kept), tuple(str(paths[i]) for i in sorted(skipped))


def _attempt(path: Path) -> np.ndarray | ValueError:
    try:
        return read_image(path)
    except ValueError as error:
        return error


# --- folders ---------------------------------------------------------------------------------------------------------


def is_junk(name: str) -> bool:
    """Hidden files and folders (notebook checkpoints, .DS_Store, ._copies) and what archives leave behind."""
    return name.startswith(".") or name in JUNK_FOLDERS


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, junk left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))


def image_names(folder: Path, skip_damaged: bool = False) -> list[str]:
    """Sorted names of the image files in a folder; a folder that is not there has none.

    What is no image is left out: hidden files, thumbnails' databases, texts, notebooks. Raises ValueError naming what
    would drop data in silence: a link to nothing (left out with a warning where `skip_damaged`), and a folder inside
    that has images of its own.
    """
    if not folder.is_dir():
        return []

    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if entry.is_dir():
                _refuse_images_in(Path(entry.path))
            elif not entry.is_file():
                _refuse_link(entry, skip_damaged)
            elif _is_image(entry):
                names.append(entry.name)
    return sorted(names)


def _is_image(entry: os.DirEntry) -> bool:
    """By its name's ending; where that says nothing, by what is in the file."""
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in IMAGES or ending in NO_IMAGES:
        return ending in IMAGES
    try:
        with Image.open(entry.path):
            return True
    except Exception:
        return False


def _refuse_link(entry: os.DirEntry, skip_damaged: bool) -> None:
    ending = os.path.splitext(entry.name)[1].lower()
    if not entry.is_symlink() or ending in NO_IMAGES:
        return
    sentence = f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; mend or remove the link"
    if not skip_damaged:
        raise ValueError(sentence)
    log.warning("%s", sentence)


def _refuse_images_in(folder: Path) -> None:
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not is_junk(entry.name)]
    for entry in inside:
        if entry.is_file() and _is_image(entry):
            raise ValueError(
                f"{folder} has images, {entry.name} for one, but is a folder inside a class folder; move them up "
                "into the class folder or away"
            )


def class_folders(root: Path, parts: Sequence[str], skip_damaged: bool = False) -> dict[str, dict[str, list[str]]]:
    """The image files of every class in every part: found[part][class] = names, classes sorted and with images alone.

    Folders without any image in any part are no classes. Raises ValueError naming a class that has images in one part
    only, since its images would be dropped and the labels after it shifted; FileNotFoundError where a part has none.
    """
    found = {}
    for part in parts:
        found[part] = _classes(root / part, skip_damaged)
        if not found[part]:
            raise FileNotFoundError(f"{root / part} has no class folder with an image in it")

    everywhere = set.union(*(set(classes) for classes in found.values()))
    for name in sorted(everywhere):
        for part in parts:
            if name not in found[part]:
                other = next(p for p in parts if name in found[p])
                raise ValueError(
                    f"class {name} has images in {root / other} but none in {root / part}; "
                    "put them there, or take the class out of both"
                )
    return found


def _classes(folder: Path, skip_damaged: bool) -> dict[str, list[str]]:
    classes = {}
    for name in subfolders(folder):
        if names := image_names(folder / name, skip_damaged):
            classes[name] = names
        else:
            log.warning("%s has no image in it and counts as no class", folder / name)
    return classes


def evenly(names: Sequence[str], count: int | None, root: Path) -> list[str]:
    """`count` of the sorted names, evenly spaced; None: all. ValueError where there are not so many."""
    names = sorted(names)
    count = count or len(names)
    if not 2 <= count <= len(names):
        raise ValueError(f"classes={count} cannot be chosen from the {len(names)} classes in {root}; give 2 or more")
    return [names[i * len(names) // count] for i in range(count)]


# --- text ------------------------------------------------------------------------------------------------------------

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """A text file whatever its encoding: what its byte-order mark says, else UTF-8, else Latin-1.

    Raises FileNotFoundError naming a file that the data set's layout has, and ValueError for one that is no text.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing; the original layout has it, unpack the data again") from None

    encodings = [name for mark, name in MARKS if content.startswith(mark)]
    for encoding in encodings or _guesses(content):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path} is no text in {' or '.join(encodings)}, as its first bytes say; unpack the data again")


def _guesses(content: bytes) -> tuple[str, ...]:
    """Without a mark: every second byte of plain text in UTF-16 is zero."""
    if content[1:2] == b"\0":
        return "utf-16-le", "latin-1"
    if content[:1] == b"\0":
        return "utf-16-be", "latin-1"
    return "utf-8", "latin-1"


SEPARATORS = {None: "spaces", "\t": "tabs", ",": "commas"}


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The lines of a text file as `columns` words each, empty lines left out; ValueError naming a line that differs.

    separator: what stands between them; None: any white space.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        words = line.split(separator)
        if len(words) != columns:
            raise ValueError(
                f"{path} has a line of {len(words)} columns, line {number}; expected {columns}, "
                f"{SEPARATORS[separator]} between"
            )
        rows.append([word.strip() for word in words])
    return rows
