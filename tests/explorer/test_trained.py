"""The explorer on one's own runs."""

import pytest
import torch

from saol_lib import train
from saol_lib.data import load, mean_and_std
from saol_lib.explorer.trained import explorer_of
from saol_lib.training.config import RunConfig
from saol_lib.training.recipe import load_model


def test_a_run_is_shown_as_it_was_trained(tmp_path):
    shared = {"backbone": "resnet-8-8", "epochs": 1, "train_images": 100, "batch_size": 50, "device": "cpu"}
    runs = [train(RunConfig(arm=arm, **shared), tmp_path / "here", progress=False) for arm in ("gap_fc", "saol")]
    data = load("digits")
    assert explorer_of(runs, tmp_path / "elsewhere", data) is None

    explorer = explorer_of(runs, tmp_path / "here", data)
    lens = explorer.lenses["saol"]
    assert lens.pictures.labels.tolist() == list(range(10)) and lens.classes == data.classes
    image, _ = lens.mixed(explorer.state.scene)
    mean, std = mean_and_std(data.train.images)
    seen = (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    model = load_model(runs[1], tmp_path / "here", "cpu")
    with torch.inference_mode():
        expected = model(seen.float()[None]).saol_log_probs[0].exp()
    assert explorer.numbers["saol"] == pytest.approx(expected.tolist(), abs=1e-5)

    first = data.test.boxes
    several = torch.stack([first, torch.full_like(first, -1)], dim=1)
    with_several = data._replace(test=data.test._replace(boxes=several))
    shown = explorer_of(runs, tmp_path / "here", with_several).lenses["saol"].pictures.boxes
    assert shown.shape == (10, 4) and torch.equal(shown, lens.pictures.boxes)
    without = data._replace(test=data.test._replace(boxes=None))
    assert explorer_of(runs, tmp_path / "here", without).lenses["saol"].pictures.boxes is None

    enlarged = data._replace(train=data.train._replace(side=64), test=data.test._replace(side=64))
    larger = explorer_of(runs, tmp_path / "here", enlarged).lenses["saol"]
    assert larger.size == lens.size == (32, 32), "pictures stay as they are"
    height, width = lens.cells(explorer.state)["shape"]
    assert larger.cells(explorer.state)["shape"] == [2 * height, 2 * width]
