"""Data: the embedded digits, CIFAR files and image trees, fixed splits, augmentation against literal loops, streams."""

import copy
import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from saol_lib.data import small as data
from saol_lib.data.small import Batches, Split, balanced, load, mean_and_std, read_image, select
from saol_lib.streams import stream, stream_seed

CLASSES = [f"class{i}" for i in range(10)]


def noise(count, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_tree(root, each=2, classes=CLASSES, mode="RGB", suffix="png"):
    for part, seed in (("train", 0), ("test", 1)):
        pixels = noise(each * len(classes), 8, 6, seed)
        for i, image in enumerate(pixels):
            folder = root / part / classes[i // each]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert(mode).save(folder / f"{i:03d}.{suffix}")
    return root


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_the_same_bytes_everywhere():
    assert load("digits").fingerprint == "3477ca4101dcfb36"


def test_digits_shapes_and_balance():
    dataset = load("digits")
    for split, count in ((dataset.train, 3000), (dataset.test, 1000)):
        assert split.images.shape == (count, 3, 32, 32) and split.images.dtype == torch.uint8
        counts = split.labels.bincount(minlength=10)
        assert len(counts) == 10 and counts.min() > 0.08 * count and counts.max() < 0.12 * count
    assert dataset.classes == tuple("0123456789")


def test_train_and_test_come_from_different_digits(monkeypatch):
    used = {False: set(), True: set()}
    scene = data._digit_scene

    def spy(ink, pick, pool, rng, size):
        used[bool(pool.min())] |= {pick, *pool}  # the digit itself, and where fragments are taken from
        return scene(ink, pick, pool, rng, size)

    monkeypatch.setattr(data, "_digit_scene", spy)
    data.digit_scenes(60, test=False), data.digit_scenes(60, test=True)
    assert used[True] and used[False] and not used[True] & used[False]
    pixels = load_digits().images.reshape(1797, -1)
    same = (pixels[sorted(used[True])][:, None] == pixels[sorted(used[False])][None]).all(-1)
    assert not same.any()  # no digit of the one is a copy of one of the other


def test_labels_are_those_of_the_digits_drawn(monkeypatch):
    picks = []
    scene = data._digit_scene
    monkeypatch.setattr(data, "_digit_scene", lambda ink, pick, *rest: (picks.append(pick), scene(ink, pick, *rest))[1])
    split = data.digit_scenes(80)
    assert split.labels.tolist() == load_digits().target[picks].tolist()


def test_boxes_are_exact_and_inside(monkeypatch):
    """The box is the smallest one around the pixels that the digit covers by more than a quarter, and is drawn last."""
    draw, boxes, drawn = data._draw, [], []

    def spy(canvas, ink, extent, rng):
        black, white = np.zeros_like(canvas), np.ones_like(canvas)
        for plain in (black, white):
            draw(plain, ink, extent, copy.deepcopy(rng))
        drawn.append(ink.size)
        if ink.size == (8, 8):  # the digit, not a fragment
            visible = 1 - (white - black).mean(axis=2) > 0.25
            rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
            boxes.append([columns.min(), rows.min(), columns.max(), rows.max()])
        return draw(canvas, ink, extent, rng)

    monkeypatch.setattr(data, "_draw", spy)
    split = data.digit_scenes(100)
    assert split.boxes.tolist() == boxes
    assert drawn == ([(4, 4)] * 4 + [(8, 8)]) * 100
    x0, y0, x1, y1 = split.boxes.T
    assert (x0 >= 0).all() and (x0 < x1).all() and (x1 < 32).all()
    assert (y0 >= 0).all() and (y0 < y1).all() and (y1 < 32).all()


def test_another_seed_gives_other_scenes():
    assert not torch.equal(data.digit_scenes(20, seed=0).images, data.digit_scenes(20, seed=1).images)
    assert torch.equal(data.digit_scenes(20, seed=1).images, data.digit_scenes(20, seed=1).images)


# --- files -----------------------------------------------------------------------------------------------------------


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
    data.load.cache_clear()
    assert load("cifar10", str(tmp_path)).fingerprint != before
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    data.load.cache_clear()
    assert load("cifar10", str(tmp_path)).fingerprint == before
    split = load("cifar10", str(tmp_path)).train
    assert data._fingerprint(split) != data._fingerprint(split._replace(labels=split.labels.flip(0)))


def test_grayscale_becomes_rgb(tmp_path):
    images = load("cifar10", str(write_tree(tmp_path, mode="L"))).train.images
    assert images.shape[1] == 3 and torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and all(part in text for part in parts), text


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
    sentence(error, "same 10 class folders", "train has 9, test 9")
    (tmp_path / "train" / "cat").mkdir(), (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "2 are in one only")


def test_class_folders_without_images(tmp_path):
    for part in ("train", "test"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "train", "no image")


def test_different_sizes(tmp_path):
    write_tree(tmp_path)
    Image.fromarray(noise(1, 9, 6)[0]).save(tmp_path / "train" / "class4" / "008.png")
    with pytest.raises(ValueError) as error:
        load("cifar10", str(tmp_path))
    sentence(error, "008.png", "9", "8", "6")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_image_is_named(tmp_path, suffix, share):
    """Wherever the file ends: never another picture, never another error."""
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(1)[0]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError) as error:
        read_image(path)
    sentence(error, path.name, "cannot be read as an image")


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


# --- splits ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(3, 9), min_size=2, max_size=5), st.integers(1, 3), st.integers(0, 99))
def test_balanced(sizes, each, seed):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=stream(seed, "test"))]
    index = balanced(labels, each * len(sizes), stream(seed, "x"))
    assert labels[index].bincount().tolist() == [each] * len(sizes)
    assert torch.equal(index, index.unique())  # in order, none twice


