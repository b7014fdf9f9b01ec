"""What the explorer shows: `State` is what the user chose, a `Lens` turns it into pictures and numbers, both pure."""

import base64
import io
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from saol_lib.attach import SAOLNet
from saol_lib.cutmix import paste
from saol_lib.data import Dataset, mean_and_std
from saol_lib.layers import Outputs
from saol_lib.localization import largest_box, mass_inside, raw_maps, stretch

OVERLAYS = {"attention": "A", "spatial": "Yₖ", "saol": "A·Yₖ", "mask": "Mask", "cam": "CAM", "grad_cam": "Grad-CAM"}
PALETTES = {name: torch.tensor(255 * colormaps[name](range(256))[:, :3]).byte() for name in ("viridis", "cividis")}
FORMATS, MAX_BYTES, MAX_PIXELS, MIN_SIDE = ("PNG", "JPEG", "WEBP", "GIF", "BMP"), 8_000_000, 50_000_000, 8


@dataclass(frozen=True)
class State:
    """What the user chose: with the models and pictures it reproduces everything that is shown."""

    model: str = ""  # its name; empty: the explorer's first
    base: int | str = 0  # the picture below: its number, or an uploaded one as base64 of a file
    source: int | str = 1  # the picture that the patch is cut from
    box: tuple[int, int, int, int] | None = None  # of the patch: x0, y0, x1, y1, half-open pixels; None: a first one
    overlay: str = "saol"  # or "none", "attention", "spatial", "mask", "cam", "grad_cam"
    k: int | None = None  # the class of Y_k; None: SAOL's first
    opacity: float = 0.5
    scale: str = "own"  # colours from a map's least to its largest value; "shared": one scale for all classes
    colours: str = "viridis"
    threshold: float = 0.5  # of the map stretched to 0..1, below 1; the largest area above it is boxed

    @classmethod
    def of(cls, values: dict) -> "State":
        """A state from foreign JSON; ValueError with one sentence where it is none."""
        try:
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        except (TypeError, AttributeError):
            names = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"{str(values)[:60]} is no state: give a JSON object with some of {names}") from None

    @property
    def scene(self) -> tuple:
        """All that the network sees depends on."""
        return self.base, self.source, self.box


