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
    entries = []
    for number, scores in enumerate(epochs, 1):
        entry = {"epoch": number}
        for layer, top1 in scores.items():
            entry[f"top1_{layer}"] = top1
        entries.append(entry)

    metrics = {}
    for layer, top1 in epochs[-1].items():
        metrics[f"top1_{layer}_last"] = top1
        metrics[f"top1_{layer}_best"] = max(scores[layer] for scores in epochs)
    return Run({"arm": arm, "seed": seed}, metrics, entries, {}, "finished")


@pytest.fixture
def runs():
    made = []
    for arm, seeds in SCORES.items():
        made += [run(arm, seed, epochs) for seed, epochs in enumerate(seeds)]
    return made


@pytest.fixture
def scenes():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 12, 20), generator=generator, dtype=torch.uint8)
    scores = torch.rand(3, 1, 3, 5, generator=generator)
    attention = scores / scores.sum(dim=(2, 3), keepdim=True)
    boxes = torch.tensor([[2, 1, 9, 7]] * 3)
    return images, attention, boxes


def in_colours(image):
    """A picture (3, H, W) as matplotlib shows it."""
    return image.permute(1, 2, 0)


BOX = (1.5, 0.5, 8.0, 7.0)  # that of the scenes as it is outlined: left, top, width, height


def outlines(tile):
    return [patch.get_bbox().bounds for patch in tile.patches]


def titles(tiles):
    return [tile.get_title() for tile in tiles]


def in_words(texts):
    return [text.get_text() for text in texts]


def values(line):
    return list(line.get_ydata())


def drawn_deltas(figure):
    """{row of the figure: (its dots, its mean bars)} from what was drawn."""
    (axes,) = figure.axes
    names = [name.replace("\n", " ") for name in in_words(axes.get_yticklabels())]
    near = {name: ([], []) for name in names}
    for part in axes.collections:
        for x, y in part.get_offsets():
            dots, _ = near[names[round(y)]]
            dots.append(x)
    for line in axes.lines:
        if line.get_marker() != "|":
            continue
        for x, y in line.get_xydata():
            if not np.isnan(x):
                _, means = near[names[round(y)]]
                means.append(x)
    return {name: (sorted(dots), means) for name, (dots, means) in near.items()}


def test_every_arm_has_a_label_and_a_colour_of_its_own_for_its_family():
    families = {arm.replace("_cutmix", "") for arm in ARMS}
    assert families <= set(figures.FAMILIES)
    colours = [to_rgb(colour) for colour in figures.COLOURS.values()]
    assert len(set(colours)) == len(figures.FAMILIES)


def test_paired_takes_the_last_epoch_and_the_baseline_of_the_same_seed_and_regime(runs):
    table = figures.paired(runs)
    table = table.set_index(["arm", "layer", "seed"]).sort_index()
    saol = table.loc[("saol", "SAOL", 1)]
    assert saol[["top1", "best", "delta"]].tolist() == [66.0, 70.0, 1.0]
    assert table.loc[("saol_sd", "GAP-FC"), "delta"].tolist() == [-3.0, -8.0]
    assert table.loc[("saol_cutmix", "SAOL"), "delta"].tolist() == [4.0, -2.0]
    assert (table.loc["gap_fc"].delta == 0).all()


def test_paired_without_a_baseline_run_has_no_delta(runs):
    lost = {"arm": "gap_fc", "seed": 1}
    table = figures.paired([run for run in runs if run.config != lost])
    saol = table[table.arm == "saol"].set_index("seed")
    assert saol.delta[0] == 2.0
    assert np.isnan(saol.delta[1])


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
    assert titles(figure.axes) == ["without CutMix", "with CutMix"]
    assert left.get_ylabel() == "top-1 accuracy (%)"
    for axes in (left, right):
        assert axes.get_xlabel() == "epoch"
        assert all(tick == int(tick) for tick in axes.get_xticks()), "there is no half an epoch"

    black = [values(line) for line in left.lines if line.get_color() == "black"]
    assert [52.0, 62.5] in black
    assert [64.0, 64.0] in [values(line) for line in left.lines]
    bands = []
    for band in left.collections:
        outline = band.get_paths()[0].vertices
        bands.append(set(outline[:, 1]))
    assert {58.0, 70.0, 62.0, 66.0} in bands


