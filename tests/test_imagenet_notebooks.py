"""Notebooks 02 and 03 on a miniature of ImageNet's own layout: files, streamed, with several boxes an image in XML."""

import json

import numpy as np
import pytest
import run as notebooks
from gate import NOTEBOOKS
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """12 training and 4 validation images a class, 80 x 96 pixels, a bright object each; boxes beside the latter."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, wnid in enumerate(CLASSES):
            for number in range(count):
                pixels = generator.integers(0, 90, (80, 96, 3), dtype=np.uint8)
                pixels[20:60, 30:70, label] = 250
                path = root / part / wnid / f"{wnid}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                if part == "val":
                    boxes = OBJECT.format(wnid, 31, 21, 70, 60) + OBJECT.format(wnid, 40, 30, 60, 50)
                    size = "<size><width>96</width><height>80</height><depth>3</depth></size>"
                    path.with_suffix(".xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    return root


@pytest.mark.faults
def test_imagenet_goes_through_fine_tuning_and_localisation_to_the_end(tree, tmp_path):
    parameters = {
        "profile": "mini",
        "results": str(tmp_path / "results"),
        "dataset": "imagenet",
        "data_dir": str(tree),
        "image_size": 64,
        "classes": 3,
        "batch_size": 8,
        "trained": {"epochs": 1},
        "arms": ["gap_fc_cutmix", {"arm": "saol_cutmix_ss_sd", "mask_source": "attention"}, "abn_cutmix"],
    }
    for name, more in (("02_imagenet_finetuning", {}), ("03_localization", {"images": None, "thresholds": 10})):
        output = tmp_path / "results" / f"{name}.ipynb"
        failure = notebooks.run(NOTEBOOKS / f"{name}.ipynb", parameters | more, output)
        assert failure is None, failure
        assert str(tree) not in output.read_text()

    measures = [json.loads(path.read_text()) for path in (tmp_path / "results/measures").glob("*.json")]
    methods = {measure["config"]["method"] for measure in measures}
    assert methods >= {"saol", "saol_log", "cam", "abn", "whole image", "best centred box"}
    drawn = {path.stem for path in (tmp_path / "results/figures").glob("*.png")}
    assert drawn >= {"02_effects", "02_attention", "02_explorer"}
    assert {path.stem for path in (tmp_path / "results/figures").glob("*.svg")} >= {"03_curves", "03_gallery"}
