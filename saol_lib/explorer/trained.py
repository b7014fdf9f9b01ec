"""The explorer on the networks of one's own runs."""

from collections.abc import Sequence
from pathlib import Path

import torch

from saol_lib.data import Dataset
from saol_lib.evidence.gallery import attentive_here, evaluated_on, first_of_each_class
from saol_lib.explorer.lens import Lens
from saol_lib.explorer.pictures import Pictures
from saol_lib.explorer.widget import AttentionExplorer
from saol_lib.training.config import RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run

PICTURES = 30  # of as many classes


def explorer_of(runs: Sequence[Run], results: str | Path, dataset: Dataset) -> AttentionExplorer | None:
    """The explorer on the first attentive network that is here, with an evaluation image of each class; else None.

    The network sees the pictures as in training, enlarged and scaled alike. Of several boxes an image the first counts.
    """
    here = attentive_here(runs, results)
    if not here:
        return None
    config = RunConfig.of(**here[0].config)
    evaluation = evaluated_on(config, dataset)
    _, pixels = batches(config, dataset, torch.device("cpu"))
    index = first_of_each_class(evaluation.labels, most=PICTURES)
    boxes = None
    if evaluation.boxes is not None:
        boxes = evaluation.boxes[index].view(len(index), -1, 4)[:, 0]

    pictures = Pictures(evaluation.pictures(index), evaluation.labels[index], boxes)
    model = load_model(here[0], results, "cpu")
    lens = Lens(model, pictures, dataset.classes, scaling=pixels.normalise)
    return AttentionExplorer.of({here[0].config["arm"]: lens})
