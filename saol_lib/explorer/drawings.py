"""Twenty pictures of CIFAR-10's ten classes, made of polygons and ovals: under this repository's own licence."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 320  # pixels that are drawn, then shrunk
BLACK, GLASS, EARTH = "#111111", "#cfe3f0", "#5b4127"


class Ground(NamedTuple):
    """What is behind: two colours, one above the other, parted at `horizon` (percent of the height)."""

    above: str
    below: str
    horizon: int


class Shape(NamedTuple):
    """A form in one colour; its points x0, y0, x1, y1, ... in percent of the picture. Two points bound an oval."""

    form: str  # polygon, oval or line
    colour: str
    points: tuple[int, ...]


class Drawing(NamedTuple):
    name: str  # the class
    ground: Ground
    shapes: list[Shape]
    mirrored: bool


def polygon(colour: str, *points: int) -> Shape:
    return Shape("polygon", colour, points)


def oval(colour: str, *points: int) -> Shape:
    return Shape("oval", colour, points)


def line(colour: str, *points: int) -> Shape:
    return Shape("line", colour, points)


# --- the ten classes, each in two colours -----------------------------------------------------------------------------


def airplane(body: str, wings: str) -> list[Shape]:
    return [
        polygon(body, 5, 55, 20, 47, 85, 44, 97, 50, 85, 57, 20, 58),
        polygon(wings, 40, 52, 62, 52, 50, 85, 40, 85),
        polygon(wings, 45, 46, 58, 46, 44, 22, 36, 22),
        polygon(body, 5, 55, 16, 48, 10, 28, 3, 28),
    ]


def automobile(body: str, hubs: str) -> list[Shape]:
    return [
        polygon(body, 6, 52, 24, 50, 36, 34, 66, 34, 80, 50, 94, 54, 95, 70, 6, 70),
        polygon(GLASS, 30, 49, 38, 38, 50, 38, 50, 49),
        polygon(GLASS, 54, 49, 54, 38, 64, 38, 73, 49),
        oval(BLACK, 16, 60, 34, 78),
        oval(BLACK, 66, 60, 84, 78),
        oval(hubs, 21, 65, 29, 73),
        oval(hubs, 71, 65, 79, 73),
    ]


def bird(body: str, wing: str) -> list[Shape]:
    return [
        polygon(EARTH, 0, 78, 100, 74, 100, 80, 0, 84),
        oval(body, 28, 36, 72, 72),
        oval(body, 56, 22, 82, 48),
        polygon("#e0a020", 80, 32, 93, 36, 80, 40),
        polygon(wing, 30, 46, 60, 44, 52, 64, 22, 66),
        polygon(wing, 32, 56, 4, 70, 10, 78, 36, 68),
        oval(BLACK, 69, 29, 74, 34),
        line(EARTH, 48, 70, 48, 78),
        line(EARTH, 56, 70, 56, 77),
    ]


def cat(fur: str, ears: str) -> list[Shape]:
    return [
        polygon(fur, 20, 44, 22, 6, 46, 28),
        polygon(fur, 80, 44, 78, 6, 54, 28),
        polygon(ears, 26, 36, 27, 16, 40, 28),
        polygon(ears, 74, 36, 73, 16, 60, 28),
        oval(fur, 16, 22, 84, 88),
        oval("#b7d36a", 28, 44, 44, 56),
        oval("#b7d36a", 56, 44, 72, 56),
        oval(BLACK, 33, 43, 39, 57),
        oval(BLACK, 61, 43, 67, 57),
        polygon("#d98880", 45, 62, 55, 62, 50, 68),
        line(BLACK, 50, 68, 42, 74),
        line(BLACK, 50, 68, 58, 74),
    ]


def deer(fur: str, tail: str) -> list[Shape]:
    return [
        polygon(fur, 22, 46, 66, 44, 70, 62, 24, 64),
        polygon(fur, 60, 48, 68, 22, 76, 24, 72, 52),
        polygon(fur, 66, 20, 84, 26, 92, 34, 82, 36, 68, 32),
        polygon(fur, 24, 60, 31, 60, 30, 92, 25, 92),
        polygon(fur, 36, 60, 42, 60, 41, 92, 37, 92),
        polygon(fur, 56, 60, 62, 60, 61, 92, 57, 92),
        polygon(fur, 64, 58, 70, 58, 69, 92, 65, 92),
        line(EARTH, 70, 20, 62, 4),
        line(EARTH, 66, 12, 56, 12),
        line(EARTH, 74, 20, 78, 4),
        line(EARTH, 76, 12, 86, 8),
        polygon(tail, 20, 46, 26, 46, 24, 58, 18, 56),
    ]


def dog(fur: str, ears: str) -> list[Shape]:
    return [
        oval(fur, 22, 14, 78, 84),
        polygon(ears, 24, 22, 8, 28, 6, 66, 20, 72, 30, 44),
        polygon(ears, 76, 22, 92, 28, 94, 66, 80, 72, 70, 44),
        oval("#f3e7d3", 34, 48, 66, 90),
        oval(BLACK, 32, 36, 42, 46),
        oval(BLACK, 58, 36, 68, 46),
        oval(BLACK, 42, 52, 58, 64),
        line(BLACK, 50, 62, 50, 72),
    ]


def frog(skin: str, belly: str) -> list[Shape]:
    return [
        oval(skin, 18, 38, 82, 82),
        oval(skin, 24, 24, 44, 46),
        oval(skin, 56, 24, 76, 46),
        oval("#f4e04d", 28, 27, 40, 40),
        oval("#f4e04d", 60, 27, 72, 40),
        oval(BLACK, 31, 30, 37, 37),
        oval(BLACK, 63, 30, 69, 37),
        oval(belly, 30, 58, 70, 82),
        polygon(skin, 18, 60, 2, 88, 30, 86),
        polygon(skin, 82, 60, 98, 88, 70, 86),
        line(BLACK, 32, 56, 50, 60, 68, 56),
    ]


def horse(coat: str, mane: str) -> list[Shape]:
    return [
        polygon(coat, 20, 42, 66, 40, 72, 64, 22, 64),
        polygon(coat, 58, 44, 72, 14, 82, 16, 74, 54),
        polygon(coat, 70, 12, 94, 28, 90, 36, 72, 28),
        polygon(coat, 22, 60, 32, 60, 30, 94, 24, 94),
        polygon(coat, 36, 62, 43, 62, 42, 94, 37, 94),
        polygon(coat, 54, 62, 61, 62, 60, 94, 55, 94),
        polygon(coat, 63, 60, 71, 60, 70, 94, 65, 94),
        polygon(mane, 56, 42, 70, 12, 74, 14, 64, 44),
        polygon(mane, 20, 42, 10, 46, 8, 76, 14, 76, 22, 54),
    ]


def ship(hull: str, house: str) -> list[Shape]:
    return [
        polygon(hull, 5, 58, 95, 58, 82, 76, 16, 76),
        polygon(house, 28, 46, 70, 46, 72, 58, 26, 58),
        polygon(house, 36, 36, 60, 36, 60, 46, 36, 46),
        polygon("#b03a2e", 44, 20, 54, 20, 54, 36, 44, 36),
    ]


def truck(box: str, cab: str) -> list[Shape]:
    return [
        polygon(box, 4, 22, 62, 22, 62, 66, 4, 66),
        polygon(cab, 64, 34, 82, 34, 94, 50, 94, 66, 64, 66),
        polygon(GLASS, 70, 38, 80, 38, 87, 50, 70, 50),
        polygon(BLACK, 4, 66, 94, 66, 94, 71, 4, 71),
        oval(BLACK, 10, 62, 27, 79),
        oval(BLACK, 32, 62, 49, 79),
        oval(BLACK, 70, 62, 87, 79),
    ]


SKY = Ground("#8fb8de", "#a9cbe8", 70)
HAZE = Ground("#dfe6ea", "#cfd8dc", 80)
SEA = Ground("#b9d4ea", "#2f6690", 60)
DUSK = Ground("#7c8796", "#3a4a5a", 58)
ROAD = Ground("#c9d3cf", "#6f7173", 62)
MEADOW = Ground("#a9c48a", "#5d8a3a", 45)
WOOD = Ground("#5a7247", "#6b7a3a", 60)
POND = Ground("#5b7f3b", "#6d6a3a", 60)
SAND = Ground("#c2b280", "#a08a5a", 55)
ROOM = Ground("#b8a58c", "#7d6a55", 75)

DRAWINGS = (
    Drawing("airplane", SKY, airplane("#f2f4f5", "#c4ccd2"), False),
    Drawing("airplane", HAZE, airplane("#3d4d5c", "#55687a"), True),
    Drawing("automobile", ROAD, automobile("#b3261e", "#999999"), False),
    Drawing("automobile", MEADOW, automobile("#2f5d9e", "#999999"), True),
    Drawing("bird", SKY, bird("#7a4a2b", "#54301a"), False),
    Drawing("bird", WOOD, bird("#d9d9d9", "#8a8f94"), True),
    Drawing("cat", ROOM, cat("#8c8c8c", "#d8a7a0"), False),
    Drawing("cat", SAND, cat("#c77f3a", "#e9c2a0"), True),
    Drawing("deer", MEADOW, deer("#8a5a33", "#efe6d8"), False),
    Drawing("deer", WOOD, deer("#a9713f", "#efe6d8"), True),
    Drawing("dog", ROOM, dog("#a8743f", "#6e4522"), False),
    Drawing("dog", MEADOW, dog("#e8e2d6", "#3a2f28"), True),
    Drawing("frog", POND, frog("#5f9a2e", "#c9d68a"), False),
    Drawing("frog", SAND, frog("#7d8a3c", "#d8cf9a"), True),
    Drawing("horse", MEADOW, horse("#6b3f22", "#2b1a10"), False),
    Drawing("horse", SAND, horse("#e6ddcc", "#b9aa90"), True),
    Drawing("ship", SEA, ship("#22313f", "#f2f2f2"), False),
    Drawing("ship", DUSK, ship("#8e2a22", "#e8e2d0"), True),
    Drawing("truck", ROAD, truck("#e5e5e5", "#c0392b"), False),
    Drawing("truck", SKY, truck("#3c78b4", "#f0c419"), True),
)


def draw(drawing: Drawing, size: tuple[int, int]) -> Tensor:
    """A drawing as an image uint8 (3, H, W)."""
    image = Image.new("RGB", (SIDE, SIDE), drawing.ground.above)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, _pixels(drawing.ground.horizon), SIDE, SIDE), fill=drawing.ground.below)

    for form, colour, points in drawing.shapes:
        places = [_pixels(point) for point in points]
        if form == "oval":
            pen.ellipse(places, fill=colour)
        elif form == "line":
            pen.line(places, fill=colour, width=_pixels(4))
        else:
            pen.polygon(places, fill=colour)

    if drawing.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _pixels(percent: int) -> int:
    return percent * SIDE // 100