class Lens:
    """A model and the test images of a data set, for which states are shown. What did not change is not computed again.

    scaling: mean and deviation (3,) of pixels in 0..1 that the model was trained with; None: the training images'.
    Labels of -1 are of no class that the model knows. Raises ValueError for a model without a SAOL for the classes.
    """

    def __init__(self, model: SAOLNet, dataset: Dataset, scaling: tuple[Tensor, Tensor] | None = None) -> None:
        self.model, self.split, self.classes = model.eval(), dataset.test, dataset.classes
        self.mean, self.std = (v.view(3, 1, 1).float() for v in scaling or mean_and_std(dataset.train.images))
        self.size = tuple(self.split.images.shape[2:])
        self.picture, self.mixed = lru_cache(16)(self._picture), lru_cache(4)(self._mixed)
        self.look, self.map = lru_cache(4)(self._look), lru_cache(128)(self._map)
        outputs, _ = self.look(blank := (0, 0, (0, 0, 0, 0)))
        if outputs.saol_log_probs is None or outputs.saol_log_probs.shape[1] != len(self.classes):
            raise ValueError(
                f"the explorer needs a model with a SAOL for the {len(self.classes)} classes of its pictures"
            )
        self.overlays = ["none"]
        for name in OVERLAYS:
            with suppress(ValueError):  # a layer that this model lacks
                self.map(blank, name, 0)
                self.overlays.append(name)

    def check(self, state: State) -> State:
        """The state with its patch filled in; ValueError with one sentence for a value that is out of range."""
        if not {type(state.base), type(state.source)} <= {int, str}:
            raise ValueError("base and source must each be the number of a picture, or an uploaded picture as text")
        (height, width), last = self.size, len(self.classes) - 1
        about = (self.picture(state.base), self.picture(state.source))[1][2] or (width // 2, 4, width - 5, height - 5)
        first = max(about[0] - 2, 0), max(about[1] - 2, 0), min(about[2] + 3, width), min(about[3] + 3, height)
        state = replace(state, box=first if state.box is None else state.box)
        whole = isinstance(state.box, tuple) and [type(v) for v in state.box] == [int] * 4
        x0, y0, x1, y1 = state.box if whole else (1, 1, 0, 0)
        share = {name: type(value) in (int, float) and 0 <= value <= 1 for name, value in vars(state).items()}
        rules = (
            ("box", 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, f"x0, y0, x1, y1 in {width} x {height} pixels"),
            ("k", state.k is None or (type(state.k) is int and 0 <= state.k <= last), f"null or a class, 0 to {last}"),
            ("overlay", state.overlay in self.overlays, f"one of {', '.join(self.overlays)}"),
            ("opacity", share["opacity"], "in 0..1"),
            ("threshold", share["threshold"] and state.threshold < 1, "in 0..1, below 1"),
            ("scale", state.scale in ("own", "shared"), "own or shared"),
            ("colours", state.colours in [*PALETTES], f"one of {', '.join(PALETTES)}"),
        )
        for name, fine, wanted in rules:
            if not fine:
                raise ValueError(f"{name}={getattr(state, name)!r} must be {wanted}")
        return state

    def _picture(self, which: int | str) -> tuple[Tensor, int, tuple | None]:
        """A picture (3, H, W), its class or -1, and its object's box (both ends inclusive) or None."""
        if isinstance(which, str):
            data = b""
            with suppress(ValueError):
                data = base64.b64decode(which)
            return read_picture(data, "the picture of this state", self.size)[0], -1, None
        images, labels, boxes = self.split
        if type(which) is not int or not 0 <= which < len(images):
            raise ValueError(f"picture {which!r} is not there; choose 0 to {len(images) - 1}")
        return images[which], int(labels[which]), None if boxes is None else tuple(boxes[which].tolist())

    def _mixed(self, scene: tuple) -> tuple[Tensor, Tensor]:
        """The CutMix-ed picture (3, H, W) uint8 and its true shares y' (K,); a picture of no known class adds none."""
        images, labels, _ = zip(*map(self.picture, scene[:2]), strict=True)
        known = (torch.arange(len(self.classes)) == torch.tensor(labels)[:, None]).float()
        boxes, partners = torch.tensor([scene[2], (0, 0, 0, 0)]), torch.tensor([1, 1])
        mixed = paste(torch.stack(images), known, len(self.classes), boxes, partners)
        return mixed.images[0], mixed.targets[0]

    @torch.inference_mode()
    def _look(self, scene: tuple) -> tuple[Outputs, Tensor]:
        """The one forward pass: the outputs for the mixed picture, and X_L."""
        return self.model.look(((self.mixed(scene)[0] / 255 - self.mean) / self.std)[None], mask=True)

    @torch.inference_mode()
    def _map(self, scene: tuple, overlay: str, k: int) -> Tensor:
        """The map (Ho, Wo) of an overlay, in its own units."""
        return raw_maps(self.model, *self.look(scene), torch.tensor([k]), overlay)[0]

    def target(self, state: State) -> int:
        """The class k that is looked at."""
        return int(self.look(state.scene)[0].saol_log_probs.argmax()) if state.k is None else state.k

    def limits(self, state: State, overlay: str) -> tuple[float, float]:
        """The values that get the first and the last colour."""
        values = self.map(state.scene, overlay, self.target(state))
        if state.scale == "own":
            return float(values.min()), float(values.max())
        kind = "attention" if overlay == "saol" else overlay  # A bounds A * Y_k for every k
        most = max(float(self.map(state.scene, kind, k).max()) for k in range(len(self.classes)))
        return 0.0, 1.0 if overlay in ("spatial", "mask") else most

    def enlarged(self, state: State) -> Tensor:
        """The overlay's map at the picture's size (H, W), as `score_maps` does it, but in its own units."""
        values = self.map(state.scene, state.overlay, self.target(state))
        return F.interpolate(values[None, None], self.size, mode="bicubic", align_corners=False)[0, 0]

    def found(self, state: State) -> dict:
        """The overlay's box, the true one of what is still seen of class k (the patch for the mask), and IoU.

        Boxes are x0, y0, x1, y1 with both ends inclusive.
        """
        box = truth = overlap = None
        if state.overlay != "none":
            box = largest_box(stretch(self.enlarged(state)[None])[0], state.threshold)
        for place in self._truths(state) if box else ():
            a, b = self._inside(box), self._inside(place)
            overlap, truth = max((overlap or 0.0, truth or place), (float((a & b).sum() / (a | b).sum()), place))
        return {"box": box, "truth": truth, "iou": overlap}

    def _truths(self, state: State) -> list[tuple]:
        patch, k = self._inside((*state.box[:2], state.box[2] - 1, state.box[3] - 1)), self.target(state)
        things = zip(map(self.picture, state.scene[:2]), (~patch, patch), strict=True)
        seen = [self._inside(about) & part for (_, label, about), part in things if about and label == k]
        places = [part.nonzero() for part in ([patch] if state.overlay == "mask" else seen) if part.any()]
        return [(*place.amin(0).flip(0).tolist(), *place.amax(0).flip(0).tolist()) for place in places]

    def _inside(self, box: tuple) -> Tensor:
        """(H, W), true in a box."""
        ys, xs = torch.arange(self.size[0])[:, None], torch.arange(self.size[1])
        return (box[0] <= xs) & (xs <= box[2]) & (box[1] <= ys) & (ys <= box[3])

    def numbers(self, state: State) -> dict:
        """What is told in figures: (K,) predictions of both layers, true shares, A inside the patch, the boxes."""
        outputs, (x0, y0, x1, y1) = self.look(state.scene)[0], state.box
        gap = None if outputs.gap_logits is None else outputs.gap_logits[0].softmax(0).tolist()
        patch = torch.tensor([[x0, y0, x1 - 1, y1 - 1]])
        held = float(mass_inside(outputs.attention, patch, self.size)) if x1 > x0 and y1 > y0 else 0.0
        shares = {
            "saol": outputs.saol_log_probs[0].exp().tolist(),
            "gap": gap,
            "true": self.mixed(state.scene)[1].tolist(),
        }
        return {"k": self.target(state), "held": held} | shares | self.found(state)

    def painted(self, state: State, overlay: str, values: Tensor) -> Tensor:
        """A map (H, W) as RGB uint8 (3, H, W): one look-up in the colour map."""
        low, high = self.limits(state, overlay)
        steps = (255 * (values - low) / max(high - low, 1e-12)).clamp(0, 255).long()
        return PALETTES[state.colours][steps].permute(2, 0, 1)

    def view(self, state: State) -> dict[str, dict]:
        """All that the live page shows, by parts that are sent only when they differ; pictures are PNG bytes."""
        outputs, k = self.look(state.scene)[0], self.target(state)
        votes, classes = outputs.spatial_log_probs[0].exp().max(dim=0)
        cells = torch.stack([outputs.attention[0, 0], votes, classes]).numpy().astype("<f4")
        slots = {slot: self.picture(getattr(state, slot)) for slot in ("base", "source")}
        tiles = {name: png(self.painted(state, name, self.map(state.scene, name, k))) for name in self.overlays[1:]}
        shown = state.overlay != "none"
        return {
            "pictures": {slot: {"png": png(image), "label": label} for slot, (image, label, _) in slots.items()},
            "tiles": {name: {"png": tile, "limits": list(self.limits(state, name))} for name, tile in tiles.items()},
            "overlay": {"png": png(self.painted(state, state.overlay, self.enlarged(state)))} if shown else {},
            "cells": {"shape": list(cells.shape[1:]), "values": cells.tobytes()},
            "numbers": self.numbers(state),
        }

    def render(self, state: State) -> Figure:
        """The state as a figure: the mixed picture, the same under its overlay, A, Y_k, A * Y_k; predictions above."""
        from saol_lib.evidence.figures import panels  # slow to load, and for exports alone

        mixed, told, (x0, y0, x1, y1) = self.mixed(state.scene)[0], self.numbers(state), state.box
        tiles, boxes = {"mixed": mixed}, {"mixed": torch.tensor([x0, y0, x1 - 1, y1 - 1])}
        if state.overlay != "none":
            cover = self.painted(state, state.overlay, self.enlarged(state))
            title = f"box of {OVERLAYS[state.overlay]}" + (f", IoU {told['iou']:.2f}" if told["truth"] else "")
            tiles[title] = torch.lerp(mixed.float(), cover.float(), state.opacity).round().byte()
            boxes[title] = torch.tensor(told["box"]) if told["box"] else None
        parts = ("attention", "spatial", "saol")
        maps = {OVERLAYS[name]: self.map(state.scene, name, told["k"]) for name in parts}
        figure = panels(tiles | maps, boxes)
        for name, tile in zip(parts, figure.axes[len(tiles) :], strict=False):
            tile.images[0].set(cmap=state.colours, clim=self.limits(state, name))
        lines = [f"k = {self.classes[told['k']]}"]
        for title, shares in (("SAOL", told["saol"]), ("GAP-FC", told["gap"]), ("true shares", told["true"])):
            first = sorted(zip(shares or (), self.classes, strict=False), reverse=True)[:2]
            lines += [f"{title}: " + ", ".join(f"{name} {share:.0%}" for share, name in first)] * bool(first)
        figure.suptitle("     ".join(lines))
        return figure


def png(image: Tensor) -> bytes:
    """An image uint8 (3, H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_picture(data: bytes, name: str, size: tuple[int, int]) -> tuple[Tensor, str]:
    """A foreign picture file as RGB uint8 (3, H, W), its middle cut and shrunk to `size` (H, W), and a remark or "".

    Turned as its EXIF says, transparent parts on white, the first frame of an animation. Raises ValueError with one
    sentence for what is no picture, too large (it is not unpacked then), or too small.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if len(data) > MAX_BYTES or image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            frames, image = getattr(image, "n_frames", 1), ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey
                image = Image.fromarray(np.uint8(np.asarray(image) // 257))
            image = image.convert("RGBA")
    except Image.DecompressionBombError:
        limits = f"{MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} million pixels"
        raise ValueError(f"{name} is too large: at most {limits} are read; make it smaller first") from None
    except Exception:  # a decoder may raise anything on a damaged file
        raise ValueError(f"{name} is no whole picture; give a {', '.join(FORMATS)} file") from None
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{name} is {image.width} x {image.height} pixels; give one of at least {MIN_SIDE} a side")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.array(ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS))
    remark = f"{name} is animated; its first of {frames} frames is used" if frames > 1 else ""
    return torch.from_numpy(pixels).permute(2, 0, 1), remark
