"""The small trained models of results/models, with pictures to show them on.

`python -m saol_lib.explorer.shipped [NAME [DATA_DIR]]` trains one of them anew (digits, or cifar10 from DATA_DIR).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from saol_lib.data import digit_scenes, load, mean_and_std
from saol_lib.explorer.drawings import DRAWINGS, draw
from saol_lib.explorer.lens import Lens
from saol_lib.explorer.pictures import Pictures, read_picture
from saol_lib.explorer.state import State
from saol_lib.networks.weights import load_weights
from saol_lib.training import files
from saol_lib.training.config import RunConfig
from saol_lib.training.recipe import load_model, new_model
from saol_lib.training.runs import Run

FOLDER = files.MODELS
MODELS = {
    "digits": RunConfig(arm="saol_cutmix_ss_sd", epochs=15, logit_width=40),
    "cifar10": RunConfig(  # the study's regime, all losses
        dataset="cifar10",
        arm="saol_cutmix_ss_sd",
        train_images=5000,
        eval_split="held_out",
        epochs=100,
        batch_size=128,
        lr=0.2,
        eval_every=20,
    ),
}

CAT, HORSE, UNKNOWN = 3, 7, -1  # classes in CIFAR-10
PHOTOGRAPHS = (  # of scikit-image's wheel, in the public domain or CC0: file, part (left, top, right, bottom), class
    ("horse.png", (12, 0, 340, 328), HORSE),
    ("chelsea.png", (0, 80, 220, 300), CAT),
    ("chelsea.png", None, CAT),
    ("chelsea.png", (200, 80, 420, 300), CAT),
    ("rocket.jpg", None, UNKNOWN),
    ("motorcycle_left.png", None, UNKNOWN),
    ("astronaut.png", None, UNKNOWN),
    ("coffee.png", None, UNKNOWN),
    ("camera.png", None, UNKNOWN),
)
AIRPLANE, SHIP, TRUCK = 10, 25, 28  # where three drawings stand behind the photographs


class Scene(NamedTuple):
    """Something to begin with."""

    title: str
    caption: str
    state: State


SCENES = {
    "digits": (
        Scene(
            "Two digits",
            "A 3, and a patch with a 7 pasted over a corner. Both can be seen; on which does the attention lie?",
            State(base=17, source=32, box=(17, 9, 31, 29)),
        ),
        Scene(
            "One digit",
            "A whole picture, nothing pasted: both layers say 3, and so it is.",
            State(base=17, source=32, box=(0, 0, 0, 0)),
        ),
        Scene(
            "The patch hides the object",
            "The patch covers the 3, and shows hardly anything in its place. What do the layers say of what is left?",
            State(base=17, source=32, box=(4, 0, 22, 22)),
        ),
        Scene(
            "Where SAOL fails",
            "A 9 that SAOL takes for an 8, while GAP-FC is right: the attention lies where a fragment touches it.",
            State(base=2, source=32, box=(0, 0, 0, 0)),
        ),
    ),
    "cifar10": (
        Scene(
            "A ship and an airplane",
            "A ship, and a patch with an airplane pasted over it; both are drawings. The attention divides itself "
            "between them, and so does the answer: drag the patch.",
            State(base=SHIP, source=AIRPLANE, box=(0, 4, 18, 22)),
        ),
        Scene(
            "One ship",
            "A whole drawing, nothing pasted: both layers say ship. Other drawings they take for something else.",
            State(base=SHIP, source=AIRPLANE, box=(0, 0, 0, 0)),
        ),
        Scene(
            "A cat and a horse",
            "A photograph of a cat, and over it a patch of a horse's silhouette: SAOL gives one about as much as the "
            "other.",
            State(base=1, source=0, box=(4, 0, 20, 28)),
        ),
        Scene(
            "Where the layers differ",
            "The cat's whole photograph: SAOL says cat, GAP-FC takes its fur for a frog's.",
            State(base=2, source=1, box=(0, 0, 0, 0)),
        ),
        Scene(
            "Where SAOL fails",
            "A drawing of a truck: both layers take it for an airplane.",
            State(base=TRUCK, source=1, box=(0, 0, 0, 0)),
        ),
        Scene(
            "A class it does not know",
            "There is no rocket among the ten classes. A network must answer all the same: its true share is unknown.",
            State(base=4, source=1, box=(0, 0, 0, 0)),
        ),
    ),
}


def photographs(size: tuple[int, int]) -> Pictures:
    """The photographs that scikit-image's wheel holds, with their classes in CIFAR-10; few are of any."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    images, labels = [], []
    for file, part, label in PHOTOGRAPHS:
        images.append(_photograph(folder / file, part, size))
        labels.append(label)
    return Pictures(torch.stack(images), torch.tensor(labels))


