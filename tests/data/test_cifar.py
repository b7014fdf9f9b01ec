"""CIFAR: torchvision's files, image trees, and no download where there is anything."""

import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from making import CLASSES, noise, sentence, write_tree
from PIL import Image

from saol_lib import data
from saol_lib.data import load, read_image
from saol_lib.training import RunConfig, train


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_image_tree(tmp_path, suffix):
    dataset = load("cifar10", str(write_tree(tmp_path, suffix=suffix)))
    assert dataset.classes == tuple(CLASSES) and dataset.train.images.shape == (20, 3, 8, 6)
    assert dataset.train.labels.tolist() == [i // 2 for i in range(20)] == dataset.test.labels.tolist()
    if suffix == "png":
        assert torch.equal(dataset.train.images, torch.from_numpy(noise(20, 8, 6, 0)).permute(0, 3, 1, 2))
        assert torch.equal(dataset.test.images, torch.from_numpy(noise(20, 8, 6, 1)).permute(0, 3, 1, 2))


def test_fingerprint_sees_one_pixel_and_one_label(tmp_path):
    before = load("cifar10", str(write_tree(tmp_path))).fingerprint
    path = tmp_path / "test" / "class3" / "006.png"
    pixels = read_image(path).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    data._read.cache_clear()
    assert load("cifar10", str(tmp_path)).fingerprint != before
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    data._read.cache_clear()
    assert load("cifar10", str(tmp_path)).fingerprint == before
    split = load("cifar10", str(tmp_path)).train
    assert data.fingerprint("cifar10", split, split) != data.fingerprint(
        "cifar10", split, split._replace(labels=split.labels.flip(0))
    )


def test_grayscale_becomes_rgb(tmp_path):
    images = load("cifar10", str(write_tree(tmp_path, mode="L"))).train.images
    assert images.shape[1] == 3 and torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_unknown_dataset():
    with pytest.raises(ValueError) as error:
        load("cifar11")
    sentence(error, "'cifar11'", "digits, cifar10, cifar100")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", str(tmp_path / "nowhere"))
    sentence(error, "nowhere", "is not a folder", "cifar10")


def test_wrong_class_folders(tmp_path):
    write_tree(tmp_path, classes=CLASSES[:9])
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "same 10 class folders", "both have 9")
    (tmp_path / "train" / "cat").mkdir(), (tmp_path / "test" / "dog").mkdir()
    Image.fromarray(noise(1, 8, 6)[0]).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "class cat has images in", "train", "none in", "test")


def test_class_folders_without_images(tmp_path):
    for part in ("train", "test"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "train", "no class folder with an image")


def test_different_sizes(tmp_path):
    write_tree(tmp_path)
    Image.fromarray(noise(1, 9, 6)[0]).save(tmp_path / "train" / "class4" / "008.png")
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "008.png", "9", "8", "6")


