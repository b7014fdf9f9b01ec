"""Small pictures and image trees for the tests of this room."""

import numpy as np
import torch
from PIL import Image

CLASSES = [f"class{i}" for i in range(10)]


def noise(count, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def random_images(count, height, width, seed=0):
    return torch.from_numpy(noise(count, height, width, seed)).permute(0, 3, 1, 2).contiguous()


def picture(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(1, *size, seed)[0]).save(path)


def write_tree(root, each=2, classes=CLASSES, mode="RGB", suffix="png"):
    for part, seed in (("train", 0), ("test", 1)):
        pixels = noise(each * len(classes), 8, 6, seed)
        for i, image in enumerate(pixels):
            folder = root / part / classes[i // each]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert(mode).save(folder / f"{i:03d}.{suffix}")
    return root


def sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and all(part in text for part in parts), text
