"""Tiny-ImageNet and ImageNet in their layouts: labels, boxes, bad input, and a stream that any worker count repeats."""

import numpy as np
import pytest
import torch
from PIL import Image

from saol_lib.data import imagenet
from saol_lib.data.imagenet import Stream, load
from saol_lib.data.small import read_image
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import train

WNIDS = ("n02", "n01", "n04", "n03")  # not sorted, as in the original


def picture(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


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


@pytest.fixture
def large(tmp_path):
    for part, each in (("train", 4), ("val", 2)):
        for number, wnid in enumerate(("n1", "n2")):
            for i in range(each):
                picture(tmp_path / part / wnid / f"{i}.png", (30 + i, 40), 7 * number + i + (part == "val") * 50)
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
        ("val/val_annotations.txt", "\tn01", "", r"a line of 5 columns; expected 6"),
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
    with pytest.raises(ValueError, match=r"n02_1.png (cannot be read|is \(10, 64\) pixels)"):
        load("tiny-imagenet", str(tiny))
    data = load("tiny-imagenet", str(tiny), skip_damaged=True)
    assert len(data.train.labels) == 11 and (data.train.labels == 1).sum() == 2
    assert "1 of 12 images were skipped" in caplog.text and "n02_1.png" in caplog.text


def everything(batches):
    return [torch.cat([part.flatten().float() for part in batch]) for batch in batches]


def test_a_stream_is_the_same_for_any_workers_and_goes_on_anywhere(large):
    files = load("imagenet", str(large), image_size=16).train
    assert files.labels.tolist() == [0] * 4 + [1] * 4
    before = torch.random.get_rng_state()
    alone = everything(Stream(files, torch.device("cpu")).epoch(2, 3, 1))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    helped = everything(Stream(files, torch.device("cpu"), workers=2).epoch(2, 3, 1))
    later = everything(Stream(files, torch.device("cpu")).epoch(2, 3, 1, first=2))
    assert len(alone) == 4 and all(map(torch.equal, alone, helped)) and all(map(torch.equal, alone[2:], later))
    assert not all(map(torch.equal, alone, everything(Stream(files, torch.device("cpu")).epoch(2, 3, 2))))


def test_evaluation_takes_the_middle_in_order(large):
    stream = Stream(load("imagenet", str(large), image_size=16).test, torch.device("cpu"))
    images, labels = next(stream.all(10))
    assert labels.tolist() == [0, 0, 1, 1] and images.shape == (4, 3, 16, 16)
    assert abs(float(images.mean())) < 1.5, "not scaled"


def test_a_damaged_file_in_the_middle_of_a_stream(large, caplog):
    path = large / "train" / "n2" / "1.png"
    path.write_bytes(b"no picture")
    files = load("imagenet", str(large), image_size=16).train
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image .* or set skip_damaged to go on without"):
        list(Stream(files, torch.device("cpu")).epoch(2, 0, 0))
    stream = Stream(files, torch.device("cpu"), skip_damaged=True)
    assert sum(len(labels) for _, labels in stream.epoch(2, 0, 0)) == 8
    assert sum(len(labels) for _, labels in stream.epoch(2, 0, 1)) == 8
    assert {name.rsplit("/", 1)[-1] for name in stream.damaged} == {"1.png"}
    assert caplog.text.count("cannot be read and was skipped, 1 so far") == 1


def test_training_streams_names_what_it_skipped_and_goes_on(large, tmp_path, monkeypatch):
    (large / "train" / "n1" / "2.png").write_bytes(b"no picture")
    values = {"dataset": "imagenet", "data_dir": str(large), "classes": 2, "image_size": 16, "backbone": "resnet-8-8"}
    config = RunConfig(**values, arm="saol_cutmix_ss_sd", epochs=2, batch_size=4, skip_damaged=True)
    run = train(config, tmp_path / "a", progress=False)
    assert run.status == "finished" and run.provenance["damaged"] == ["2.png"]
    again = train(RunConfig(**vars(config) | {"workers": 1}), tmp_path / "b", progress=False)
    assert again.id == run.id and again.metrics == run.metrics and again.epochs == run.epochs
    with pytest.raises(ValueError, match=r"2\.png"):
        train(RunConfig(**vars(config) | {"skip_damaged": False}), tmp_path / "c", progress=False)


def test_the_scaling_is_that_of_torchvisions_weights():
    import torchvision

    preset = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    assert tuple(preset.mean) == imagenet.SCALING[0] and tuple(preset.std) == imagenet.SCALING[1]
