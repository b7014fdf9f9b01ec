"""The attention explorer: drag a patch of one picture over another and watch what both output layers make of it.

`State` is what the user chose, a `Lens` turns it into what is seen, and `AttentionExplorer` is the widget around them,
drawn by explorer.js. `python -m saol_lib.explorer --make-models [NAME [DATA_DIR]]` trains its models.
"""

import base64
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import anywidget
import matplotlib.pyplot as plt
import safetensors.torch
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from saol_lib import figures, runs
from saol_lib.config import RunConfig
from saol_lib.data import Dataset, Split, digit_scenes, load, mean_and_std
from saol_lib.lens import MAX_BYTES, Lens, State, png, read_picture
from saol_lib.models import SAOLNet, load_weights

THUMBS = 24  # pictures to pick from; more are reached by chance
SHIPPED = runs.RESULTS / "models"
MODELS = {
    "digits": RunConfig(arm="saol_cutmix_ss_sd", epochs=15, logit_width=40),
    "cifar10": RunConfig(dataset="cifar10", arm="saol_cutmix_ss_sd", epochs=16, batch_size=128, logit_width=40),
}
PHOTOGRAPHS = {"chelsea.png": 3, "rocket.jpg": -1, "motorcycle_left.png": -1, "astronaut.png": -1, "coffee.png": -1}


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
        first, *others = [name for name in MODELS if (SHIPPED / f"{name}.json").exists()]
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
        file, metadata = io.BytesIO(), {"svg": {"Date": None}, "png": {"Software": None}}[kind]
        with plt.rc_context(figures.STYLE):
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
        except ValueError as error:
            unread = isinstance(error, json.JSONDecodeError)
            self.message = f"{name} is not JSON; give a state that was saved here" if unread else str(error)
            self.choices = asdict(self.state) | {"box": list(self.state.box)}


def _setup(lens: Lens) -> dict:
    """What the page is told once."""
    thumbs = [png(image) for image in F.interpolate(lens.split.images[:THUMBS], (48, 48))]
    labels, count = lens.split.labels[:THUMBS].tolist(), len(lens.split.images)
    named = {"thumbs": thumbs, "labels": labels, "count": count, "overlays": lens.overlays}
    return named | {"size": list(lens.size), "classes": list(lens.classes), "limit": MAX_BYTES}


def photographs(size: tuple[int, int]) -> Split:
    """The photographs that scikit-image's wheel holds, with their classes in CIFAR-10."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photos = [read_picture((folder / photo).read_bytes(), photo, size)[0] for photo in PHOTOGRAPHS]
    return Split(torch.stack(photos), torch.tensor(list(PHOTOGRAPHS.values())))


def load_shipped(name: str) -> tuple[SAOLNet, Dataset, tuple[Tensor, Tensor]]:
    """A small trained model of results/models, pictures for it (digit scenes, or photographs), and its scaling."""
    from saol_lib.training import new_model

    run, weights = json.loads((SHIPPED / f"{name}.json").read_text()), SHIPPED / f"{name}.safetensors"
    model = new_model(RunConfig.of(**run["config"]))
    load_weights(model, safetensors.torch.load_file(weights), weights.name)
    split = digit_scenes(200, seed=13, test=True) if name == "digits" else photographs((32, 32))
    scaling = tuple(torch.tensor(run["normalisation"][key]) for key in ("mean", "std"))
    return model, Dataset(split, split, tuple(run["classes"]), ""), scaling


def make_model(name: str, data_dir: str | None = None, results: str | Path = SHIPPED / "checkpoints") -> None:
    """Train a shipped model (a finished run is taken as it is); write its weights and its run to results/models."""
    from saol_lib.training import load_model, train

    run, dataset = train(replace(MODELS[name], data_dir=data_dir), results), load(MODELS[name].dataset, data_dir)
    weights = {key: value.contiguous() for key, value in load_model(run, results).state_dict().items()}
    mean, std = (value.tolist() for value in mean_and_std(dataset.train.images))
    more = {"classes": dataset.classes, "normalisation": {"mean": mean, "std": std}}
    runs.write_whole(SHIPPED / f"{name}.safetensors", safetensors.torch.save(weights))
    runs.write_json(SHIPPED / f"{name}.json", run._asdict() | more)


if __name__ == "__main__":
    option, name, *where = [*sys.argv[1:], *["--make-models", "digits"][len(sys.argv[1:]) :]]
    if len(sys.argv) < 2 or option != "--make-models" or name not in MODELS or len(where) > 1:
        sys.exit(f"usage: python -m saol_lib.explorer --make-models [NAME [DATA_DIR]], NAME one of {', '.join(MODELS)}")
    make_model(name, *where)