def photographs_and_drawings(size: tuple[int, int], classes: Sequence[str]) -> Pictures:
    """The `photographs`, then the drawings; classes: CIFAR-10's names, in the network's order."""
    images, labels, _ = photographs(size)
    drawn = torch.stack([draw(drawing, size) for drawing in DRAWINGS])
    names = torch.tensor([classes.index(drawing.name) for drawing in DRAWINGS])
    return Pictures(torch.cat([images, drawn]), torch.cat([labels, names]))


def _photograph(path: Path, part: tuple | None, size: tuple[int, int]) -> Tensor:
    pixels, _ = read_picture(path.read_bytes(), path.name, Image.open(path).size[::-1] if part else size)
    if part is None:
        return pixels
    left, top, right, bottom = part
    image = Image.fromarray(pixels[:, top:bottom, left:right].permute(1, 2, 0).numpy())
    small = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1)


def _about(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def shipped_run(name: str) -> Run:
    """The run that a shipped model comes from."""
    found = {field: value for field, value in _about(name).items() if field in Run._fields}
    return Run(**found)


def load_shipped(name: str) -> tuple[nn.Module, Pictures, tuple[str, ...], tuple[Tensor, Tensor]]:
    """A shipped model, pictures for it, its classes, and the mean and deviation of its input: what a `Lens` takes."""
    about = _about(name)
    weights = FOLDER / f"{name}.safetensors"
    model = new_model(RunConfig.of(**about["config"]))
    load_weights(model, safetensors.torch.load_file(weights), weights.name)

    if name == "digits":
        scenes = digit_scenes(200, seed=13, test=True)
        pictures = Pictures(scenes.images, scenes.labels, scenes.boxes)
    else:
        pictures = photographs_and_drawings((32, 32), about["classes"])

    mean, std = (torch.tensor(about["normalisation"][key]) for key in ("mean", "std"))
    return model.eval(), pictures, tuple(about["classes"]), (mean, std)


def shipped_lenses() -> dict[str, Lens]:
    """A lens for every model that is here."""
    names = [name for name in MODELS if (FOLDER / f"{name}.json").exists()]
    return {name: Lens(*load_shipped(name)) for name in names}


def shipped_scenes() -> dict[str, tuple[Scene, ...]]:
    return dict(SCENES)


def make_model(name: str, data_dir: str | None = None, results: str | Path = FOLDER / "checkpoints") -> None:
    """Train a shipped model (a finished run is taken as it is); write its weights and its run to results/models."""
    from saol_lib.training.loop import train

    run = train(replace(MODELS[name], data_dir=data_dir), results)
    dataset = load(MODELS[name].dataset, data_dir)
    weights = load_model(run, results).state_dict()
    weights = {key: value.contiguous() for key, value in weights.items()}

    mean, std = mean_and_std(dataset.train.images)
    normalisation = {"mean": mean.tolist(), "std": std.tolist()}
    about = run._asdict() | {"classes": dataset.classes, "normalisation": normalisation}
    files.write_whole(FOLDER / f"{name}.safetensors", safetensors.torch.save(weights))
    files.write_json(FOLDER / f"{name}.json", about)


def main(arguments: list[str]) -> None:
    name, *where = arguments or ["digits"]
    if name not in MODELS or len(where) > 1:
        sys.exit(f"usage: python -m saol_lib.explorer.shipped [NAME [DATA_DIR]], NAME one of {', '.join(MODELS)}")
    make_model(name, *where)


if __name__ == "__main__":
    main(sys.argv[1:])