def test_damaged_image_in_a_tree_and_a_stray_file(tmp_path):
    path = write_tree(tmp_path) / "test" / "class0" / "001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "001.png")
    path.write_text("a note")
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "001.png", "cannot be read as an image")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_data_and_no_network(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(FileNotFoundError) as error:
        load(name, str(tmp_path))
    sentence(error, name, "no route", "train/<class>/*", "data_dir")


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """torchvision's layout with few images of our own and the checksums to match."""
    folder, cls = tmp_path / "cifar-10-batches-py", torchvision.datasets.CIFAR10
    folder.mkdir()
    lists, pixels = {"train_list": [], "test_list": []}, {}
    for kind, name, seed in (
        ("train_list", "data_batch_1", 0),
        ("train_list", "data_batch_2", 1),
        ("test_list", "test_batch", 2),
    ):
        images = noise(30, seed=seed)
        rows = images.transpose(0, 3, 1, 2).reshape(30, -1)
        content = pickle.dumps({"data": rows, "labels": [(i + seed) % 10 for i in range(30)]})
        (folder / name).write_bytes(content)
        lists[kind].append([name, hashlib.md5(content).hexdigest()])
        pixels[name] = images
    meta = pickle.dumps({"label_names": CLASSES})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(cls, "train_list", lists["train_list"])
    monkeypatch.setattr(cls, "test_list", lists["test_list"])
    monkeypatch.setattr(
        cls, "meta", {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    )
    return tmp_path, pixels


def test_torchvision_files(cifar_files):
    root, pixels = cifar_files
    dataset = load("cifar10", str(root))
    expected = np.concatenate([pixels["data_batch_1"], pixels["data_batch_2"]]).transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.train.images.numpy(), expected) and dataset.test.images.shape == (30, 3, 32, 32)
    assert (
        dataset.train.labels[:30].tolist() == [i % 10 for i in range(30)] and dataset.train.labels.dtype == torch.int64
    )
    assert dataset.classes == tuple(CLASSES)


def test_damaged_torchvision_file_is_not_unpickled(cifar_files, monkeypatch):
    root, _ = cifar_files
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(torchvision.datasets.cifar.pickle, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", str(root))
    sentence(error, "cifar-10-batches-py", "corrupted")


# --- a wrong folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """Any download fails the test."""
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", lambda *a, **k: pytest.fail("net"))


def refused(folder, *parts):
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", str(folder))
    sentence(error, "cifar10", *parts)
    assert sorted(folder.rglob("*")) == before


def test_the_batches_folder_itself_serves(cifar_files, offline):
    root, _ = cifar_files
    whole = load("cifar10", str(root)).fingerprint
    assert load("cifar10", str(root / "cifar-10-batches-py")).fingerprint == whole


def test_one_level_too_high_or_too_low_names_the_right_one(cifar_files, offline, tmp_path_factory):
    root, _ = cifar_files
    (root / "cifar-10-batches-py" / "deeper").mkdir()
    (root / "cifar-10-batches-py" / "deeper" / "note.txt").write_text("x")
    refused(root / "cifar-10-batches-py" / "deeper", f"give {root}")
    above = tmp_path_factory.mktemp("above")
    root.rename(above / "mine")
    refused(above, f"give {above / 'mine'}")
    tree = write_tree(tmp_path_factory.mktemp("tree"))
    refused(tree / "train", f"give {tree}")
    refused(tree / "train" / "class0", f"give {tree}")


def test_train_and_val_say_what_to_rename(tmp_path, offline):
    write_tree(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    refused(tmp_path, "rename val to test")


def test_any_other_content_starts_no_download(tmp_path, offline):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    refused(tmp_path, "it has holiday.jpg", "an empty one")


def test_only_an_empty_folder_starts_a_download(tmp_path, monkeypatch):
    asked = []

    def offline(*args, **kwargs):
        asked.append(args)
        raise URLError("no route")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no route"):
        load("cifar10", str(tmp_path))
    assert asked


# --- odd trees -------------------------------------------------------------------------------------------------------


def test_junk_in_a_tree_changes_nothing(tmp_path):
    whole = load("cifar10", str(write_tree(tmp_path))).fingerprint
    (tmp_path / "train" / "class3" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "class3" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "test" / "new folder").mkdir()
    data._read.cache_clear()
    assert load("cifar10", str(tmp_path)).fingerprint == whole


def test_damaged_images_of_a_tree_may_be_skipped(tmp_path, caplog):
    write_tree(tmp_path)
    (tmp_path / "train" / "class0" / "000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000.png"):
        load("cifar10", str(tmp_path))
    dataset = load("cifar10", str(tmp_path), skip_damaged=True)
    assert dataset.train.labels.tolist() == [0] + [i // 2 for i in range(2, 20)] and len(dataset.train.images) == 19
    assert "1 of 20 images were skipped" in caplog.text

    config = RunConfig(
        dataset="cifar10",
        data_dir=str(tmp_path),
        skip_damaged=True,
        backbone="resnet-8-8",
        batch_size=4,
        epochs=1,
    )
    run = train(config, tmp_path / "results", progress=False)
    assert run.provenance["damaged"] == ["000.png"]  # as of a stream
