"""The small trained models of results/models, with pictures to show them on.

`python -m saol_lib.explorer.shipped [NAME [DATA_DIR]]` trains one of them anew (digits, or cifar10 from DATA_DIR).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from saol_lib.attach import SAOLNet
from saol_lib.data import Dataset, Split, digit_scenes, load, mean_and_std
from saol_lib.explorer.lens import read_picture
from saol_lib.networks.weights import load_weights
from saol_lib.training import runs
from saol_lib.training.config import RunConfig
from saol_lib.training.recipe import load_model, new_model
from saol_lib.training.runs import Run

FOLDER = runs.RESULTS / "models"
MODELS = {
    "digits": RunConfig(arm="saol_cutmix_ss_sd", epochs=15, logit_width=40),
    "cifar10": RunConfig(  # one of the runs of notebook 05's cpu profile
        dataset="cifar10", arm="saol_cutmix_ss_sd", seed=2, train_images=5000, eval_split="held_out", epochs=15,
        batch_size=128, lr=0.2, eval_every=5,
    ),
}  # fmt: skip
PHOTOGRAPHS = {"chelsea.png": 3, "rocket.jpg": -1, "motorcycle_left.png": -1, "astronaut.png": -1, "coffee.png": -1}


def photographs(size: tuple[int, int]) -> Split:
    """The photographs that scikit-image's wheel holds, with their classes in CIFAR-10."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photos = [read_picture((folder / photo).read_bytes(), photo, size)[0] for photo in PHOTOGRAPHS]
    return Split(torch.stack(photos), torch.tensor(list(PHOTOGRAPHS.values())))


def shipped_run(name: str) -> Run:
    """The run that a shipped model comes from."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return Run(**{field: value for field, value in found.items() if field in Run._fields})


def load_shipped(name: str) -> tuple[SAOLNet, Dataset, tuple[Tensor, Tensor]]:
    """A shipped model, pictures for it (digit scenes, or photographs), and the mean and deviation of its input."""
    about, weights = json.loads((FOLDER / f"{name}.json").read_text()), FOLDER / f"{name}.safetensors"
    model = new_model(RunConfig.of(**about["config"]))
    load_weights(model, safetensors.torch.load_file(weights), weights.name)
    split = digit_scenes(200, seed=13, test=True) if name == "digits" else photographs((32, 32))
    scaling = tuple(torch.tensor(about["normalisation"][key]) for key in ("mean", "std"))
    return model.eval(), Dataset(split, split, tuple(about["classes"]), ""), scaling


def make_model(name: str, data_dir: str | None = None, results: str | Path = FOLDER / "checkpoints") -> None:
    """Train a shipped model (a finished run is taken as it is); write its weights and its run to results/models."""
    from saol_lib.training.loop import train

    run, dataset = train(replace(MODELS[name], data_dir=data_dir), results), load(MODELS[name].dataset, data_dir)
    weights = {key: value.contiguous() for key, value in load_model(run, results).state_dict().items()}
    mean, std = (value.tolist() for value in mean_and_std(dataset.train.images))
    more = {"classes": dataset.classes, "normalisation": {"mean": mean, "std": std}}
    runs.write_whole(FOLDER / f"{name}.safetensors", safetensors.torch.save(weights))
    runs.write_json(FOLDER / f"{name}.json", run._asdict() | more)


if __name__ == "__main__":
    name, *where = sys.argv[1:] or ["digits"]
    if name not in MODELS or len(where) > 1:
        sys.exit(f"usage: python -m saol_lib.explorer.shipped [NAME [DATA_DIR]], NAME one of {', '.join(MODELS)}")
    make_model(name, *where)