@pytest.mark.parametrize("count", [0, 7, 40])
def test_balanced_refuses(count):
    with pytest.raises(ValueError) as error:
        balanced(torch.arange(20) % 5, count, stream(0, "x"))
    sentence(error, str(count), "5 classes", "4")


def numbered(count=400):
    """A data set whose images tell their own number; 10 classes."""
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    train = Split((images % 256).to(torch.uint8), torch.arange(count) % 10, torch.arange(count)[:, None].expand(-1, 4))
    return data.Dataset(train, train.subset(torch.arange(20)), tuple(CLASSES), "")


def test_held_out_is_fixed_balanced_and_never_trained_on():
    dataset = numbered()
    train, aside = select(dataset, "held_out", None, 100)
    trained, held = set(train.boxes[:, 0].tolist()), set(aside.boxes[:, 0].tolist())
    assert not trained & held and trained | held == set(range(400))
    assert aside.labels.bincount().tolist() == [10] * 10
    torch.manual_seed(99)
    part, again = select(dataset, "held_out", 200, 100)
    assert torch.equal(again.images, aside.images)  # whatever else is asked for, and whatever the global seed
    assert set(part.boxes[:, 0].tolist()) < trained and part.labels.bincount().tolist() == [20] * 10


def test_test_split_is_untouched():
    dataset = numbered()
    train, evaluation = select(dataset, "test", None, 100)
    assert train is dataset.train and evaluation is dataset.test
    small, _ = select(dataset, "test", 50, 100)
    assert small.labels.bincount().tolist() == [5] * 10 and torch.equal(small.labels, small.boxes[:, 0] % 10)


# --- augmentation ----------------------------------------------------------------------------------------------------


def make_batches(images, pad=0, flip=False):
    """Labels are the images' numbers."""
    mean, std = mean_and_std(images)
    return Batches(Split(images, torch.arange(len(images))), torch.device("cpu"), mean, std, pad, flip)


def random_images(count, height, width, seed=0):
    return torch.from_numpy(noise(count, height, width, seed)).permute(0, 3, 1, 2).contiguous()


def literal_crops(image, pad, flip):
    """Every crop of one image (3, H, W) reflected by `pad`, by name (row, column, mirrored)."""
    wide = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    height, width = image.shape[1:]
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = wide[:, row : row + height, column : column + width]
            yield (row, column, False), crop
            if flip:
                yield (row, column, True), crop[:, :, ::-1]


