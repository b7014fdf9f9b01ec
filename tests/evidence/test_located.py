"""What notebook 03 measures and shows."""

import pandas as pd
import pytest
import torch
from made_runs import gap, make

from saol_lib.data import load
from saol_lib.evidence import compare, gallery, located, made_data, measures
from saol_lib.evidence.measures import load_measures, save_measure
from saol_lib.localization import area_share
from saol_lib.training.config import RunConfig, finetuning
from saol_lib.training.loop import train
from saol_lib.training.runs import load_runs, save_run
from saol_lib.training.study import run_stages

SCORES = {"box_acc_30": 80.0, "box_acc_50": 50.0, "box_acc_70": 20.0, "max_box_acc": 50.0, "gt_known": 40.0}
ERRORS = {"top1_loc_error": 70.0, "top5_loc_error": 60.0}
LIES = {"mass_inside": 60.0, "mean_map_inside": 55.0, "area_share": 40.0, "entropy": 2.0, "largest_cell": 30.0}


def measure(folder, run, method, v2, **more):
    config = run.config | {"measure": "localization", "method": method}
    metrics = SCORES | ERRORS | {"max_box_acc_v2": v2} | more
    save_run(folder, run._replace(config=config, metrics=metrics), folder="measures")


@pytest.fixture
def table(tmp_path):
    """Two seeds of a SAOL and a GAP-FC network, fine-tuned."""
    saol, base = make([70.0, 71.0]), gap([70.0, 70.0])
    for run, v2 in zip(saol, (48.0, 52.0), strict=True):
        measure(tmp_path, run, "saol", v2, box_size=20.0)
        measure(tmp_path, run, "attention", v2 + 1, box_size=30.0, **LIES)
    for run in base:
        measure(tmp_path, run, "cam", 58.0, box_size=100.0)
        measure(tmp_path, run, "best centred box", 55.0)
        measure(tmp_path, run, "whole image", 45.0)
    return located.boxes_table({"fine-tuned": [*saol, *base], "enlarged": []}, tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """The runs that `table` has measures of; each of their networks gives only the maps that were measured there."""
    monkeypatch.setattr(located, "READS", {"saol": ("saol", "attention"), "gap": ("cam",)})
    return {"fine-tuned": [*make([70.0, 71.0]), *gap([70.0, 70.0])]}


def test_boxes_that_look_at_nothing_stand_on_top(table):
    shown = located.box_numbers(table)
    assert [name for _, name in shown.index] == ["whole image", "best centred box", "CAM", "A · Y", "A alone (ours)"]
    assert shown.loc[("SAOL", "A · Y")].tolist() == ["50.0 ± 2.8", "50.0", "40.0", "20.0"]
    assert shown.loc[("none", "whole image"), "box size"] == "–" and shown.columns[0] == "V2, fine-tuned"


def test_the_result_says_what_is_not_above_the_best_box_that_looks_at_nothing(table):
    first, second = located.box_result(table)
    assert "against 55.0 of the best box" in first
    assert "A · Y of SAOL 50.0 (not above)" in first and "CAM of GAP-FC 58.0 (above)" in first
    assert second.startswith("Doubling was not measured.") and second.endswith("SAOL 1.5.")
    spread = located.spread_numbers(table)
    assert spread.loc[("fine-tuned", "SAOL")].tolist() == [60.0, 55.0, 40.0, 1.5, 2.0, 30.0]


def test_missing_and_impossible_measures_are_told(table, measured):
    assert located.box_faults(table, measured) == []
    (fault,) = located.box_faults(table.assign(box_acc_70=[90.0, *[20.0] * (len(table) - 1)]), measured)
    assert "stricter" in fault

    one_seed_short = table[~((table.method == "saol") & (table.seed == 1))]
    assert located.box_faults(one_seed_short, measured) == ["fine-tuned, SAOL, saol: not measured for 1 of 2 seeds"]
    without_saol = located.box_faults(table[table.network != "SAOL"], measured)
    assert [fault.split(":")[0] for fault in without_saol] == ["fine-tuned, SAOL, saol", "fine-tuned, SAOL, attention"]
    assert len(located.box_faults(table, measured | {"enlarged": make([70.0], start="saol-s0-x")})) == 2


def test_doubling_is_paired_by_seed(tmp_path):
    before = make([1.0, 1.0], epochs=8)
    after = make([1.0, 1.0, 1.0], epochs=9)
    for run, v2 in zip([*before, *after], (50.0, 60.0, 52.0, 61.0, 90.0), strict=True):
        measure(tmp_path, run, "saol", v2)
    table = located.boxes_table({"continued": before, "enlarged": after}, tmp_path)
    assert located._by_doubling(table).endswith("by doubling the output: SAOL +1.5.")


def test_the_curves_are_those_of_all_measures_whoever_has_the_weights(tmp_path):
    for run, height in zip(make([70.0, 71.0]), (40.0, 60.0), strict=True):
        curve = [{"threshold": level, "box_acc": height * (1 - level)} for level in (0.0, 0.5)]
        save_measure(run, tmp_path, "localization", "saol", SCORES | ERRORS, {"images": 9}, curve)
    table = located.boxes_table({"fine-tuned": make([70.0, 71.0])}, tmp_path)
    (line,) = located.curves_figure(table).axes[0].lines
    assert line.get_label() == "SAOL: A · Y" and line.get_ydata().tolist() == [50.0, 25.0]
    (base,) = gap([70.0])
    save_measure(base, tmp_path, "localization", "cam", SCORES | ERRORS, {"images": 9}, curve)
    both = located.boxes_table({"fine-tuned": [*make([70.0, 71.0]), base]}, tmp_path)
    labels = [line.get_label() for line in located.curves_figure(both).axes[0].lines]
    assert labels == ["GAP-FC: CAM (1 seeds)", "SAOL: A · Y"]
    assert located.curves_figure(table[table.seed == 5]) is None


def test_code_that_measures_is_told_and_its_words_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "LIBRARY", tmp_path)
    (tmp_path / "localization").mkdir()
    file = tmp_path / "localization" / "boxes.py"
    hashes = []
    for source in ('"""Words."""\nx = 1\n', '"""Other words."""\nx = 1  # one\n', '"""Words."""\nx = 2\n'):
        file.write_text(source)
        hashes.append(measures.measuring_hash.__wrapped__())
    assert hashes[0] == hashes[1] != hashes[2]


