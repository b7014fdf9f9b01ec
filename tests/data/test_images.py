"""The one reader of images: every mode, every odd file."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from making import noise, sentence
from PIL import Image

from saol_lib.data import read_image
from saol_lib.data.images import MOST_PIXELS, class_folders, image_names, read_images, read_table, read_text

GREY = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)


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


# --- modes -----------------------------------------------------------------------------------------------------------


def read_back(tmp_path, image, suffix="png", **options):
    path = tmp_path / f"0.{suffix}"
    image.save(path, **options)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    """0 to 65535 become 0 to 255; it was pure white from 256 on."""
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(read_back(tmp_path, deep, suffix), np.stack([GREY] * 3, axis=2))


def test_grey_with_transparency_palettes_and_one_bit(tmp_path):
    half = Image.fromarray(np.full((16, 16), 128, dtype=np.uint8))
    faint = Image.merge("LA", (Image.fromarray(GREY), half))
    on_white = np.round(GREY * (128 / 255) + 255 * (127 / 255))
    assert np.abs(read_back(tmp_path, faint)[:, :, 0] - on_white).max() <= 1
    assert np.array_equal(read_back(tmp_path, Image.fromarray(GREY).convert("P"))[:, :, 1], GREY)
    assert set(np.unique(read_back(tmp_path, Image.fromarray(GREY > 99)))) == {0, 255}


def test_what_is_transparent_lies_on_white(tmp_path):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, 8:, 3] = 255  # black: transparent on the left
    seen = read_back(tmp_path, Image.fromarray(pixels))
    assert (seen[:, :8] == 255).all() and (seen[:, 8:] == 0).all()
    palette = Image.fromarray(pixels[:, :, 3]).convert("P")
    seen = read_back(tmp_path, palette, "gif", transparency=0)
    assert (seen == 255).all()  # 0 is transparent, 255 white


def test_cmyk(tmp_path):
    image = Image.fromarray(np.full((16, 16, 3), (200, 60, 20), dtype=np.uint8)).convert("CMYK")
    seen = read_back(tmp_path, image, "jpg", quality=100)
    assert np.abs(seen.astype(int) - (200, 60, 20)).max() < 12


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_of_unknown_range_are_refused(tmp_path, mode):
    path = tmp_path / "0.tif"
    Image.fromarray(GREY).convert(mode).save(path)
    with pytest.raises(ValueError) as error:
        read_image(path)
    sentence(error, "0.tif", f"mode {mode}", "8 or 16 bits")


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image = Image.fromarray(noise(1, 8, 12)[0])
    seen = read_back(tmp_path, image, exif=exif)
    assert np.array_equal(seen, np.rot90(np.asarray(image), -1))


def huge_png(path, width, height):
    """A picture of one colour whose header is all there is to it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


@pytest.mark.parametrize("size", [(15000, 13000), (10000, 9000)])  # 195 and 90 megapixels
def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, size):
    path = tmp_path / "huge.png"
    huge_png(path, *size)
    assert size[0] * size[1] > MOST_PIXELS
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError) as error:
        read_image(path)
    sentence(error, "huge.png", "too large a picture", "make it smaller")


# --- many images -----------------------------------------------------------------------------------------------------