@pytest.mark.parametrize(
    ("height", "width", "pad", "flip"), [(9, 9, 3, True), (8, 12, 2, True), (11, 7, 4, False), (6, 6, 0, True)]
)
def test_augmentation_is_a_crop_of_the_reflected_image(height, width, pad, flip):
    images = random_images(120, height, width)
    seen = set()
    for batch, labels in make_batches(images, pad, flip).epoch(30, seed=0, epoch=0):
        assert batch.shape == (30, 3, height, width) and batch.dtype == torch.uint8
        for image, number in zip(batch.numpy(), labels.tolist(), strict=True):
            how = [name for name, crop in literal_crops(images[number], pad, flip) if np.array_equal(crop, image)]
            assert len(how) == 1, "the picture is no crop of its source"
            seen |= set(how)
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(2 * pad + 1))
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if flip else {False})


def test_crops_and_flips_are_even():
    images = random_images(3000, 4, 4)
    counts, mirrored = np.zeros((3, 3)), 0
    for batch, labels in make_batches(images, 1, True).epoch(3000, 0, 0):
        for image, number in zip(batch.numpy(), labels.tolist(), strict=True):
            for (row, column, flip), crop in literal_crops(images[number], 1, True):
                if np.array_equal(crop, image):
                    counts[row, column] += 1
                    mirrored += flip
    assert counts.sum() == 3000 and counts.min() > 333 - 90 and counts.max() < 333 + 90  # five deviations
    assert abs(mirrored - 1500) < 140


def numbers(batches, size, seed, epoch):
    return torch.cat([labels for _, labels in batches.epoch(size, seed, epoch)]).tolist()


def test_an_epoch_visits_every_image_once_and_drops_the_rest():
    batches = make_batches(random_images(103, 4, 4))
    assert sorted(numbers(batches, 103, 0, 0)) == list(range(103))
    visited = numbers(batches, 10, 0, 0)
    assert len(visited) == len(set(visited)) == 100


def test_streams_of_epochs_and_seeds():
    images = random_images(64, 5, 5)

    def epoch(seed, number):
        return torch.cat([batch for batch, _ in make_batches(images, 1, True).epoch(16, seed, number)])

    torch.manual_seed(1)
    first = epoch(0, 3)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(first, epoch(0, 3))  # whatever the global generator does
    assert not torch.equal(first, epoch(0, 4)) and not torch.equal(first, epoch(1, 3))
    images = images[:1].expand(64, -1, -1, -1).contiguous()  # now it is the crops alone that can differ
    assert torch.equal(epoch(0, 3), epoch(0, 3))
    assert not torch.equal(epoch(0, 3), epoch(0, 4)) and not torch.equal(epoch(0, 3), epoch(1, 3))


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["order", "augment", "cutmix"]), st.integers(0, 9))
def test_stream_seeds_never_meet(seed, other, name, epoch):
    assert stream_seed(seed, name, epoch) == stream_seed(seed, name, epoch) < 2**63
    assert (stream_seed(seed, name, epoch) == stream_seed(other, name, epoch)) == (seed == other)
    assert stream_seed(seed, name, epoch) != stream_seed(seed, name, epoch, 0)
    assert stream_seed(seed, "order", epoch) != stream_seed(seed, "augment", epoch)


def test_all_keeps_the_order_and_leaves_the_padding_out():
    images = random_images(25, 6, 5)
    batches = make_batches(images, pad=2, flip=True)
    whole = torch.cat([batch for batch, _ in batches.all(10)])
    assert torch.cat([labels for _, labels in batches.all(10)]).tolist() == list(range(25))
    assert torch.equal(whole, batches.normalise(images))


@given(st.integers(0, 99))
def test_normalised_images_have_mean_0_and_deviation_1(seed):
    shade = torch.tensor([30, 100, 220]).view(1, 3, 1, 1)
    images = (random_images(40, 6, 6, seed) // 8 + shade).to(torch.uint8)
    whole = make_batches(images).normalise(images)
    assert whole.dtype == torch.float32 and whole.is_contiguous(memory_format=torch.channels_last)
    assert whole.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (whole.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_mean_and_std_in_double():
    images = random_images(30, 6, 7)
    mean, std = mean_and_std(images)
    exact = images.double() / 255
    torch.testing.assert_close(mean, exact.mean(dim=(0, 2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, exact.std(dim=(0, 2, 3), correction=0), rtol=0, atol=1e-12)


def test_padding_wider_than_the_image():
    with pytest.raises(ValueError) as error:
        make_batches(random_images(4, 6, 5), pad=5)
    sentence(error, "pad=5")
