"""Attention mass inside a box against a loop over pixels."""

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saol_lib.localization import area_share, mass_inside


@st.composite
def boxes_in_images(draw):
    """An image that is rarely square, three inclusive boxes (one of them full), and a map that need not divide it."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 17))
    boxes = [[0, 0, width - 1, height - 1]]
    for _ in range(2):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append([x0, y0, draw(st.integers(x0, width - 1)), draw(st.integers(y0, height - 1))])
    return (height, width), torch.tensor(boxes), (draw(st.integers(1, 6)), draw(st.integers(1, 7)))


def attention_maps(count, size, seed=0, dtype=torch.float64):
    scores = torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return scores.flatten(1).softmax(1).view_as(scores)


def common(cell, cells, pixel, pixels):
    """The share of a cell that a pixel covers, exactly."""
    width = Fraction(pixels, cells)
    return max(Fraction(0), min((cell + 1) * width, pixel + 1) - max(cell * width, pixel)) / width


def loop_mass(attention, box, size):
    x0, y0, x1, y1 = box
    total = 0.0
    for i, row in enumerate(attention.tolist()):
        for j, mass in enumerate(row):
            rows = sum(common(i, len(attention), y, size[0]) for y in range(y0, y1 + 1))
            columns = sum(common(j, len(row), x, size[1]) for x in range(x0, x1 + 1))
            total += mass * float(rows * columns)
    return total


@given(boxes_in_images(), st.integers(0, 99))
def test_mass_and_area_are_the_literal_sums(case, seed):
    size, boxes, cells = case
    attention = attention_maps(3, cells, seed)
    expected = [loop_mass(a[0], box, size) for a, box in zip(attention, boxes.tolist(), strict=True)]
    assert mass_inside(attention, boxes, size).tolist() == pytest.approx(expected, rel=1e-6)
    inside = [sum(x0 <= x <= x1 and y0 <= y <= y1 for y in range(size[0]) for x in range(size[1]))
              for x0, y0, x1, y1 in boxes.tolist()]  # fmt: skip
    shares = [count / (size[0] * size[1]) for count in inside]
    assert area_share(boxes, size).tolist() == pytest.approx(shares, rel=1e-6)
    uniform = torch.full((3, 1, *cells), 1 / (cells[0] * cells[1]), dtype=torch.float64)
    assert mass_inside(uniform, boxes, size).tolist() == pytest.approx(shares, rel=1e-6)
    assert mass_inside(attention, boxes, size)[0].item() == pytest.approx(1)


def test_small_boxes_in_large_images_keep_six_digits():
    attention, size = attention_maps(1, (9, 11)), (224, 230)
    for box in ([199, 174, 199, 174], [229, 223, 229, 223], [20, 24, 21, 25]):
        expected = pytest.approx(loop_mass(attention[0, 0], box, size), rel=1e-6)
        assert mass_inside(attention, torch.tensor([box]), size).item() == expected


def test_x_runs_along_the_width():
    attention = torch.zeros(1, 1, 2, 4)
    attention[..., 0, 3] = 1
    right_top, left_bottom = torch.tensor([[6, 0, 7, 1]]), torch.tensor([[0, 2, 1, 3]])
    assert mass_inside(attention, right_top, (4, 8)) == 1 and mass_inside(attention, left_bottom, (4, 8)) == 0


def test_the_type_of_the_attention_is_kept():
    assert mass_inside(attention_maps(1, (2, 2), dtype=torch.float32), torch.tensor([[0, 0, 1, 1]]), (4, 4)).dtype == (
        torch.float32
    )


@pytest.mark.parametrize("box", [[0, 0, 8, 3], [0, 0, 7, 4], [-1, 0, 3, 3], [0, -1, 3, 3], [5, 0, 4, 3], [0, 3, 7, 2]])
def test_boxes_outside_the_image(box):
    boxes, message = torch.tensor([[0, 0, 7, 3], box]), re.escape(f"box {box} must be inclusive x0, y0, x1, y1")
    for call in (lambda: area_share(boxes, (4, 8)), lambda: mass_inside(attention_maps(2, (2, 2)), boxes, (4, 8))):
        with pytest.raises(ValueError, match=message):
            call()
