"""The embedded default: real handwritten digits on cluttered colour canvases, with exact boxes; no download."""

import numpy as np
import torch
from PIL import Image

from saol_lib.data.splits import Split

Rng = np.random.Generator


def digit_scenes(count: int, seed: int = 0, test: bool = False, size: int = 32) -> Split:
    """Real handwritten digits (scikit-learn's 1,797) on cluttered colour canvases, with exact boxes.

    Each scene (3, size, size) holds one enlarged digit at a random place and some fragments of other digits. The first
    1,297 digits serve for training, the other 500 for testing; `groups` tells which digit a scene shows. One seed gives
    the same bytes everywhere.
    """
    from sklearn.datasets import load_digits  # a second and a half, which only the digits cost

    source = load_digits()
    grey = np.uint8(np.round(source.images * 255 / 16))
    ink = [Image.fromarray(image) for image in grey]
    pool = np.arange(1297, 1797) if test else np.arange(1297)

    rng = np.random.default_rng([seed, int(test)])
    rounds = -(-count // len(pool))
    chosen = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:count]

    images = np.empty((count, size, size, 3), dtype=np.uint8)
    boxes = torch.empty(count, 4, dtype=torch.int64)
    for i, pick in enumerate(chosen):
        images[i], box = _digit_scene(ink, pick, pool, rng, size)
        boxes[i] = torch.tensor(box)

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(source.target[chosen].astype(np.int64))
    groups = torch.from_numpy(chosen.astype(np.int64))
    return Split(pixels, labels, boxes, groups)


def _digit_scene(ink: list[Image.Image], pick: int, pool: np.ndarray, rng: Rng, size: int):
    """One scene (size, size, 3) uint8 and the digit's box."""
    canvas = _background(size, rng)
    for _ in range(4):
        top, left = rng.integers(0, 5, 2).tolist()
        other = ink[pool[rng.integers(len(pool))]]
        fragment = other.crop((left, top, left + 4, top + 4))
        extent = int(rng.integers(size // 6, size // 4))
        _draw(canvas, fragment, extent, rng)

    extent = int(rng.integers(size * 7 // 16, size * 11 // 16))
    cover, y, x = _draw(canvas, ink[pick], extent, rng)
    canvas += rng.normal(0, 8, canvas.shape)

    visible = cover > 0.25
    rows = np.flatnonzero(visible.any(axis=1))
    columns = np.flatnonzero(visible.any(axis=0))
    box = (x + columns[0], y + rows[0], x + columns[-1], y + rows[-1])
    return np.uint8(canvas.clip(0, 255)), box


def _background(size: int, rng: Rng) -> np.ndarray:
    """A dark colour that changes evenly from left to right or from top to bottom, (size, size, 3) float."""
    ramp = np.linspace(0, 1, size)[:, None, None] * rng.uniform(-40, 40, 3)
    colour = rng.uniform(30, 130, 3)
    if rng.random() >= 0.5:
        ramp = ramp.swapaxes(0, 1)
    return np.broadcast_to(colour + ramp, (size, size, 3)).copy()


def _draw(canvas: np.ndarray, ink: Image.Image, extent: int, rng: Rng):
    """Draw `ink`, `extent` pixels wide, in a random bright colour at a random place; its cover and that place."""
    enlarged = ink.resize((extent, extent), Image.Resampling.BICUBIC)
    cover = np.asarray(enlarged) / 255.0
    y, x = rng.integers(0, len(canvas) - extent + 1, 2)
    colour = rng.uniform(150, 255, 3)
    patch = canvas[y : y + extent, x : x + extent]
    patch += cover[..., None] * (colour - patch)
    return cover, y, x