def test_measures_that_were_taken_otherwise_are_not_compared(tmp_path):
    for run, images in zip([*make([70.0]), *gap([70.0])], (1500, 100), strict=True):
        save_measure(run, tmp_path, "localization", "saol", {"max_box_acc_v2": 50.0}, {"images": images})
    both = [found for _, _, found in load_measures(tmp_path, "localization")]
    assert [name for name, _, _ in load_measures(tmp_path, "localization")] == [gap([70.0])[0].id, make([70.0])[0].id]
    with pytest.raises(ValueError, match="the runs differ in measured"):
        compare(both[:1], both[1:], "max_box_acc_v2")
    assert not list(load_measures(tmp_path, "cutmix_pairs"))


def test_nothing_measured_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 02 first"):
        located.boxes_table({"fine-tuned": make([1.0])}, tmp_path)


def test_pictures_are_the_lowest_the_median_and_the_highest_of_those_got_right():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    ious = torch.tensor([0.4, 0.1, 0.9, 0.0, 0.3, 0.2])
    ranks = torch.tensor([0, 0, 0, 2, 0, 1])
    rows = located.picks(ious, ranks, labels, 5)
    assert rows == {"lowest IoU": [1, 4], "median": [0, 4], "highest": [2, 4]}
    assert located.picks(ious, ranks, labels, 1)["highest"] == [2]


