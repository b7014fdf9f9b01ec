"""The attention explorer: drag a patch of one picture over another and watch what both output layers make of it.

`State` is what the reader chose, a `Lens` turns it into what is seen, and `AttentionExplorer` is the widget around
them, drawn by the modules in page/.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import anywidget
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from saol_lib.attach import attach_saol
from saol_lib.explorer.lens import PALETTES, Lens, Preprocessing
from saol_lib.explorer.pictures import MAX_BYTES, gather, png, read_picture
from saol_lib.explorer.shipped import Scene, shipped_lenses, shipped_scenes
from saol_lib.explorer.state import State

THUMBS = 32  # pictures to pick from; more are reached by chance
PAGE = Path(__file__).with_name("page")
MODULES = ("words", "geometry", "maps", "gate", "parts", "stage", "answers", "controls", "tour", "explorer")
PARTS = ("setup", "choices", "pictures", "tiles", "overlay", "cells", "numbers")


def page() -> str:
    """The page's modules and the vendored view library as the one module that anywidget loads, offline.

    Names are the same in all of them, so imports between them and exports fall away; the library, whose own short
    names would collide, stays in a function that returns what it exported.
    """
    library = (PAGE / "vendor/preact-htm.js").read_text()
    code, exported = re.fullmatch(r"(.*)export\{(.*)\};?\s*", library, re.DOTALL).groups()
    pairs = [name.split(" as ") for name in exported.split(",")]
    returned = ", ".join(f"{public}: {own}" for own, public in pairs)
    public = ", ".join(name for _, name in pairs)
    parts = [f"const {{ {public} }} = (() => {{ {code} return {{ {returned} }}; }})();"]

    for name in MODULES:
        source = (PAGE / f"{name}.js").read_text()
        source = re.sub(r"^import [^;]*;\n", "", source, flags=re.MULTILINE)
        parts.append(re.sub(r"^export (?!default)", "", source, flags=re.MULTILINE))
    return "\n".join(parts)


class AttentionExplorer(anywidget.AnyWidget):
    """The widget: `state` reads and sets what is shown; `render(state)` is a figure of it and changes nothing.

    model: a network with SAOL, GAP-FC or both; a plain classifier is shown with its own GAP-FC layer.
    images: a tensor (N, 3, H, W) or array (N, H, W, 3), uint8 or floats in 0..1; a list of PIL images; or a torchvision
    data set (its first 1000 pictures, with its labels and classes). labels (N,): -1 where the class is unknown.
    classes: the K names. scaling: mean and deviation (3,) of pixels in 0..1 that the network was trained with, or a
    function that makes of pictures (N, 3, H, W) uint8 what it sees; None: those of the pictures. Raises ValueError with
    one sentence for what does not fit.
    """

    _esm = page()
    _css = PAGE / "explorer.css"
    setup = traitlets.Dict().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    tiles = traitlets.Dict().tag(sync=True)
    overlay = traitlets.Dict().tag(sync=True)
    cells = traitlets.Dict().tag(sync=True)
    numbers = traitlets.Dict().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    answered = traitlets.Int().tag(sync=True)  # the number of the page's last request that was seen to

    def __init__(
        self,
        model: nn.Module,
        images,
        labels: Sequence[int] | Tensor | None = None,
        classes: Sequence[str] | None = None,
        *,
        scaling: Preprocessing | None = None,
    ) -> None:
        pictures, names = gather(images, labels, classes)
        lens = Lens(_with_look(model), pictures, names, scaling)
        self._open({"model": lens}, {})

    @classmethod
    def of(cls, lenses: Mapping[str, Lens], scenes: Mapping[str, Sequence[Scene]] | None = None) -> "AttentionExplorer":
        """Several lenses to choose from on the page, by name, each with scenes to begin with; opens on the first."""
        explorer = cls.__new__(cls)
        explorer._open(dict(lenses), dict(scenes or {}))
        return explorer

    @classmethod
    def shipped(cls) -> "AttentionExplorer":
        """With all small models of this repository, to choose from on the page."""
        return cls.of(shipped_lenses(), shipped_scenes())

    def _open(self, lenses: dict[str, Lens], scenes: dict[str, Sequence[Scene]]) -> None:
        super().__init__()
        self.lenses = lenses
        self.scenes = scenes
        self.setup = {name: _setup(lens, scenes.get(name, ())) for name, lens in lenses.items()}
        self.state = self.first(next(iter(lenses)))
        self.on_msg(lambda _, content, buffers: self._asked(content, buffers))

    def first(self, model: str) -> State:
        """What a model opens on: its first scene, or its first two pictures."""
        scenes = self.scenes.get(model)
        opening = scenes[0].state if scenes else State(source=min(1, len(self.lenses[model].pictures.images) - 1))
        return replace(opening, model=model)

    def lens(self, state: State) -> tuple[Lens, State]:
        """What shows a state, and the state checked."""
        state = replace(state, model=state.model or next(iter(self.lenses)))
        if not isinstance(state.model, str) or state.model not in self.lenses:
            raise ValueError(f"model={state.model!r} is not here; choose one of {', '.join(self.lenses)}")
        lens = self.lenses[state.model]
        return lens, lens.check(state)

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._show(state)

    def _show(self, state: State, message: str = "", answered: int | None = None) -> None:
        """Show a state, in one message to the page, which carries only what differs."""
        lens, state = self.lens(state)
        parts = lens.view(state)
        self._state = state
        with self.hold_sync():
            for part, value in parts.items():
                setattr(self, part, value)
            self.choices = _plain(state)
            self.message = message
            if answered is not None:
                self.answered = answered

    def render(self, state: State) -> Figure:
        lens, state = self.lens(state)
        return lens.render(state)

    def file(self, kind: str) -> bytes:
        """The figure of what is shown as "svg" or "png", the same bytes for the same state."""
        import matplotlib.pyplot as plt  # slow to load, and for exports alone

        from saol_lib.evidence.figures import STYLE

        file = io.BytesIO()
        metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
        with plt.rc_context(STYLE):
            self.render(self.state).savefig(file, format=kind, metadata=metadata, dpi=150, bbox_inches="tight")
        return file.getvalue()

    def upload(self, data: bytes, slot: str, name: str = "the file") -> None:
        """Take a picture file as "base" or "source"; ValueError with one sentence if it is none."""
        lens, _ = self.lens(self.state)
        pixels, remark = read_picture(data, name, lens.size)
        picture = base64.b64encode(png(pixels)).decode()
        height, width = lens.size
        told = (
            f"{name} was cut and shrunk to {width} x {height} pixels. The network knows only: {_listed(lens.classes)}."
        )
        message = f"{remark}. {told}" if remark else told
        self._show(replace(self.state, **{slot: picture}), message)

    # --- what the page asks for --------------------------------------------------------------------------------------

    def _asked(self, content, buffers: Sequence = ()) -> None:
        """See to a request. It is foreign: what is wrong with it is told on the page, and all goes on as before."""
        try:
            self._answer(content, buffers)
        except ValueError as error:
            with self.hold_sync():
                self.message = str(error)
                self.choices = _plain(self.state)
                number = content.get("number") if isinstance(content, dict) else None
                if type(number) is int:
                    self.answered = number

    def _answer(self, content, buffers: Sequence) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"the page sent a {type(content).__name__} where an object was expected; reload the page")
        name = str(content.get("name", "the page"))[:60]

        if "ask" in content:
            self._show(self._wanted(content["ask"]), answered=_number(content))
        elif "text" in content:
            self._show(_read_state(content["text"], name))
        elif content.get("slot") in ("base", "source"):
            self.upload(_file(buffers, name), content["slot"], name)
        elif content.get("figure") in ("svg", "png"):
            kind = content["figure"]
            self.send({"name": f"saol.{kind}"}, [self.file(kind)])
        else:
            raise ValueError(f"the page asked for {str(content)[:60]}, which is not known here; reload the page")

    def _wanted(self, values) -> State:
        """The state that the page asks for; of a model alone, what that opens on."""
        state = State.of(values)
        if set(values) == {"model"} and isinstance(state.model, str) and state.model in self.lenses:
            return self.first(state.model)
        return state


def _with_look(model: nn.Module) -> nn.Module:
    """A plain classifier with its own GAP-FC layer made readable; others as they are."""
    if hasattr(model, "look"):
        return model
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer to read; give a network with SAOL or GAP-FC")
    return attach_saol(model, num_classes=linear[-1].out_features, heads=("gap",))


def _setup(lens: Lens, scenes: Sequence[Scene]) -> dict:
    """What the page is told once."""
    first = lens.pictures.images[:THUMBS]
    thumbs = [png(image) for image in F.interpolate(first, (48, 48))]
    return {
        "thumbs": thumbs,
        "labels": lens.pictures.labels[:THUMBS].tolist(),
        "count": len(lens.pictures.images),
        "overlays": lens.overlays,
        "size": list(lens.size),
        "classes": list(lens.classes),
        "limit": MAX_BYTES,
        "palettes": {name: colours.numpy().tobytes() for name, colours in PALETTES.items()},
        "scenes": [{"title": s.title, "caption": s.caption, "state": _plain(lens.check(s.state))} for s in scenes],
    }


def _plain(state: State) -> dict:
    """A state as JSON has it."""
    values = asdict(state)
    return values | {"box": list(state.box), "shift": list(state.shift)}


def _listed(names: Sequence[str]) -> str:
    """At most 12 names in words."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


def _number(content: dict) -> int:
    number = content.get("number")
    if type(number) is not int:
        raise ValueError(f"the page sent number={number!r}; a whole number was expected; reload the page")
    return number


def _read_state(text, name: str) -> State:
    if not isinstance(text, str):
        raise ValueError(f"{name} is a {type(text).__name__}; give a state as text, as it was saved here")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON; give a state that was saved here") from None
    return State.of(values)


def _file(buffers: Sequence, name: str) -> bytes:
    if not buffers:
        raise ValueError(f"{name} came without its bytes; upload it again")
    return bytes(buffers[0])
