"""Where trained networks look: pictures chosen by rule, their attention, and how much of it lies in the boxes."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor

from saol_lib.data import Dataset, Files, Split, select
from saol_lib.evidence.figures import NO_WEIGHTS, attention_grid, kept
from saol_lib.evidence.located import with_weights
from saol_lib.localization import area_share, mass_inside
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run

MOST = 10_000  # images on which `attention_in_boxes` measures every network, on a CPU


def evaluated_on(config: RunConfig, dataset: Dataset) -> Split | Files:
    """The images that a run of this configuration is evaluated on."""
    _, evaluation = select(dataset, config.eval_split, config.train_images, config.held_out)
    return evaluation


def first_of_each_class(labels: Tensor, most: int = 6) -> Tensor:
    """The rule for pictures: the index of the first image of each of the first `most` classes."""
    firsts = []
    for label in labels.unique()[:most]:
        places = (labels == label).nonzero()[:, 0]
        firsts.append(places[0])
    return torch.stack(firsts)


def attentive_here(runs: Sequence[Run], results: str | Path) -> list[Run]:
    """The runs with a SAOL whose weights lie beside them, as checkpoints."""
    return [run for run in with_weights(runs, results) if "saol" in ARMS[run.config["arm"]].heads]


def attention_pictures(
    runs: Sequence[Run], results: str | Path, dataset: Dataset, name: str, of: str | None = None
) -> Figure | Image | str:
    """Attention of the first network that is here over `first_of_each_class`, saved as the figure `name`.

    Without weights the figure that was saved before; without that a sentence. of: see `figures.save`.
    """
    here = attentive_here(runs, results)
    figure = _attention(here[0], results, dataset) if here else None
    return kept(figure, results, name, of)


def _attention(run: Run, results: str | Path, dataset: Dataset) -> Figure:
    config = RunConfig.of(**run.config)
    evaluation = evaluated_on(config, dataset)
    _, pixels = batches(config, dataset, torch.device("cpu"))
    index = first_of_each_class(evaluation.labels)
    images = evaluation.pictures(index)
    model = load_model(run, results, "cpu")
    with torch.inference_mode():
        outputs = model(pixels.normalise(images))

    boxes = None if evaluation.boxes is None else evaluation.boxes[index]
    titles = [dataset.classes[label] for label in evaluation.labels[index]]
    return attention_grid(images, outputs.attention, boxes, titles)


def attention_in_boxes(runs: Sequence[Run], results: str | Path, dataset: Dataset) -> pd.DataFrame | str:
    """A row an arm, means over its seeds: the share of the attention in the true box, and of the image that it covers.

    Both in percent, with the shares of each seed; a sentence where there are no boxes, or no weights.
    """
    evaluation = evaluated_on(RunConfig.of(**runs[0].config), dataset)
    if evaluation.boxes is None:
        return "*These images have no boxes.*"
    here = attentive_here(runs, results)
    if not here:
        return NO_WEIGHTS
    if len(evaluation.labels) > MOST:
        return "*These are too many images to measure all networks on here: notebook 03 does that.*"

    rows = [_share_in_boxes(run, results, dataset, evaluation) for run in here]
    table = pd.DataFrame(rows, columns=["arm", "seed", "inside", "covered"])
    told = table.groupby("arm", sort=False).agg(
        **{
            "attention in the box (%)": ("inside", "mean"),
            "the box covers (%)": ("covered", "mean"),
            "each seed": ("inside", lambda values: ", ".join(f"{value:.0f}" for value in values)),
        }
    )
    return told.round(1)


def _share_in_boxes(run: Run, results: str | Path, dataset: Dataset, evaluation: Split) -> tuple:
    _, pixels = batches(RunConfig.of(**run.config), dataset, torch.device("cpu"))
    model = load_model(run, results, "cpu")
    with torch.inference_mode():
        maps = torch.cat([model(part).attention for part, _ in pixels.all(250)])
    boxes = evaluation.boxes[pixels.kept]
    inside = mass_inside(maps, boxes, evaluation.source_size).mean()
    covered = area_share(boxes, evaluation.source_size).mean()
    return run.config["arm"], run.config["seed"], 100 * float(inside), 100 * float(covered)
