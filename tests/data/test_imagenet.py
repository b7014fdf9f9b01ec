"""ImageNet's layouts: labels, boxes from XML and texts, and what is not as it should be."""

import pytest
import torch
from making import picture, sentence

from saol_lib.data import Files, load, select

BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for part, each in (("train", 4), ("val", 2)):
        for number, wnid in enumerate(("n1", "n2", "n3")):
            for i in range(each):
                picture(root / part / wnid / f"{part}_{wnid}_{i}.JPEG", (32, 48), 7 * number + i)
    return root


def annotate(root, folder, nested=True):
    """One box for even images, two for odd ones."""
    for path in sorted((root / "val").glob("*/*.JPEG")):
        place = folder / path.parent.name if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        things = BOX.format(path.parent.name, 8, 0, 23, 15)
        if path.stem.endswith("1"):
            things += BOX.format(path.parent.name, 24, 16, 39, 31)
        size = "<size><width>48</width><height>32</height></size>"
        (place / f"{path.stem}.xml").write_text(f"<annotation>{size}{things}</annotation>")


EXPECTED = [[[0, 0, 13, 13], [-1] * 4], [[0, 0, 13, 13], [14, 14, 27, 27]]] * 3  # 32 x 48 becomes 32 x 48, cut to 28


@pytest.mark.parametrize("where", ["beside", "own folder", "ILSVRC", "ILSVRC, nested"])
def test_boxes_from_xml_wherever_it_lies(tree, where):
    places = {"beside": tree / "val", "own folder": tree / "Annotations" / "val"}
    folder = places.get(where, tree.parent.parent / "Annotations" / "CLS-LOC" / "val")
    annotate(tree, folder, nested=where != "ILSVRC")
    data = load("imagenet", str(tree), image_size=28)
    assert data.test.boxes.tolist() == EXPECTED and data.train.boxes is None
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(data.train.labels) == 12
    part = data.test.subset(torch.tensor([3, 0]))
    assert part.boxes.tolist() == [EXPECTED[3], EXPECTED[0]] and part.path(0) == data.test.path(3)
    assert part.pictures(torch.tensor([0, 1])).shape == (2, 3, 28, 28)


def test_boxes_from_wsolevaluations_texts(tree):
    folder = tree / "metadata" / "ILSVRC" / "test"
    folder.mkdir(parents=True)
    names = [f"val/{path.name}" for path in sorted((tree / "val").glob("*/*.JPEG"))]
    (folder / "image_sizes.txt").write_text("".join(f"{name},48,32\n" for name in names))
    lines = [f"{name},8,0,23,15\n" for name in names] + [f"{name},24,16,39,31\n" for name in names[1::2]]
    (folder / "localization.txt").write_text("".join(lines))
    assert load("imagenet", str(tree), image_size=28).test.boxes.tolist() == EXPECTED


def test_without_annotations_there_are_no_boxes(tree):
    data = load("imagenet", str(tree), image_size=28)
    assert data.test.boxes is None and isinstance(data.test, Files)


def test_a_forgotten_annotation_is_named(tree):
    annotate(tree, tree / "val")
    (tree / "val" / "n2" / "val_n2_1.xml").unlink()
    with pytest.raises(ValueError) as error:
        load("imagenet", str(tree), image_size=28)
    sentence(error, "val_n2_1.JPEG has no boxes", "0 others of the 6")


def test_boxes_are_part_of_the_fingerprint(tree):
    annotate(tree, tree / "val")
    before = load("imagenet", str(tree), image_size=28).fingerprint
    path = tree / "val" / "n2" / "val_n2_1.xml"
    path.write_text(path.read_text().replace("24", "25"))
    assert load("imagenet", str(tree), image_size=28, classes=3).fingerprint != before  # read anew


def test_held_out_files(tree):
    data = load("imagenet", str(tree), image_size=28)
    train, aside = select(data, "held_out", None, 3)
    names = set(train.names.tolist()) | set(aside.names.tolist())
    assert len(aside.labels) == 3 and len(train.labels) == 9 and names == set(data.train.names.tolist())


def test_no_val_folder(tree):
    (tree / "val").rename(tree / "validation")
    with pytest.raises(FileNotFoundError) as error:
        load("imagenet", str(tree))
    sentence(error, "there is no val/", "data_dir")