def test_curves_keep_the_colour_of_a_family_and_dash_the_other_output_layer(runs):
    left, right = figures.curves(runs).axes
    for axes in (left, right):
        assert not any(line.is_dashed() for line in lines_of(axes, "SAOL"))

    drawn = [line for line in lines_of(left, "SAOL + L_SD") if values(line)]
    solid, dashed = sorted(drawn, key=lambda line: line.is_dashed())
    assert values(solid) == [52.0, 63.0]
    assert values(dashed) == [51.0, 57.0]


def lines_of(axes, family):
    """The lines in a family's colour."""
    colour = figures.COLOURS[family]
    return [line for line in axes.lines if same_color(line.get_color(), colour)]


def test_deltas_draw_a_dot_a_seed_and_a_bar_at_their_mean(runs):
    figure = figures.deltas(runs)
    label = figure.axes[0].get_xlabel()
    assert "percentage points" in label and "GAP-FC" in label
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
    pictures, maps = tiles[:3], tiles[3:]
    assert titles(pictures) == ["a", "b", "c"]
    assert "attention" in scale.get_xlabel()
    most = pytest.approx(float(attention.max()))
    for i, (top, bottom) in enumerate(zip(pictures, maps, strict=True)):
        picture = top.images[0]
        shown = bottom.images[1]
        assert np.array_equal(picture.get_array(), in_colours(images[i]))
        assert np.array_equal(shown.get_array(), attention[i, 0])
        assert shown.get_clim() == (0, most)
        assert list(shown.get_extent()) == list(picture.get_extent()) == [-0.5, 19.5, 11.5, -0.5]
        assert outlines(top)[0] == outlines(bottom)[0] == BOX


def test_panels_give_maps_a_scale_and_images_none(scenes):
    images, attention, boxes = scenes
    tiles = {"image": images[0], "A": attention[0, 0]}
    figure = figures.panels(tiles, {"image": boxes[0]})
    assert titles(figure.axes) == ["image", "A", ""]
    image, shown, _ = figure.axes
    assert len(image.patches) == 1
    assert not shown.patches


def test_threshold_curves_have_a_colour_a_line_and_level_lines_for_what_looks_at_nothing():
    curves = {"SAOL, A · Y": ([0, 0.5], [1, 2]), "GAP-FC, CAM": ([0, 0.5], [3, 9])}
    figure = figures.threshold_curves(curves, {"whole image": 2.5})
    (tile,) = figure.axes
    drawn = {line.get_label(): values(line) for line in tile.lines}
    assert drawn == {
        "SAOL, A · Y": [1, 2],
        "GAP-FC, CAM": [3, 9],
        "whole image": [2.5, 2.5],
    }
    colours = {line.get_color() for line in tile.lines}
    assert len(colours) == 3

    lowest, highest = tile.get_ylim()
    assert lowest == 0
    assert 9 < highest < 10
    assert in_words(figure.legends[0].get_texts()) == list(drawn)
    assert "threshold" in tile.get_xlabel()
    assert "(%)" in tile.get_ylabel()


