"""The attention explorer: drag a patch of one picture over another and watch what both output layers make of it.

`State` is what the user chose, a `Lens` turns it into what is seen, and `AttentionExplorer` is the widget around them,
drawn by explorer.js.
"""

import base64
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import anywidget
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure

from saol_lib.attach import SAOLNet
from saol_lib.data import Dataset
from saol_lib.explorer.lens import MAX_BYTES, Lens, State, png, read_picture
from saol_lib.explorer.shipped import FOLDER, MODELS, load_shipped

THUMBS = 24  # pictures to pick from; more are reached by chance


class AttentionExplorer(anywidget.AnyWidget):
    """The widget: `state` reads and sets what is shown; `render(state)` is a figure of it and changes nothing.

    The test images of `dataset` are offered; scaling: see `Lens`; more: other lenses to choose from, by name.
    """

    _esm = Path(__file__).with_name("explorer.js")
    setup, choices, pictures, tiles, overlay, cells, numbers = (traitlets.Dict().tag(sync=True) for _ in range(7))
    message = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, model: SAOLNet, dataset: Dataset, scaling: tuple | None = None, name: str = "model", **more: Lens
    ):
        super().__init__()
        self.lenses = {name: Lens(model, dataset, scaling)} | more
        self.setup = {name: _setup(lens) for name, lens in self.lenses.items()}
        self.state = State()
        self.observe(lambda change: self._asked({"choices": change["new"]}), "choices")
        self.on_msg(lambda _, content, buffers: self._asked(content, buffers))

    @classmethod
    def shipped(cls) -> "AttentionExplorer":
        """With all small models of this repository, to choose from on the page."""
        first, *others = [name for name in MODELS if (FOLDER / f"{name}.json").exists()]
        return cls(*load_shipped(first), first, **{name: Lens(*load_shipped(name)) for name in others})

    def lens(self, state: State) -> tuple[Lens, State]:
        """What shows a state, and the state checked."""
        state = replace(state, model=state.model or next(iter(self.lenses)))
        if state.model not in tuple(self.lenses):
            raise ValueError(f"model={state.model!r} is not here; choose one of {', '.join(self.lenses)}")
        return self.lenses[state.model], self.lenses[state.model].check(state)

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        lens, state = self.lens(state)
        parts = lens.view(state) | {"message": ""}
        self._state = state
        with self.hold_sync():
            for part, value in (parts | {"choices": asdict(state) | {"box": list(state.box)}}).items():
                setattr(self, part, value)

    def render(self, state: State) -> Figure:
        lens, state = self.lens(state)
        return lens.render(state)

    def file(self, kind: str) -> bytes:
        """The figure of what is shown as "svg" or "png", the same bytes for the same state."""
        import matplotlib.pyplot as plt  # slow to load, and for exports alone

        from saol_lib.evidence.figures import STYLE

        file, metadata = io.BytesIO(), {"svg": {"Date": None}, "png": {"Software": None}}[kind]
        with plt.rc_context(STYLE):
            self.render(self.state).savefig(file, format=kind, metadata=metadata, dpi=150, bbox_inches="tight")
        return file.getvalue()

    def upload(self, data: bytes, slot: str, name: str = "the file") -> None:
        """Take a picture file as "base" or "source"; ValueError with one sentence if it is none."""
        pixels, remark = read_picture(data, name, self.lens(self.state)[0].size)
        self.state = replace(self.state, **{slot: base64.b64encode(png(pixels)).decode()})
        self.message = remark

    def _asked(self, content: dict, buffers: list = ()) -> None:
        """What the page wants. It is foreign input: what is wrong with it is told there, and all goes on as before."""
        name, text = str(content.get("name"))[:60], content.get("text")
        try:
            if "choices" in content and (state := State.of(content["choices"])) != self.state:
                self.state = state
            elif text is not None:
                self.state = State.of(json.loads(text))
            elif content.get("slot") in ("base", "source"):
                self.upload(bytes(buffers[0]), content["slot"], name)
            elif content.get("figure") in ("svg", "png"):
                self.send({"name": f"saol.{content['figure']}"}, [self.file(content["figure"])])
        except (ValueError, RecursionError) as error:
            unread = isinstance(error, json.JSONDecodeError | RecursionError)
            self.message = f"{name} is not JSON; give a state that was saved here" if unread else str(error)
            self.choices = asdict(self.state) | {"box": list(self.state.box)}


def _setup(lens: Lens) -> dict:
    """What the page is told once."""
    thumbs = [png(image) for image in F.interpolate(lens.split.images[:THUMBS], (48, 48))]
    labels, count = lens.split.labels[:THUMBS].tolist(), len(lens.split.images)
    named = {"thumbs": thumbs, "labels": labels, "count": count, "overlays": lens.overlays}
    return named | {"size": list(lens.size), "classes": list(lens.classes), "limit": MAX_BYTES}
