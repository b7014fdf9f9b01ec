"""Boxes of files: where they lie in the middle that evaluation cuts out, whatever the picture's shape and turn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import sentence
from PIL import Image, ImageOps

from saol_lib.data import Files
from saol_lib.data.boxes import numbers, padded, read_localization, read_xml, seen, turned


def white_box(path, height, width, box, **options):
    """A black picture with a white box, both ends inclusive."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0 : y1 + 1, x0 : x1 + 1] = 255
    Image.fromarray(pixels).save(path, **options)
    return path


def bright(image):
    """The box (4,) around what is brighter than half in a picture (3, H, W)."""
    visible = image.float().mean(dim=0) > 127
    rows, columns = visible.any(dim=1).nonzero()[:, 0], visible.any(dim=0).nonzero()[:, 0]
    return [columns[0].item(), rows[0].item(), columns[-1].item(), rows[-1].item()]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(64, 64, (10, 20, 39, 49)), (90, 60, (12, 30, 47, 59)), (60, 121, (40, 6, 79, 41)), (300, 200, (0, 0, 199, 299))],
)
def test_a_box_lies_where_the_picture_shows_it(tmp_path, height, width, box, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = white_box(tmp_path / "0.png", height, width, box, exif=exif)
    files = Files(str(tmp_path), np.array([b"0.png"]), torch.tensor([0]), side=56)
    image = files.pictures(torch.tensor([0]))[0]
    found = seen(path, [box], 56)[0]
    assert image.shape == (3, 56, 56)
    assert max(abs(a - b) for a, b in zip(found, bright(image), strict=True)) <= 1


@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.integers(0, 4))
def test_turned_boxes_follow_the_turned_picture(orientation, x0, y0, wide, high):
    height, width = 9, 7
    box = (x0, y0, x0 + wide // 2, y0 + high)
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = bright(torch.from_numpy(np.asarray(ImageOps.exif_transpose(image)).copy())[None])
    found, size = turned(box, (height, width), orientation)
    assert list(found) == expected
    assert size == ((height, width) if orientation < 5 else (width, height))


def test_a_box_outside_of_the_middle_becomes_a_line_at_its_border(tmp_path):
    path = white_box(tmp_path / "0.png", 40, 160, (0, 0, 9, 9))
    assert seen(path, [(0, 0, 9, 9), (150, 20, 159, 39)], 35) == [[0, 0, 0, 7], [34, 18, 34, 34]]


def test_a_box_of_another_image_is_refused(tmp_path):
    path = white_box(tmp_path / "0.png", 40, 60, (0, 0, 9, 9))
    for box in [(-1, 0, 5, 5), (9, 0, 5, 5), (0, 0, 61, 5), (0, 0, 5, 41), (60, 0, 60, 5)]:
        with pytest.raises(ValueError) as error:
            seen(path, [box], 32)
        sentence(error, "0.png", str(box), "60 x 40")
    assert seen(path, [(1, 1, 60, 40)], 32) == seen(path, [(1, 1, 59, 39)], 32)  # counted from 1
    with pytest.raises(ValueError) as error:
        seen(path, [(0, 0, 5, 5)], 32, (41, 60))
    sentence(error, "0.png", "its annotation says 41 and 60")


def test_xml_takes_the_objects_of_the_class(tmp_path):
    thing = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>8</xmax><ymax>9</ymax></bndbox></object>"
    size = "<size><width>30</width><height>20</height></size>"
    path = tmp_path / "0.xml"
    things = thing.format("n1", 1) + thing.format("n2", 3) + thing.format("n1", 5)
    path.write_text(f"<annotation>{size}{things}</annotation>")
    assert read_xml(path, "n1") == ((20, 30), [(1, 2, 8, 9), (5, 2, 8, 9)])
    assert len(read_xml(path, "dog")[1]) == 3  # the folder has another name than the objects
    path.write_bytes("\ufeff".encode() + f"<annotation>{thing.format('n1', 1)}</annotation>".encode())
    assert read_xml(path, "n1") == (None, [(1, 2, 8, 9)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "is no annotation"),
        ("not xml", "is no annotation"),
        ("<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", "is no annotation"),
        ("<annotation><size><width>x</width></size></annotation>", "is no annotation"),
        ("<annotation/>", "no object with a box"),
    ],
)
def test_broken_xml_is_named(tmp_path, text, message):
    path = tmp_path / "0.xml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_xml(path, "n1")
    sentence(error, "0.xml", message)


def test_wsolevaluations_texts(tmp_path):
    (tmp_path / "image_sizes.txt").write_text("val/a.JPEG,50,40\nval/b.JPEG,10,20\n")
    (tmp_path / "localization.txt").write_text("val/a.JPEG,1,2,3,4\nval/b.JPEG,0,0,9,19\nval/a.JPEG,5,6,7,8\n")
    found = read_localization(tmp_path)
    assert found == {"a.JPEG": ((40, 50), [(1, 2, 3, 4), (5, 6, 7, 8)]), "b.JPEG": ((20, 10), [(0, 0, 9, 19)])}
    (tmp_path / "localization.txt").write_text("val/c.JPEG,1,2,3,4\n")
    with pytest.raises(ValueError) as error:
        read_localization(tmp_path)
    sentence(error, "val/c.JPEG", "image_sizes.txt does not have")


@pytest.mark.parametrize("words", [["1", "2", "x", "4"], ["1", "2", "nan", "4"], ["1", "inf", "3", "4"]])
def test_a_box_is_four_finite_numbers(words, tmp_path):
    with pytest.raises(ValueError) as error:
        numbers(words, tmp_path / "0.png")
    sentence(error, "0.png", " ".join(words), "numbers")


def test_several_boxes_are_filled_up():
    found = padded([[[1, 2, 3, 4]], [[5, 6, 7, 8], [0, 0, 1, 1]]])
    assert found.tolist() == [[[1, 2, 3, 4], [-1] * 4], [[5, 6, 7, 8], [0, 0, 1, 1]]]
