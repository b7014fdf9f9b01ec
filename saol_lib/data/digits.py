"""The embedded default: real handwritten digits on cluttered colour canvases, with exact boxes; no download."""

import math

import numpy as np
import torch
from PIL import Image

from saol_lib.data.splits import Split

Rng = np.random.Generator
Corners = tuple[int, int, int, int]  # x0, y0, x1, y1, both ends inclusive
TRAINING_DIGITS = 1297  # the first ones of scikit-learn's 1,797; the others serve for testing
FRAGMENTS = 4  # of other digits, in every scene
VISIBLE = 0.25  # a pixel belongs to the digit where it covers more than this


def digit_scenes(
    count: int,
    seed: int = 0,
    test: bool = False,
    size: int = 32,
) -> Split:
    """Real handwritten digits (scikit-learn's 1,797) on cluttered colour canvases, with exact boxes.

    Each scene (3, size, size) holds one enlarged digit at a random place and some fragments of other digits. The first
    1,297 digits serve for training, the other 500 for testing; `groups` tells which digit a scene shows. One seed gives
    the same bytes everywhere.
    """
    from sklearn.datasets import load_digits  # a second and a half, which only the digits cost

    source = load_digits()
    ink = _pictures(source.images)
    pool = np.arange(TRAINING_DIGITS)
    if test:
        pool = np.arange(TRAINING_DIGITS, len(ink))

    rng = np.random.default_rng([seed, int(test)])
    chosen = _choose(pool, count, rng)

    images = np.empty((count, size, size, 3), dtype=np.uint8)
    boxes = torch.empty(count, 4, dtype=torch.int64)
    for i, pick in enumerate(chosen):
        image, box = _digit_scene(ink, pick, pool, rng, size)
        images[i] = image
        boxes[i] = torch.tensor(box)

    pixels = torch.from_numpy(images)
    channels_first = pixels.permute(0, 3, 1, 2)
    labels = source.target[chosen].astype(np.int64)
    groups = chosen.astype(np.int64)
    return Split(
        channels_first.contiguous(),
        torch.from_numpy(labels),
        boxes,
        torch.from_numpy(groups),
    )


def _pictures(digits: np.ndarray) -> list[Image.Image]:
    """Digits (N, 8, 8) of ink from 0 to 16 as grey pictures."""
    grey = np.round(digits * 255 / 16)
    pictures = []
    for digit in np.uint8(grey):
        picture = Image.fromarray(digit)
        pictures.append(picture)
    return pictures


def _choose(pool: np.ndarray, count: int, rng: Rng) -> np.ndarray:
    """Which digit each of `count` scenes shows: the whole pool in random order, as often as it takes."""
    rounds = math.ceil(count / len(pool))
    orders = [rng.permutation(pool) for _ in range(rounds)]
    return np.concatenate(orders)[:count]


def _digit_scene(
    ink: list[Image.Image],
    pick: int,
    pool: np.ndarray,
    rng: Rng,
    size: int,
) -> tuple[np.ndarray, Corners]:
    """One scene (size, size, 3) uint8 and the digit's box."""
    canvas = _background(size, rng)
    for _ in range(FRAGMENTS):
        fragment = _fragment(ink, pool, rng)
        extent = rng.integers(size // 6, size // 4)
        _draw(canvas, fragment, int(extent), rng)

    smallest = size * 7 // 16
    largest = size * 11 // 16
    extent = rng.integers(smallest, largest)
    cover, y, x = _draw(canvas, ink[pick], int(extent), rng)

    canvas += rng.normal(0, 8, canvas.shape)
    pixels = canvas.clip(0, 255)
    return np.uint8(pixels), _box(cover, y, x)


def _fragment(ink: list[Image.Image], pool: np.ndarray, rng: Rng) -> Image.Image:
    """A random quarter (4 x 4) of a random digit of the pool."""
    top, left = rng.integers(0, 5, 2).tolist()
    number = rng.integers(len(pool))
    other = ink[pool[number]]
    return other.crop((left, top, left + 4, top + 4))


def _box(cover: np.ndarray, y: int, x: int) -> Corners:
    """The smallest box around the visible pixels of what covers the canvas from row y and column x on."""
    visible = cover > VISIBLE
    any_in_row = visible.any(axis=1)
    any_in_column = visible.any(axis=0)
    rows = y + np.flatnonzero(any_in_row)
    columns = x + np.flatnonzero(any_in_column)
    return columns[0], rows[0], columns[-1], rows[-1]


def _background(size: int, rng: Rng) -> np.ndarray:
    """A dark colour that changes evenly from left to right or from top to bottom, (size, size, 3) float."""
    line = np.linspace(0, 1, size)
    change = rng.uniform(-40, 40, 3)
    colour = rng.uniform(30, 130, 3)

    ramp = line[:, None, None] * change
    if rng.random() >= 0.5:
        ramp = ramp.swapaxes(0, 1)
    shape = (size, size, 3)
    return np.broadcast_to(colour + ramp, shape).copy()


def _draw(
    canvas: np.ndarray,
    ink: Image.Image,
    extent: int,
    rng: Rng,
) -> tuple[np.ndarray, int, int]:
    """Draw `ink`, `extent` pixels wide, in a random bright colour at a random place; its cover and that place."""
    enlarged = ink.resize((extent, extent), Image.Resampling.BICUBIC)
    cover = np.asarray(enlarged) / 255.0

    room = len(canvas) - extent
    y, x = rng.integers(0, room + 1, 2)
    colour = rng.uniform(150, 255, 3)

    bottom = y + extent
    right = x + extent
    patch = canvas[y:bottom, x:right]
    patch += cover[..., None] * (colour - patch)
    return cover, y, x
