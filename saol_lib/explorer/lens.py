"""What the explorer shows of a state: a `Lens` turns what the reader chose into pictures and numbers, purely."""

import base64
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from saol_lib.cutmix import paste
from saol_lib.data import mean_and_std
from saol_lib.data.batches import Scaling
from saol_lib.explorer.pictures import Pictures, png, read_picture
from saol_lib.explorer.state import COLOURS, State, check_choices
from saol_lib.layers import Outputs
from saol_lib.localization import largest_box, mass_inside, raw_maps, stretch

OVERLAYS = {"attention": "A", "spatial": "Yₖ", "saol": "A·Yₖ", "mask": "Mask", "cam": "CAM", "grad_cam": "Grad-CAM"}
IN_WORDS = {
    "attention": "where it looks",
    "spatial": "what each place says",
    "saol": "together",
    "mask": "what looks pasted",
    "cam": "GAP-FC's map",
    "grad_cam": "GAP-FC's gradient",
}
UNKNOWN = "unknown"


def palette(name: str) -> Tensor:
    """A colour map as (256, 3) uint8."""
    with_opacity = colormaps[name](range(256))
    colours = 255 * with_opacity[:, :3]
    return torch.tensor(colours).byte()


PALETTES = {name: palette(name) for name in COLOURS}

# How pictures become what a network sees: mean and deviation (3,) of pixels in 0..1 that it was trained with, or a
# function of pictures (N, 3, H, W) uint8 that may enlarge them, too.
Preprocessing = tuple[Tensor, Tensor] | Callable[[Tensor], Tensor]