def test_odd_sizes_and_damaged_files_are_named_or_skipped(tmp_path, caplog):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(1, 4 if i else 5, 6, i)[0]).save(path)
    paths[3].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0.png is 5 pixels high and 6 wide; expected 4 and 6"):
        read_images(paths, None, False)  # the first is the odd one
    images, kept, skipped = read_images(paths, None, True)
    assert skipped == (str(paths[0]), str(paths[3]))
    assert kept.tolist() == [1, 2, 4] and images.shape == (3, 3, 4, 6)
    assert torch.equal(images[1].permute(1, 2, 0), torch.from_numpy(noise(1, 4, 6, 2)[0]))
    assert "2 of 5 images were skipped" in caplog.text
    with pytest.raises(ValueError, match=r"3.png"):
        read_images(paths[3:4], None, True)  # nothing is left


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two pictures and everything that systems and programs leave beside them."""
    folder = tmp_path / "cat"
    folder.mkdir()
    for name in ("b.png", "a.JPG"):
        Image.fromarray(noise(1, 8, 8)[0]).save(folder / name)
    for name in ("Thumbs.db", ".DS_Store", "._a.JPG", "desktop.ini", "notes.txt", "a.xml", "odd", "x.ipynb"):
        (folder / name).write_bytes(b"\0\1no picture")
    checkpoints = folder / ".ipynb_checkpoints"
    checkpoints.mkdir()
    Image.fromarray(noise(1, 8, 8)[0]).save(checkpoints / "b-checkpoint.png")
    (folder / "empty").mkdir()
    return folder


def test_junk_is_left_out(folder):
    assert image_names(folder) == ["a.JPG", "b.png"]
    assert image_names(folder / "nowhere") == []


def test_an_image_by_another_name_is_one(folder):
    (folder / "b.png").rename(folder / "0001")
    assert image_names(folder) == ["0001", "a.JPG"]


def test_links_to_nothing_are_named(folder, caplog):
    (folder / "c.png").symlink_to(folder / "b.png")
    assert image_names(folder) == ["a.JPG", "b.png", "c.png"]
    (folder / "d.png").symlink_to(folder / "gone.png")
    with pytest.raises(ValueError) as error:
        image_names(folder)
    sentence(error, "d.png", "gone.png", "mend or remove")
    assert image_names(folder, skip_damaged=True) == ["a.JPG", "b.png", "c.png"] and "d.png" in caplog.text


def test_images_in_a_folder_inside_are_named(folder):
    Image.fromarray(noise(1, 8, 8)[0]).save(folder / "empty" / "e.png")
    with pytest.raises(ValueError) as error:
        image_names(folder)
    sentence(error, "empty has images", "e.png", "move them up")


def two_parts(root, names=("ant", "bee", "cat")):
    for part in ("train", "val"):
        for name in names:
            (root / part / name).mkdir(parents=True)
            Image.fromarray(noise(1, 8, 8)[0]).save(root / part / name / "0.png")
    return root


def test_folders_without_images_are_no_classes(tmp_path):
    root = two_parts(tmp_path)
    for name in ("New folder", ".ipynb_checkpoints", "__MACOSX"):
        (root / "train" / name).mkdir()
    (root / "val" / "aardvark").mkdir()
    (root / "val" / "aardvark" / "Thumbs.db").write_bytes(b"x")
    found = class_folders(root, ("train", "val"))
    assert list(found["train"]) == list(found["val"]) == ["ant", "bee", "cat"]
    assert found["val"]["bee"] == ["0.png"]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_class_in_one_part_only_is_named(tmp_path, part, emptied):
    """Left out, its images would be dropped and every later label would shift."""
    root = two_parts(tmp_path)
    (root / part / "bee" / "0.png").unlink()
    if not emptied:
        os.rmdir(root / part / "bee")
    with pytest.raises(ValueError) as error:
        class_folders(root, ("train", "val"))
    sentence(error, "class bee", f"none in {root / part}", "out of both")


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_text_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "words.txt"
    path.write_bytes("n01\tcafé\r\nn02\tthé".encode(encoding))
    assert read_text(path).splitlines() == ["n01\tcafé", "n02\tthé"]
    assert read_table(path, 2, "\t") == [["n01", "café"], ["n02", "thé"]]


def test_text_that_is_none(tmp_path):
    path = tmp_path / "words.txt"
    with pytest.raises(FileNotFoundError, match=r"words.txt is missing"):
        read_text(path)
    path.write_bytes(b"\xff\xfe\x00\xd8\x00")
    with pytest.raises(ValueError) as error:
        read_text(path)
    sentence(error, "words.txt", "utf-16")
