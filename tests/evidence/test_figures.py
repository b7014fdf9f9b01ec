"""Figures are tested through the data they draw: nobody compares pixels."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import same_color, to_rgb

from saol_lib.evidence import figures
from saol_lib.training.config import ARMS
from saol_lib.training.runs import Run

SCORES = {  # arm: for every seed, for every epoch, top-1 by output layer
    "gap_fc": [[{"gap": 50.0}, {"gap": 60.0}], [{"gap": 54.0}, {"gap": 65.0}]],
    "saol": [[{"saol": 58.0}, {"saol": 62.0}], [{"saol": 70.0}, {"saol": 66.0}]],
    "saol_sd": [[{"gap": 51.0, "saol": 52.0}, {"gap": 57.0, "saol": 63.0}]] * 2,
    "saol_cutmix": [[{"saol": 40.0}, {"saol": 44.0}], [{"saol": 41.0}, {"saol": 43.0}]],
    "gap_fc_cutmix": [[{"gap": 30.0}, {"gap": 40.0}], [{"gap": 35.0}, {"gap": 45.0}]],
}


def run(arm, seed, epochs):
    entries = [{"epoch": i} | {f"top1_{k}": v for k, v in scores.items()} for i, scores in enumerate(epochs, 1)]
    last = {f"top1_{k}_last": v for k, v in epochs[-1].items()}
    best = {f"top1_{k}_best": max(scores[k] for scores in epochs) for k in epochs[-1]}
    return Run({"arm": arm, "seed": seed}, last | best, entries, {}, "finished")


@pytest.fixture
def runs():
    return [run(arm, seed, epochs) for arm, seeds in SCORES.items() for seed, epochs in enumerate(seeds)]


@pytest.fixture
def scenes():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 12, 20), generator=generator, dtype=torch.uint8)
    attention = torch.rand(3, 1, 3, 5, generator=generator)
    return images, attention / attention.sum(dim=(2, 3), keepdim=True), torch.tensor([[2, 1, 9, 7]] * 3)


def drawn_deltas(figure):
    """{row of the figure: (its dots, its mean bars)} from what was drawn."""
    (axes,) = figure.axes
    dots = np.concatenate([part.get_offsets() for part in axes.collections if len(part.get_offsets())])
    means = [(x, y) for line in axes.lines if line.get_marker() == "|" for x, y in line.get_xydata() if x == x]
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    near = {name: (sorted(x for x, y in dots if round(y) == i), [x for x, y in means if round(y) == i])
            for i, name in enumerate(names)}  # fmt: skip
    return near


def test_every_arm_has_a_label_and_a_colour_of_its_own_for_its_family():
    families = {arm.replace("_cutmix", "") for arm in ARMS}
    assert families <= set(figures.FAMILIES)
    colours = [to_rgb(colour) for colour in figures.COLOURS.values()]
    assert len(set(colours)) == len(figures.FAMILIES)


def test_paired_takes_the_last_epoch_and_the_baseline_of_the_same_seed_and_regime(runs):
    table = figures.paired(runs).set_index(["arm", "layer", "seed"]).sort_index()
    assert table.loc[("saol", "SAOL", 1), ["top1", "best", "delta"]].tolist() == [66.0, 70.0, 1.0]
    assert table.loc[("saol_sd", "GAP-FC"), "delta"].tolist() == [-3.0, -8.0]
    assert table.loc[("saol_cutmix", "SAOL"), "delta"].tolist() == [4.0, -2.0]
    assert (table.loc["gap_fc"].delta == 0).all()


def test_paired_without_a_baseline_run_has_no_delta(runs):
    table = figures.paired([run for run in runs if run.config != {"arm": "gap_fc", "seed": 1}])
    saol = table[table.arm == "saol"].set_index("seed").delta
    assert saol[0] == 2.0 and np.isnan(saol[1])


@pytest.mark.parametrize(
    ("change", "baseline", "sentence"),
    [
        (lambda runs: [*runs, runs[2]], "gap_fc", "two runs of arm saol share a seed"),
        (lambda runs: runs, "saol_sd", "baseline 'saol_sd' is read at two output layers"),
    ],
)
def test_paired_refuses_what_cannot_be_paired(runs, change, baseline, sentence):
    with pytest.raises(ValueError, match=sentence):
        figures.paired(change(runs), baseline)


def test_curves_draw_the_mean_and_the_range_over_seeds(runs):
    figure = figures.curves(runs)
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["without CutMix", "with CutMix"]
    assert left.get_ylabel() == "top-1 accuracy (%)" and {left.get_xlabel(), right.get_xlabel()} == {"epoch"}
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())  # there is no half an epoch
    lines = [line for line in left.lines if len(line.get_ydata())]
    assert {(line.get_color(), *line.get_ydata()) for line in lines} >= {("black", 52.0, 62.5)}
    assert [64.0, 64.0] in [list(line.get_ydata()) for line in lines]
    bands = [set(band.get_paths()[0].vertices[:, 1]) for band in left.collections]
    assert {58.0, 70.0, 62.0, 66.0} in bands


def test_curves_keep_the_colour_of_a_family_and_dash_the_other_output_layer(runs):
    for axes in figures.curves(runs).axes:
        for line in axes.lines:
            saol = same_color(line.get_color(), figures.COLOURS["SAOL"])
            assert not (saol and line.is_dashed())
    (solid, dashed) = sorted(
        (line for line in figures.curves(runs).axes[0].lines
         if same_color(line.get_color(), figures.COLOURS["SAOL + L_SD"]) and len(line.get_ydata())),
        key=lambda line: line.is_dashed(),
    )  # fmt: skip
    assert list(solid.get_ydata()) == [52.0, 63.0] and list(dashed.get_ydata()) == [51.0, 57.0]


def test_deltas_draw_a_dot_a_seed_and_a_bar_at_their_mean(runs):
    figure = figures.deltas(runs)
    assert "percentage points" in figure.axes[0].get_xlabel() and "GAP-FC" in figure.axes[0].get_xlabel()
    assert drawn_deltas(figure) == {
        "SAOL, SAOL read, without CutMix": ([1.0, 2.0], [1.5]),
        "SAOL + L_SD, SAOL read, without CutMix": ([-2.0, 3.0], [0.5]),
        "SAOL + L_SD, GAP-FC read, without CutMix": ([-8.0, -3.0], [-5.5]),
        "SAOL, SAOL read, with CutMix": ([-2.0, 4.0], [1.0]),
    }


def test_attention_grid_shows_the_attention_over_its_own_image_on_one_scale(scenes):
    images, attention, boxes = scenes
    figure = figures.attention_grid(images, attention, boxes, ["a", "b", "c"])
    *tiles, scale = figure.axes
    assert [tile.get_title() for tile in tiles[:3]] == ["a", "b", "c"] and "attention" in scale.get_xlabel()
    for i, (top, bottom) in enumerate(zip(tiles[:3], tiles[3:], strict=True)):
        assert np.array_equal(top.images[0].get_array(), images[i].permute(1, 2, 0))
        shown = bottom.images[1]
        assert np.array_equal(shown.get_array(), attention[i, 0])
        assert shown.get_clim() == (0, pytest.approx(float(attention.max())))
        assert list(shown.get_extent()) == list(top.images[0].get_extent()) == [-0.5, 19.5, 11.5, -0.5]
        for tile in (top, bottom):
            assert tile.patches[0].get_bbox().bounds == (1.5, 0.5, 8.0, 7.0)


def test_panels_give_maps_a_scale_and_images_none(scenes):
    images, attention, boxes = scenes
    figure = figures.panels({"image": images[0], "A": attention[0, 0]}, {"image": boxes[0]})
    assert [axes.get_title() for axes in figure.axes] == ["image", "A", ""]
    assert len(figure.axes[0].patches) == 1 and not figure.axes[1].patches


def test_threshold_curves_have_a_colour_a_line_and_level_lines_for_what_looks_at_nothing():
    curves = {"SAOL, A · Y": ([0, 0.5], [1, 2]), "GAP-FC, CAM": ([0, 0.5], [3, 9])}
    figure = figures.threshold_curves(curves, {"whole image": 2.5})
    (tile,) = figure.axes
    lines = {line.get_label(): line for line in tile.lines}
    assert {name: list(line.get_ydata()) for name, line in lines.items()} == {
        "SAOL, A · Y": [1, 2], "GAP-FC, CAM": [3, 9], "whole image": [2.5, 2.5],
    }  # fmt: skip
    assert len({line.get_color() for line in lines.values()}) == 3
    assert tile.get_ylim()[0] == 0 and 9 < tile.get_ylim()[1] < 10
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    assert "threshold" in tile.get_xlabel() and "(%)" in tile.get_ylabel()


def test_gallery_outlines_the_true_box_and_the_found_one(scenes):
    images, attention, boxes = scenes
    tiles = [
        (images[i], attention[i, 0], boxes[i], found, f"t{i}")
        for i, found in enumerate([(0, 0, 3, 2), None, (1, 1, 1, 1)])
    ]
    figure = figures.gallery({"lowest": tiles, "highest": tiles[:1]})
    shown = [tile for tile in figure.axes if tile.images]
    assert [tile.get_title() for tile in shown] == ["t0", "t1", "t2", "t0"]
    bounds = [[patch.get_bbox().bounds for patch in tile.patches] for tile in shown]
    true = (1.5, 0.5, 8.0, 7.0)
    assert bounds == [
        [true, (-0.5, -0.5, 4.0, 3.0)],
        [true],
        [true, (0.5, 0.5, 1.0, 1.0)],
        [true, (-0.5, -0.5, 4.0, 3.0)],
    ]
    for tile, i in zip(shown, [0, 1, 2, 0], strict=True):
        picture, cover = tile.images
        assert np.array_equal(picture.get_array(), images[i].permute(1, 2, 0)), "in its colours"
        strength = attention[i, 0] / attention[i, 0].max()
        np.testing.assert_allclose(cover.get_alpha(), figures.COVER * (1 - strength), atol=1e-6)
    assert {text.get_text() for tile in figure.axes for text in tile.texts} == {"lowest", "highest"}


def test_save_writes_the_same_small_files_again(scenes, runs, tmp_path):
    written = []
    for place in ("one", "two"):
        figures.save(figures.attention_grid(*scenes), tmp_path / place, "attention")
        figures.save(figures.curves(runs), tmp_path / place, "curves")
        files = sorted((tmp_path / place / "figures").iterdir())
        assert [file.name for file in files] == ["attention.png", "attention.svg", "curves.png", "curves.svg"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    assert all(1_000 < len(data) < 300_000 for data in written[0])
    assert b"<dc:date>" not in written[0][3] and b"Software" not in written[0][2]


def test_pair_rows_give_the_maps_of_a_group_one_scale_in_each_row(scenes):
    images, attention, boxes = scenes
    one, two = attention[:, 0], 3 * attention[:, 0].flip(0)
    figure = figures.pair_rows(images, boxes, [{"A": one}, {"Y pasted": two, "Y base": one}], ["x", "y", "z"])
    rows = np.array(figure.axes).reshape(3, 4)
    for i, line in enumerate(rows):
        assert [tile.get_title() for tile in line[1:]] == ["A", "Y pasted", "Y base"]
        assert line[0].get_title(loc="left") == "xyz"[i]
        most = {"A": one[i].max(), "Y": max(one[i].max(), two[i].max())}
        drawn = {1: one[i] / most["A"], 2: two[i] / most["Y"], 3: one[i] / most["Y"]}
        for place, tile in enumerate(line):
            assert np.array_equal(tile.images[0].get_array(), images[i].permute(1, 2, 0)), "in its colours"
            assert tile.patches[0].get_bbox().bounds == (1.5, 0.5, 8.0, 7.0)
            if place:
                np.testing.assert_allclose(tile.images[1].get_alpha(), figures.COVER * (1 - drawn[place]), atol=1e-6)


def test_an_image_may_have_several_boxes_filled_up_with_rows_of_minus_one(scenes):
    images, attention, _ = scenes
    boxes = torch.tensor([[[2, 1, 9, 7], [0, 0, 1, 1]], [[2, 1, 9, 7], [-1, -1, -1, -1]], [[-1] * 4, [-1] * 4]])
    figure = figures.attention_grid(images, attention, boxes)
    counts = sorted(len(tile.patches) for tile in figure.axes if tile.images)
    assert counts == [0, 0, 1, 2, 2, 4], "below, picture and map outline them both"


def test_a_map_that_is_nowhere_positive_leaves_the_picture_dark(scenes):
    images, attention, boxes = scenes
    figure = figures.pair_rows(images[:1], boxes[:1], [{"CAM": -attention[:1, 0]}], ["x"])
    assert figure.axes[1].images[1].get_alpha().min() == pytest.approx(figures.COVER)


def test_share_curves_draw_the_mean_and_the_middle_half_of_each_ninth_a_row_a_reading():
    values = {0.07: [0.1, 0.2, 0.3, 0.4, 0.5], 0.94: [0.9] * 5}
    rows = [("p", "SAOL", area, value) for area, part in values.items() for value in part]
    rows += [("p", "GAP-FC", 0.07, 0.1), ("p", "GAP-FC", 0.94, 0.7), ("q", "SAOL", 0.5, 0.6)]
    table = pd.DataFrame(rows, columns=["panel", "reading", "area", "value"])
    figure = figures.share_curves(table)
    (left, right), (below, empty) = np.array(figure.axes).reshape(2, 2)
    assert [left.get_title(), right.get_title(), below.get_title()] == ["p", "q", ""]
    assert [tile.get_ylabel().split("\n")[0] for tile in (left, below)] == ["SAOL", "GAP-FC"]
    assert not empty.axison and not empty.lines, "what has no map has no tile"

    def solid(tile, colour):
        lines = [line for line in tile.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        return [line.get_xydata().tolist() for line in lines if same_color(line.get_color(), colour)]

    saol = [[10.0, pytest.approx(30)], [90.0, pytest.approx(90)]]
    gap = [[10.0, pytest.approx(10)], [90.0, pytest.approx(70)]]
    assert solid(left, figures.READINGS["SAOL"]) == solid(below, "0.6") == [saol]
    assert solid(below, figures.READINGS["GAP-FC"]) == solid(left, "0.6") == [gap]
    assert [0, 100] in [list(line.get_xdata()) for line in left.lines if line.get_linestyle() == "--"]
    band = {round(y) for y in left.collections[0].get_paths()[0].vertices[:, 1]}
    assert band == {20, 40, 90}, "the bands of two rows never lie on each other"


def test_bars_have_a_line_at_one_and_their_numbers_beside_them():
    figure = figures.bars(
        pd.Series({"GAP-FC": 1.0, "SAOL + L_SS + L_SD, second pass over the sources": 1.294}), "times"
    )
    (tile,) = figure.axes
    assert [bar.get_width() for bar in tile.patches] == [1.0, 1.294] and tile.get_xlabel() == "times"
    assert [line.get_xdata() for line in tile.lines] == [[1, 1]]
    names = [label.get_text().replace("\n", " ") for label in tile.get_yticklabels()]
    assert names == ["GAP-FC", "SAOL + L_SS + L_SD, second pass over the sources"]
    (beside,) = tile.child_axes
    assert [label.get_text() for label in beside.get_yticklabels()] == ["1.00 ×", "1.29 ×"]
    assert not tile.texts, "no number lies in the picture, where a bar or the line could cross it"


def test_forest_draws_every_effect_with_its_interval_and_the_smallest_that_counts():
    rows = [("C1", "ResNet", 1.0, 0.5, 1.5, 0.5), ("C12a", "against CAM", -0.5, -2.0, 1.0, -1.0)]
    table = pd.DataFrame(rows, columns=["claim", "test", "mean", "low", "high", "smallest"])
    (tile,) = figures.forest(table).axes
    assert [label.get_text() for label in tile.get_yticklabels()] == ["C1: ResNet", "C12a: against CAM"]
    (intervals,) = [part.get_segments() for part in tile.collections]
    assert [[x for x, _ in segment] for segment in intervals] == [[0.5, 1.5], [-2.0, 1.0]]
    (smallest,) = [line for line in tile.lines if line.get_label().startswith("smallest")]
    assert list(smallest.get_xdata()) == [0.5, -1.0]


def test_slopes_draw_a_line_a_seed_from_step_to_step(runs):
    steps = [("gap_fc", "GAP-FC"), ("saol_sd", "GAP-FC"), ("saol", "SAOL")]
    figure = figures.slopes(runs, steps)
    (tile,) = figure.axes
    assert {tuple(line.get_ydata()) for line in tile.lines} == {(60.0, 57.0, 62.0), (65.0, 57.0, 66.0)}
    assert [label.get_text().split("\n")[0] for label in tile.get_xticklabels()] == ["GAP-FC", "SAOL + L_SD", "SAOL"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1"]


def test_cost_against_accuracy_has_a_dot_an_arm_and_layer(runs):
    timed = [run._replace(provenance={"seconds": 60.0 + 60 * run.config["seed"]}) for run in runs]
    (tile,) = figures.cost_against_accuracy(timed).axes
    dots = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in tile.containers}
    assert dots["SAOL, SAOL read, without CutMix"] == [[1.5, 64.0]] and len(dots) == 6