class Lens:
    """A network and the pictures for which states are shown. What did not change is not computed again.

    model: a network with a `look` (SAOLNet, ABN): SAOL, GAP-FC, or both. classes: their names, in the network's order.
    scaling: mean and deviation (3,) of pixels in 0..1 that the network was trained with, or a function that makes of
    pictures (N, 3, H, W) uint8 what it sees; None: mean and deviation of the pictures.
    Raises ValueError where the network's classes are not as many as the names, or a picture's class is not among them.
    """

    def __init__(
        self,
        model: nn.Module,
        pictures: Pictures,
        classes: tuple[str, ...] | None = None,
        scaling: Preprocessing | None = None,
    ) -> None:
        self.model = model.eval()
        self.pictures = pictures
        self.size = tuple(pictures.images.shape[2:])
        self.device = next(model.parameters()).device

        if not callable(scaling):
            mean, std = scaling or mean_and_std(pictures.images)
            scaling = Scaling(mean, std, self.size, torch.device("cpu"), torch.float32)
        self.scaled = scaling

        self.picture = lru_cache(16)(self._picture)
        self.mixed = lru_cache(4)(self._mixed)
        self.look = lru_cache(4)(self._look)
        self.map = lru_cache(128)(self._map)

        outputs, _ = self._see(pictures.images[0])
        self.classes = self._names(len(_answer(outputs)), classes)
        self.overlays = ["none", *self._layers()]

    def _names(self, count: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
        """The classes' names, held against the number of the network's and the pictures' labels."""
        if classes is None:
            classes = [f"class {k}" for k in range(count)]
        if len(classes) != count:
            raise ValueError(f"the network knows {count} classes, but {len(classes)} names are given as classes")

        least, largest = self.pictures.labels.aminmax()
        for label in (int(largest), int(least)):
            if not -1 <= label < count:
                raise ValueError(f"label {label} is no class; give 0 to {count - 1}, or -1 where it is unknown")
        return tuple(classes)

    def _layers(self) -> list[str]:
        """The overlays whose layer the network has."""
        blank = (0, 0, (0, 0, 0, 0), (0, 0))
        found = []
        for name in OVERLAYS:
            with suppress(ValueError):
                self.map(blank, name, 0)
                found.append(name)
        return found

    # --- states ------------------------------------------------------------------------------------------------------

    def check(self, state: State) -> State:
        """The state with its patch and overlay filled in; ValueError with one sentence for a value out of range."""
        if not {type(state.base), type(state.source)} <= {int, str}:
            raise ValueError("base and source must each be the number of a picture, or an uploaded picture as text")
        self.picture(state.base)

        if state.box is None:
            state = replace(state, box=self._first_patch(state.source))
        if state.overlay is None:
            first = self.overlays[1] if len(self.overlays) > 1 else "none"
            state = replace(state, overlay=first)

        self.picture(state.source)
        check_choices(state, self.size, len(self.classes), self.overlays)
        return state

    def _first_patch(self, source: int | str) -> tuple[int, int, int, int]:
        """Around the source's object, or its right half where that is not known."""
        height, width = self.size
        _, _, about = self.picture(source)
        if about is None:
            right = width - width // 6
            bottom = height - height // 6
            return width // 2, height // 8, right, bottom

        x0, y0, x1, y1 = about
        left = max(x0 - 2, 0)
        top = max(y0 - 2, 0)
        right = min(x1 + 3, width)
        bottom = min(y1 + 3, height)
        return left, top, right, bottom

    # --- what the network sees and says ------------------------------------------------------------------------------

    def _picture(self, which: int | str) -> tuple[Tensor, int, tuple | None]:
        """A picture (3, H, W), its class or -1, and its object's box (both ends inclusive) or None."""
        if isinstance(which, str):
            data = b""
            with suppress(ValueError):
                data = base64.b64decode(which)
            pixels, _ = read_picture(data, "the picture of this state", self.size)
            return pixels, -1, None

        images, labels, boxes = self.pictures
        if type(which) is not int or not 0 <= which < len(images):
            raise ValueError(f"picture {which!r} is not there; choose 0 to {len(images) - 1}")
        box = None if boxes is None else tuple(boxes[which].tolist())
        return images[which], int(labels[which]), box

    def _mixed(self, scene: tuple) -> tuple[Tensor, Tensor]:
        """The CutMix-ed picture (3, H, W) uint8 and its true shares y' (K + 1,), the last one of no known class."""
        base, source, box, (right, down) = scene
        below, below_label, _ = self.picture(base)
        above, above_label, _ = self.picture(source)
        moved = torch.roll(above, (down, right), dims=(1, 2))  # what comes round at the edge is never in the patch

        images = torch.stack([below, moved])
        labels = torch.tensor([below_label, above_label])
        unknown = len(self.classes)
        labels[labels == -1] = unknown

        boxes = torch.tensor([box, (0, 0, 0, 0)])
        partners = torch.tensor([1, 1])
        mixed = paste(images, labels, unknown + 1, boxes, partners)
        return mixed.images[0], mixed.targets[0]

    def _look(self, scene: tuple) -> tuple[Outputs, Tensor]:
        """The one forward pass: the outputs for the mixed picture, and X_L."""
        image, _ = self.mixed(scene)
        return self._see(image)

    @torch.inference_mode()
    def _see(self, image: Tensor) -> tuple[Outputs, Tensor]:
        batch = self.scaled(image[None]).to(self.device)
        outputs, feature = self.model.look(batch, mask=True)

        found = {}
        for name, part in outputs._asdict().items():
            if part is not None:
                found[name] = part.cpu()
        return Outputs(**found), feature

    @torch.inference_mode()
    def _map(self, scene: tuple, overlay: str, k: int) -> Tensor:
        """The map (Ho, Wo) of an overlay, in its own units."""
        outputs, feature = self.look(scene)
        classes = torch.tensor([k])
        if overlay in ("cam", "grad_cam"):
            classes = classes.to(self.device)
        maps = raw_maps(self.model, outputs, feature, classes, overlay)
        return maps[0].float().cpu()

    def target(self, state: State) -> int:
        """The class k that is looked at."""
        if state.k is not None:
            return state.k
        outputs, _ = self.look(state.scene)
        return int(_answer(outputs).argmax())

    # --- maps and boxes ----------------------------------------------------------------------------------------------

    def limits(self, state: State, overlay: str) -> tuple[float, float]:
        """The values that get the first and the last colour."""
        values = self.map(state.scene, overlay, self.target(state))
        if overlay == "mask":  # a probability; and where nothing is pasted none of it should be bright
            return 0.0, 1.0
        if state.scale == "own":
            return float(values.min()), float(values.max())
        if overlay == "spatial":
            return 0.0, 1.0
        kind = "attention" if overlay == "saol" else overlay  # A bounds A * Y_k for every k
        largest = []
        for k in range(len(self.classes)):
            values = self.map(state.scene, kind, k)
            largest.append(float(values.max()))
        return 0.0, max(largest)

    def enlarged(self, state: State) -> Tensor:
        """The overlay's map at the picture's size (H, W), as `score_maps` does it, but in its own units."""
        values = self.map(state.scene, state.overlay, self.target(state))
        image = values[None, None]
        enlarged = F.interpolate(image, self.size, mode="bicubic", align_corners=False)
        return enlarged[0, 0]

    def steps(self, state: State, overlay: str, values: Tensor) -> Tensor:
        """A map (H, W) as uint8: how strong, between its limits; the index into the palette."""
        low, high = self.limits(state, overlay)
        reach = max(high - low, 1e-12)
        strength = 255 * (values - low) / reach
        return strength.clamp(0, 255).byte()

    def found(self, state: State) -> dict:
        """The overlay's box, the true one of what is still seen of class k (the patch for the mask), and IoU.

        Boxes are x0, y0, x1, y1 with both ends inclusive.
        """
        box = truth = overlap = None
        x0, y0, x1, y1 = state.box
        nothing_to_find = state.overlay == "mask" and (x0 == x1 or y0 == y1)
        if state.overlay != "none" and not nothing_to_find:
            enlarged = self.enlarged(state)
            stretched = stretch(enlarged[None])
            box = largest_box(stretched[0], state.threshold)
        if box is None:
            return {"box": None, "truth": None, "iou": None}

        mine = self._inside(box)
        for place in self._truths(state):
            theirs = self._inside(place)
            common = (mine & theirs).sum()
            union = (mine | theirs).sum()
            iou = float(common / union)
            if overlap is None or iou > overlap:
                truth, overlap = place, iou
        return {"box": box, "truth": truth, "iou": overlap}

    def _truths(self, state: State) -> list[tuple]:
        """Boxes of what may rightly be found: the patch for the mask, else the objects of class k as far as seen."""
        x0, y0, x1, y1 = state.box
        patch = self._inside((x0, y0, x1 - 1, y1 - 1))
        if state.overlay == "mask":
            return [_bounds(patch)] if patch.any() else []

        k = self.target(state)
        below = self._object_of(k, state.base, (0, 0)) & ~patch
        above = self._object_of(k, state.source, state.shift) & patch
        return [_bounds(seen) for seen in (below, above) if seen.any()]

    def _object_of(self, k: int, which: int | str, shift: tuple[int, int]) -> Tensor:
        """(H, W), true in the box of a moved picture's object, if that is of class k; nowhere else."""
        _, label, about = self.picture(which)
        if about is None or label != k:
            return torch.zeros(self.size, dtype=torch.bool)
        x0, y0, x1, y1 = about
        right, down = shift
        return self._inside((x0 + right, y0 + down, x1 + right, y1 + down))

    def _inside(self, box: tuple) -> Tensor:
        """(H, W), true in a box, both ends inclusive."""
        x0, y0, x1, y1 = box
        height, width = self.size
        ys = torch.arange(height)[:, None]
        xs = torch.arange(width)
        across = (x0 <= xs) & (xs <= x1)
        down = (y0 <= ys) & (ys <= y1)
        return across & down

    # --- what is told ------------------------------------------------------------------------------------------------

    def held(self, state: State) -> float | None:
        """The share of the attention inside the patch; None without attention."""
        outputs, _ = self.look(state.scene)
        if outputs.spatial_log_probs is None:
            return None
        x0, y0, x1, y1 = state.box
        if x1 == x0 or y1 == y0:
            return 0.0
        patch = torch.tensor([[x0, y0, x1 - 1, y1 - 1]])
        return float(mass_inside(outputs.attention, patch, self.size))

    def numbers(self, state: State) -> dict:
        """What is told in figures: (K,) predictions of both layers, true shares, A inside the patch, the boxes."""
        outputs, _ = self.look(state.scene)
        _, shares = self.mixed(state.scene)
        saol = gap = None
        if outputs.saol_log_probs is not None:
            saol = outputs.saol_log_probs[0].exp().tolist()
        if outputs.gap_logits is not None:
            gap = outputs.gap_logits[0].softmax(0).tolist()
        told = {
            "k": self.target(state),
            "saol": saol,
            "gap": gap,
            "true": shares[:-1].tolist(),
            "unknown": float(shares[-1]),
            "held": self.held(state),
        }
        return told | self.found(state)

    def cells(self, state: State) -> dict:
        """For every position: A, Y_k, the largest vote and its class, as little-endian floats (4, Ho, Wo)."""
        outputs, _ = self.look(state.scene)
        if outputs.spatial_log_probs is None:
            return {}
        votes = outputs.spatial_log_probs[0].exp()
        attention = outputs.attention[0, 0]
        own = votes[self.target(state)]
        best, classes = votes.max(dim=0)

        parts = torch.stack([attention, own, best, classes])
        floats = parts.numpy().astype("<f4")
        return {"shape": list(parts.shape[1:]), "values": floats.tobytes()}

    def view(self, state: State) -> dict[str, dict]:
        """All that the live page shows, by parts that are sent only when they differ."""
        k = self.target(state)
        pictures = {}
        for slot in ("base", "source"):
            which = getattr(state, slot)
            image, label, _ = self.picture(which)
            pictures[slot] = {"png": png(image), "label": label}

        tiles = {}
        for name in self.overlays[1:]:
            values = self.map(state.scene, name, k)
            steps = self.steps(state, name, values)
            limits = self.limits(state, name)
            tiles[name] = _sent(steps) | {"limits": list(limits)}

        overlay = {}
        if state.overlay != "none":
            enlarged = self.enlarged(state)
            steps = self.steps(state, state.overlay, enlarged)
            overlay = _sent(steps)

        return {
            "pictures": pictures,
            "tiles": tiles,
            "overlay": overlay,
            "cells": self.cells(state),
            "numbers": self.numbers(state),
        }

    # --- exports -----------------------------------------------------------------------------------------------------

    def summary(self, state: State) -> str:
        """Both answers and the true shares in one line, the two largest of each."""
        told = self.numbers(state)
        k = self.classes[told["k"]]
        parts = [f"maps for “{k}”"]
        for title, layer in (("SAOL", "saol"), ("GAP-FC", "gap")):
            if told[layer]:
                largest = _largest(told[layer], self.classes)
                parts.append(f"{title}: {largest}")

        names = [*self.classes, UNKNOWN]
        shares = [*told["true"], told["unknown"]]
        largest = _largest(shares, names, above=5e-4)
        parts.append(f"true shares of the area: {largest}")
        return "     ".join(parts)

    def render(self, state: State) -> Figure:
        """The state as a figure: the mixed picture, the same under its overlay, then the maps; predictions above."""
        from saol_lib.evidence.figures import panels  # slow to load, and for exports alone

        mixed, _ = self.mixed(state.scene)
        seen = "what the network sees"
        tiles = {seen: mixed}
        boxes = {}
        x0, y0, x1, y1 = state.box
        if x1 > x0 and y1 > y0:
            boxes[seen] = torch.tensor([x0, y0, x1 - 1, y1 - 1])

        told = self.numbers(state)
        if state.overlay != "none":
            title = f"box of {OVERLAYS[state.overlay]}"
            both = [box for box in (told["box"], told["truth"]) if box]
            if told["truth"]:
                title += f" and the true one, IoU {told['iou']:.2f}"
            tiles[title] = self.covered(state)
            if both:
                boxes[title] = torch.tensor(both)

        own = [name for name in ("attention", "spatial", "saol") if name in self.overlays]
        parts = own or self.overlays[1:]
        maps = {}
        for name in parts:
            title = f"{OVERLAYS[name]}: {IN_WORDS[name]}"
            maps[title] = self.map(state.scene, name, told["k"])

        figure = panels(tiles | maps, boxes)
        map_tiles = figure.axes[len(tiles) :]
        for name, tile in zip(parts, map_tiles, strict=False):
            limits = self.limits(state, name)
            tile.images[0].set(cmap=state.colours, clim=limits)
        figure.suptitle(self.summary(state))
        return figure

    def covered(self, state: State) -> Tensor:
        """The mixed picture (3, H, W) under its overlay, the root of the map's strength as opacity, as on the page."""
        mixed, _ = self.mixed(state.scene)
        enlarged = self.enlarged(state)
        steps = self.steps(state, state.overlay, enlarged).long()
        palette = PALETTES[state.colours]
        colours = palette[steps].permute(2, 0, 1)

        opacity = state.opacity * (steps / 255).sqrt()
        covered = torch.lerp(mixed.float(), colours.float(), opacity)
        return covered.round().byte()


def _answer(outputs: Outputs) -> Tensor:
    """The log-probabilities or logits (K,) by which the network ranks: SAOL's, or GAP-FC's where there is no SAOL."""
    if outputs.saol_log_probs is not None:
        return outputs.saol_log_probs[0]
    if outputs.gap_logits is not None:
        return outputs.gap_logits[0]
    raise ValueError("the network gives neither SAOL's nor GAP-FC's answer; attach one of them first")


def _largest(shares: Sequence[float], names: Sequence[str], above: float = -1) -> str:
    """The two largest shares in words; above: only what is larger."""
    pairs = zip(shares, names, strict=True)
    ranked = sorted(pairs, reverse=True)
    told = [f"“{name}” {100 * share:.0f} %" for share, name in ranked[:2] if share > above]
    return ", ".join(told)


def _bounds(inside: Tensor) -> tuple[int, int, int, int]:
    """The box, both ends inclusive, around what is true in (H, W)."""
    places = inside.nonzero()
    top, left = places.amin(0).tolist()
    bottom, right = places.amax(0).tolist()
    return left, top, right, bottom


def _sent(steps: Tensor) -> dict:
    """A map of steps (H, W) as the page takes it."""
    values = steps.numpy()
    return {"shape": list(values.shape), "values": values.tobytes()}
