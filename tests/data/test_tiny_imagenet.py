"""Tiny-ImageNet in its layout: labels, boxes, bad input."""

import pytest
import torch
from making import picture

from saol_lib.data import load, read_image

WNIDS = ("n02", "n01", "n04", "n03")  # not sorted, as in the original


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    (tmp_path / "words.txt").write_text("n01\ttench, Tinca tinca\nn02\tgoldfish\n")
    for number, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{i}.png" for i in range(3)]
        for i, name in enumerate(names):
            picture(tmp_path / "train" / wnid / "images" / name, (64, 64), 10 * number + i)
        boxes = [f"{name}\t{i}\t{number}\t63\t{number}" for i, name in enumerate(names)]  # one pixel high
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(boxes))
        picture(tmp_path / "val" / "images" / f"val_{number}.png", (64, 64), 100 + number)
    lines = [f"val_{number}.png\t{wnid}\t0\t0\t62\t{number}" for number, wnid in enumerate(WNIDS)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_labels_number_the_sorted_names_and_boxes_stay_inclusive(tiny):
    data = load("tiny-imagenet", str(tiny))
    assert data.classes == ("tench", "goldfish", "n03", "n04")
    assert data.train.images.shape == (12, 3, 64, 64) and data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert data.train.boxes[0].tolist() == [0, 1, 63, 1]  # n01 is listed second: its boxes are in row 1
    assert data.test.labels.tolist() == [1, 0, 3, 2] and data.test.boxes[3].tolist() == [0, 0, 62, 3]
    first = read_image(tiny / "train" / "n01" / "images" / "n01_0.png")
    assert torch.equal(data.train.images[0].permute(1, 2, 0), torch.from_numpy(first))


def test_classes_are_evenly_spaced_in_the_sorted_list(tiny):
    data = load("tiny-imagenet", str(tiny), classes=2)
    assert data.classes == ("tench", "n03") and data.test.labels.tolist() == [0, 1]
    assert data.fingerprint != load("tiny-imagenet", str(tiny)).fingerprint
    with pytest.raises(ValueError, match=r"classes=5 cannot be chosen from the 4 classes"):
        load("tiny-imagenet", str(tiny), classes=5)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("train/n01/n01_boxes.txt", "n01_1.png", "gone.png", r"n01_1.png has no box"),
        ("train/n01/n01_boxes.txt", "\t63\t", "\t64\t", r"box \(0, 1, 64, 1\), which is not inside its 64 x 64 pixels"),
        ("train/n01/n01_boxes.txt", "\t63\t", "\tx\t", r"expected four whole numbers"),
        ("val/val_annotations.txt", "n01", "n09", r"gives val_1.png the class n09, which wnids.txt does not have"),
        ("val/val_annotations.txt", "\tn01", "", r"a line of 5 columns, line 2; expected 6, tabs"),
        ("val/val_annotations.txt", "n01", "n02", r"class n01 has no image"),
    ],
)
def test_bad_annotations_are_named(tiny, file, old, new, message):
    path = tiny / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load("tiny-imagenet", str(tiny))


def test_a_folder_of_several_data_sets_serves(tiny):
    (tiny / "tiny-imagenet-200").mkdir()
    for name in ("wnids.txt", "train", "val"):
        (tiny / name).rename(tiny / "tiny-imagenet-200" / name)
    assert len(load("tiny-imagenet", str(tiny)).train.labels) == 12


def test_a_class_without_images_and_missing_files(tiny):
    for path in (tiny / "train" / "n03" / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"n03.images has no images; put them back or leave the class out"):
        load("tiny-imagenet", str(tiny))
    (tiny / "wnids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no wnids.txt; give the folder tiny-imagenet-200 as data_dir"):
        load("tiny-imagenet", str(tiny))
    with pytest.raises(FileNotFoundError, match=r"data_dir=None; give the folder with its original layout"):
        load("imagenet")


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_a_damaged_image_stops_unless_it_may_be_skipped(tiny, damage, caplog):
    path = tiny / "train" / "n02" / "images" / "n02_1.png"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        picture(path, (10, 64), 0)
    with pytest.raises(ValueError, match=r"n02_1.png (cannot be read|is 10 pixels high and 64 wide)"):
        load("tiny-imagenet", str(tiny))
    data = load("tiny-imagenet", str(tiny), skip_damaged=True)
    assert len(data.train.labels) == 11 and (data.train.labels == 1).sum() == 2
    assert "1 of 12 images were skipped" in caplog.text and "n02_1.png" in caplog.text
    assert data.train.damaged == (str(path),)