def test_from_networks_to_boxes_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(located, "POINTS", 10)  # every other one of twenty thresholds
    values = {"backbone": "resnet-s2-8-8", "train_images": 100, "epochs": 1, "image_size": 32, "batch_size": 50}
    stages = finetuning(["gap_fc", "saol_sd"], [0], trained={}, continued={"arms": ["saol_sd"]}, **values)
    finished = run_stages(stages, tmp_path, progress=False)
    found = located.measure_boxes(finished, tmp_path, images=40, thresholds=20)
    table = located.boxes_table(finished, tmp_path)
    assert located.box_faults(table, finished) == []
    assert set(table.stage) == {"fine-tuned", "continued", "enlarged"}
    saol = table[table.network == "SAOL + L_SD"]
    assert set(saol.method) == {"saol", "saol_log", "attention", "spatial", "cam", "grad_cam"}

    figure = located.curves_figure(table)
    assert [line.get_label() for line in figure.axes[0].lines][:2] == ["GAP-FC: CAM", "SAOL + L_SD: A · Y"]
    run = located.gallery_run(finished, tmp_path)
    assert run.config["enlarge"]
    assert located.gallery_figure(run, tmp_path, found[run.id, "saol"], images=40).axes
    levels, heights = figure.axes[0].lines[0].get_data()
    own = found[finished["fine-tuned"][0].id, "cam"].accuracy
    assert levels.tolist() == pytest.approx(own.thresholds[::2].tolist())
    assert heights.tolist() == pytest.approx(own.curve[::2].tolist(), abs=0.006)

    alone = table[table.network != "none"]  # no network with a GAP-FC layer alone: nothing to hold the maps against
    labels = [line.get_label() for line in located.curves_figure(alone).axes[0].lines]
    assert len(labels) == 2 and not set(labels) & set(located.BLIND)
    first, _ = located.box_result(alone)
    assert first.startswith("MaxBoxAccV2, without the boxes that look at nothing") and "above" not in first
    assert located.box_result(table)[0].count("above") == 2

    assert located.gallery_run({"fine-tuned": []}, tmp_path) is None
    assert isinstance(located.box_numbers(table), pd.DataFrame)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"thresholds": 0}])
def test_numbers_that_cannot_be(tmp_path, wrong):
    with pytest.raises(ValueError, match="must be None or at least 1"):
        located.measure_boxes({}, tmp_path, **wrong)


@pytest.fixture
def with_a_damaged_picture(tmp_path):
    """A trained SAOL and a made ImageNet whose second of nine pictures is cut short; each has a box of its own."""
    made_data.make_imagenet(tmp_path / "imagenet", each=3)
    val = sorted((tmp_path / "imagenet" / "val").glob("*/*.JPEG"))
    for number, path in enumerate(val):
        corners = 40, 30, 100 + 12 * number, 150
        annotation = tmp_path / "imagenet" / "Annotations" / "val" / f"{path.stem}.xml"
        annotation.write_text(made_data.XML.format(*made_data.SIZE, path.parent.name, *corners))
    whole = val[1].read_bytes()
    val[1].write_bytes(whole[: len(whole) // 2])  # its size can still be read

    values = {"dataset": "imagenet", "data_dir": str(tmp_path / "imagenet"), "backbone": "resnet-s2-8-8"}
    values |= {"image_size": 32, "batch_size": 4, "epochs": 1, "skip_damaged": True}
    config = RunConfig(arm="saol_sd", **values)
    run = train(config, tmp_path / "results", progress=False)
    train(RunConfig(arm="gap_fc", **values), tmp_path / "results", progress=False)
    return config, run, tmp_path / "results"


@pytest.mark.parametrize(("images", "kept"), [(None, [0, 2, 3, 4, 5, 6, 7, 8]), (4, [0, 2, 3])])
def test_each_picture_is_held_against_its_own_boxes_where_some_are_damaged(
    with_a_damaged_picture, monkeypatch, images, kept
):
    monkeypatch.setattr(located, "_BATCH", 2)  # the damaged one lies in the first of several
    config, run, results = with_a_damaged_picture
    finished = {"fine-tuned": load_runs(results)}
    found = located.measure_boxes(finished, results, config.data_dir, images, thresholds=10)

    split = load("imagenet", config.data_dir, image_size=32, skip_damaged=True).test
    expected = area_share(split.boxes[torch.tensor(kept)], split.source_size)
    assert len(expected.unique()) == len(kept)
    assert found[run.id, "saol"].covered.tolist() == expected.tolist()
    assert set(located.boxes_table(finished, results).method) >= set(located.BLIND)
    assert located.gallery_figure(run, results, found[run.id, "saol"], config.data_dir, images).axes


def test_the_share_of_attention_in_the_boxes_leaves_damaged_pictures_out(with_a_damaged_picture):
    config, run, results = with_a_damaged_picture
    dataset = load("imagenet", config.data_dir, image_size=32, skip_damaged=True)
    table = gallery.attention_in_boxes([run], results, dataset)
    expected = area_share(dataset.test.boxes[torch.tensor([0, *range(2, 9)])], dataset.test.source_size).mean()
    assert table["the box covers (%)"].tolist() == [round(100 * float(expected), 1)]
