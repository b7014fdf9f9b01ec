"""Pictures by rule, and attention of the networks whose weights are here."""

import pytest
import torch
from IPython.display import Image

from saol_lib import train
from saol_lib.data import load
from saol_lib.evidence import gallery
from saol_lib.training.config import RunConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short run with a SAOL on digits, and one without."""
    home = tmp_path_factory.mktemp("gallery")
    shared = {"backbone": "resnet-8-8", "epochs": 1, "train_images": 100, "batch_size": 50, "device": "cpu"}
    runs = [train(RunConfig(arm=arm, **shared), home, progress=False) for arm in ("gap_fc", "saol")]
    return home, runs, load("digits")


def test_the_first_image_of_each_class_is_taken_in_the_order_of_classes():
    labels = torch.tensor([2, 0, 2, 1, 0])
    assert gallery.first_of_each_class(labels).tolist() == [1, 3, 0]
    assert gallery.first_of_each_class(labels, most=2).tolist() == [1, 3]


def test_a_picture_is_drawn_saved_and_shown_where_the_weights_are_gone(trained, tmp_path):
    home, runs, data = trained
    assert gallery.attentive_here(runs, home) == runs[1:]
    figure = gallery.attention_pictures(runs, home, data, "01_attention")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == list(data.classes[:6])

    saved = tmp_path / "figures" / "01_attention.png"
    assert gallery.attention_pictures(runs, tmp_path, data, "01_attention") == gallery.NO_WEIGHTS
    saved.parent.mkdir()
    saved.write_bytes((home / "figures" / "01_attention.png").read_bytes())
    assert isinstance(gallery.attention_pictures(runs, tmp_path, data, "01_attention"), Image)


def test_the_share_in_the_boxes_is_that_of_every_evaluation_image(trained, tmp_path):
    home, runs, data = trained
    table = gallery.attention_in_boxes(runs, home, data)
    assert table.index.tolist() == ["saol"]
    covered = table["the box covers (%)"]["saol"]
    boxes = data.test.boxes.double()
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    assert covered == pytest.approx(100 * float(sides.prod(dim=1).mean()) / 32**2, abs=0.05)
    assert 0 < table["attention in the box (%)"]["saol"] < 100

    assert gallery.attention_in_boxes(runs, tmp_path, data) == gallery.NO_WEIGHTS
    without = data._replace(test=data.test._replace(boxes=None))
    assert "no boxes" in gallery.attention_in_boxes(runs, home, without)
    assert "no boxes" in gallery.attention_in_boxes(runs, tmp_path, without), "without weights, too"