def test_gallery_outlines_the_true_box_and_the_found_one(scenes):
    images, attention, boxes = scenes
    found = [(0, 0, 3, 2), None, (1, 1, 1, 1)]
    tiles = []
    for i, box in enumerate(found):
        tiles.append((images[i], attention[i, 0], boxes[i], box, f"t{i}"))
    figure = figures.gallery({"lowest": tiles, "highest": tiles[:1]})

    shown = [tile for tile in figure.axes if tile.images]
    assert titles(shown) == ["t0", "t1", "t2", "t0"]
    assert [outlines(tile) for tile in shown] == [
        [BOX, (-0.5, -0.5, 4.0, 3.0)],
        [BOX],
        [BOX, (0.5, 0.5, 1.0, 1.0)],
        [BOX, (-0.5, -0.5, 4.0, 3.0)],
    ]
    for tile, i in zip(shown, [0, 1, 2, 0], strict=True):
        picture, cover = tile.images
        assert np.array_equal(picture.get_array(), in_colours(images[i]))
        strength = attention[i, 0] / attention[i, 0].max()
        np.testing.assert_allclose(cover.get_alpha(), figures.COVER * (1 - strength), atol=1e-6)
    names = [name for tile in figure.axes for name in in_words(tile.texts)]
    assert set(names) == {"lowest", "highest"}


def test_save_writes_the_same_small_files_again(scenes, runs, tmp_path):
    written = []
    for place in ("one", "two"):
        figures.save(figures.attention_grid(*scenes), tmp_path / place, "attention")
        figures.save(figures.curves(runs), tmp_path / place, "curves")
        files = sorted((tmp_path / place / "figures").iterdir())
        assert [file.name for file in files] == ["attention.png", "attention.svg", "curves.png", "curves.svg"]
        written.append([file.read_bytes() for file in files])
    first, again = written
    assert first == again
    assert all(1_000 < len(data) < 300_000 for data in first)
    _, _, png, svg = first
    assert b"<dc:date>" not in svg
    assert b"Software" not in png


def test_pair_rows_give_the_maps_of_a_group_one_scale_in_each_row(scenes):
    images, attention, boxes = scenes
    one = attention[:, 0]
    two = 3 * one.flip(0)
    groups = [{"A": one}, {"Y pasted": two, "Y base": one}]
    figure = figures.pair_rows(images, boxes, groups, ["x", "y", "z"])
    rows = np.array(figure.axes).reshape(3, 4)
    for i, row in enumerate(rows):
        first, *others = row
        assert first.get_title(loc="left") == "xyz"[i]
        assert titles(others) == ["A", "Y pasted", "Y base"]
        for tile in row:
            assert np.array_equal(tile.images[0].get_array(), in_colours(images[i]))
            assert outlines(tile)[0] == BOX

        of_both = max(one[i].max(), two[i].max())
        strengths = [one[i] / one[i].max(), two[i] / of_both, one[i] / of_both]
        for tile, strength in zip(others, strengths, strict=True):
            cover = tile.images[1].get_alpha()
            np.testing.assert_allclose(cover, figures.COVER * (1 - strength), atol=1e-6)


def test_an_image_may_have_several_boxes_filled_up_with_rows_of_minus_one(scenes):
    images, attention, _ = scenes
    one, another, none = [2, 1, 9, 7], [0, 0, 1, 1], [-1, -1, -1, -1]
    boxes = torch.tensor([[one, another], [one, none], [none, none]])
    figure = figures.attention_grid(images, attention, boxes)
    counts = sorted(len(tile.patches) for tile in figure.axes if tile.images)
    assert counts == [0, 0, 1, 2, 2, 4], "below, picture and map outline them both"


def test_a_map_that_is_nowhere_positive_leaves_the_picture_dark(scenes):
    images, attention, boxes = scenes
    negative = {"CAM": -attention[:1, 0]}
    figure = figures.pair_rows(images[:1], boxes[:1], [negative], ["x"])
    _, cover = figure.axes[1].images
    assert cover.get_alpha().min() == pytest.approx(figures.COVER)


