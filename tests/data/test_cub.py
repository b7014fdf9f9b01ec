"""CUB-200-2011 in its own layout, whole and broken."""

import pytest
import torch
from making import picture, sentence

from saol_lib.data import Stream, load

BIRDS = ("001.Albatross", "002.Auklet", "010.Bunting")


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    lists = {name: [] for name in ("classes", "images", "image_class_labels", "train_test_split", "bounding_boxes")}
    number = 0
    for label, bird in enumerate(BIRDS, 1):
        lists["classes"].append(f"{label} {bird}")
        for i in range(3):
            number += 1
            name = f"{bird}/{bird[4:]}_{i:04d}.jpg"
            picture(root / "images" / name, (32, 40), number)
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["train_test_split"].append(f"{number} {int(i > 0)}")
            lists["bounding_boxes"].append(f"{number} 6.0 0.0 {number + 0.5} 16.0")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_labels_splits_and_boxes(cub):
    data = load("cub", str(cub), image_size=28)  # 32 x 40 stays so, cut to 28: 6 off left and right, 2 at the top
    assert data.classes == BIRDS
    assert data.test.labels.tolist() == [0, 1, 2] and data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.path(1).name == "Auklet_0000.jpg" and data.test.path(1).is_file()
    assert data.test.boxes.tolist() == [[0, 0, 1, 13], [0, 0, 4, 13], [0, 0, 7, 13]]  # 1.5, 4.5 and 7.5 wide
    images, labels = next(Stream(data.test, torch.device("cpu")).all(3))
    assert images.shape == (3, 3, 28, 28) and labels.tolist() == [0, 1, 2]
    assert load("cub", str(cub / "CUB_200_2011"), image_size=28).fingerprint == data.fingerprint


def test_fewer_classes(cub):
    data = load("cub", str(cub), image_size=28, classes=2)
    assert data.classes == (BIRDS[0], BIRDS[1]) and data.train.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("file", "old", "new", "parts"),
    [
        ("images", "2 001.Albatross/Albatross_0001.jpg\n", "", ("image 2 is in one only",)),
        ("bounding_boxes", "2 6.0 0.0 2.5 16.0\n", "", ("bounding_boxes.txt", "image 2 is in one only")),
        ("bounding_boxes", "2.5", "-2.5", ("Albatross_0001.jpg", "-2.5 wide")),
        ("bounding_boxes", "2.5", "x", ("Albatross_0001.jpg", "four numbers")),
        ("bounding_boxes", "2.5", "60", ("Albatross_0001.jpg", "not inside its 40 x 32 pixels")),
        ("bounding_boxes", "2.5 16.0", "2.5", ("a line of 4 columns, line 2; expected 5",)),
        ("image_class_labels", "4 2", "4 7", ("image 4 '7'", "expected one of 1, 2, 3")),
        ("train_test_split", "4 0", "4 2", ("image 4 '2'", "expected one of 1, 0")),
        ("train_test_split", "4 0", "4 1", ("class 002.Auklet has no test image",)),
        ("images", "3 001", "2 001", ("number 2 twice",)),
    ],
)
def test_broken_lists_are_named(cub, file, old, new, parts):
    path = cub / "CUB_200_2011" / f"{file}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError) as error:
        load("cub", str(cub), image_size=28)
    sentence(error, *parts)


def test_missing_lists_and_folders(cub):
    with pytest.raises(FileNotFoundError, match=r"give the folder CUB_200_2011"):
        load("cub", str(cub / "CUB_200_2011" / "images"))
    (cub / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_test_split.txt is missing"):
        load("cub", str(cub))


def test_a_damaged_bird(cub, caplog):
    path = cub / "CUB_200_2011" / "images" / BIRDS[0] / "Albatross_0001.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Albatross_0001.jpg cannot be read .* set skip_damaged"):
        load("cub", str(cub), image_size=28)
    data = load("cub", str(cub), image_size=28, skip_damaged=True)
    assert data.train.labels.tolist() == [0, 1, 1, 2, 2] and len(data.train.boxes) == 5
    assert "Albatross_0001.jpg" in caplog.text and data.train.damaged == (str(path),) and data.test.damaged == ()