def test_share_curves_draw_the_mean_and_the_middle_half_of_each_ninth_a_row_a_reading():
    rows = [
        ("p", "SAOL", 0, 10, 25.0, 15.0, 35.0),
        ("p", "SAOL", 1, 10, 35.0, 25.0, 45.0),
        ("p", "SAOL", 0, 90, 90.0, 90.0, 90.0),
        ("p", "GAP-FC", 0, 10, 10.0, 10.0, 10.0),
        ("p", "GAP-FC", 0, 90, 70.0, 70.0, 70.0),
        ("q", "SAOL", 0, 50, 60.0, 60.0, 60.0),
    ]
    table = pd.DataFrame(rows, columns=["panel", "reading", "seed", "area", "mean", "low", "high"])
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
    rows = [
        ("C1", "ResNet", "top-1 accuracy", 1.0, 0.5, 1.5, 0.5),
        ("C2", "ResNet", "top-1 accuracy", 2.0, 1.5, 2.5, 0.5),
        ("C12a", "against CAM", "boxes", -20.5, -22.0, -19.0, -1.0),
    ]
    columns = ["claim", "test", "measure", "mean", "low", "high", "smallest"]
    above, below = figures.forest(pd.DataFrame(rows, columns=columns)).axes
    assert in_words(above.get_yticklabels()) == ["C1: ResNet", "C2: ResNet"]
    assert in_words(below.get_yticklabels()) == ["C12a: against CAM"]
    assert below.get_title() == "boxes" and above.get_xlim()[0] > -1, "boxes do not squeeze accuracies"
    (bars,) = above.collections
    intervals = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert intervals == [[0.5, 1.5], [1.5, 2.5]]
    (smallest,) = [line for line in below.lines if line.get_label().startswith("smallest")]
    assert list(smallest.get_xdata()) == [-1.0]


def test_slopes_draw_a_line_a_seed_from_step_to_step(runs):
    steps = [("gap_fc", "GAP-FC"), ("saol_sd", "GAP-FC"), ("saol", "SAOL")]
    figure = figures.slopes(runs, steps)
    (tile,) = figure.axes
    drawn = {tuple(values(line)) for line in tile.lines}
    assert drawn == {(60.0, 57.0, 62.0), (65.0, 57.0, 66.0), (62.5, 57.0, 64.0)}, "two seeds, and their mean"
    first_lines = [label.split("\n")[0] for label in in_words(tile.get_xticklabels())]
    assert first_lines == ["GAP-FC", "SAOL + L_SD", "SAOL"]
    assert in_words(figure.legends[0].get_texts()) == ["one seed", "mean of the 2 with every step"]


def test_the_mean_of_slopes_is_of_seeds_that_have_every_step(runs):
    without = [run for run in runs if (run.config["arm"], run.config["seed"]) != ("saol", 1)]
    (tile,) = figures.slopes(without, [("gap_fc", "GAP-FC"), ("saol", "SAOL")]).axes
    (mean,) = [line for line in tile.lines if line.get_label().startswith("mean")]
    assert list(mean.get_ydata()) == [60.0, 62.0] and mean.get_label() == "mean of the 1 with every step"


def test_cost_against_accuracy_has_a_dot_an_arm_and_layer(runs):
    prices = {"gap_fc": 30.0, "saol": 10.0, "saol_sd": 20.0}
    costs = {run.id: prices[run.config["arm"].removesuffix("_cutmix")] for run in runs}
    (tile,) = figures.cost_against_accuracy(runs, costs).axes
    assert in_words(tile.get_yticklabels()) == ["SAOL", "SAOL + L_SD", "GAP-FC"], "the cheapest first"
    (beside,) = tile.child_axes
    assert in_words(beside.get_yticklabels()) == ["10 M", "20 M", "30 M"]
    dots = {}
    for bars in tile.containers:
        for x, y in bars.lines[0].get_xydata():
            dots[bars.get_label(), round(y)] = x
    assert dots["SAOL read, without CutMix", 0] == 64.0 and dots["GAP-FC read, without CutMix", 2] == 62.5
    assert len(dots) == 6


def test_slopes_without_a_run_and_with_two_of_a_seed(runs):
    steps = [("gap_fc", "GAP-FC"), ("saol", "SAOL")]
    (tile,) = figures.slopes([], steps).axes
    assert not tile.lines
    others = [run._replace(config=run.config | {"epochs": 99}) for run in runs]
    with pytest.raises(ValueError, match="duplicate"):
        figures.slopes([*runs, *others], steps)
