"""Calibration, agreement, both layers averaged, and the taught GAP-FC's CAM: arithmetic on made-up runs."""

import pytest
from made_runs import make

from saol_lib.evidence import beyond, figures
from saol_lib.evidence.tables import NOT_RUN


def bins(accuracy, images=(30, 70)):
    """Two bins of confidence, about 0.5 and 0.9, whose answers are right as often as `accuracy` says."""
    right = [round(count * share) for count, share in zip(images, accuracy, strict=True)]
    return {"images": [*images], "right": right, "confidence": [0.5 * images[0], 0.9 * images[1]]}


def run(arm, seed, metrics, kept=None, **changes):
    (made,) = make([0.0], arm, **changes)
    config = made.config | {"seed": seed}
    return made._replace(
        config=config, metrics=metrics, epochs=[{"epoch": 1} | ({"reliability": kept} if kept else {})]
    )


def scores(gap, saol, mean, error=4.0):
    told = {"top1_gap_last": gap, "top1_saol_last": saol, "top1_mean_last": mean, "agreement_last": 90.0}
    return told | {"ece_gap_last": error, "ece_saol_last": error + 1}


RUNS = [run("saol_sd", 0, scores(70.0, 72.0, 73.0)), run("saol_sd", 1, scores(73.0, 71.0, 72.0, 6.0))]


def test_the_mean_of_both_layers_is_held_against_the_better_one_of_each_seed():
    table = beyond.both_layers([*RUNS, run("gap_fc", 0, {"top1_gap_last": 60.0})])
    (row,) = table.to_dict("records")
    assert row["above the better one"] == "+0.00" and row["each seed"] == "+1.0, -1.0"
    assert row["GAP-FC"] == "71.5 ± 2.1" and row["both averaged"] == "72.5 ± 0.7"


def test_calibration_of_every_layer_and_older_files():
    old = run("gap_fc", 0, {"top1_gap_last": 60.0})
    table = beyond.calibration([*RUNS, old]).reset_index()
    assert table["layer read"].tolist() == ["SAOL", "GAP-FC"]
    assert table["calibration error"].tolist() == ["6.0 ± 1.4", "5.0 ± 1.4"] and set(table["layers agree"]) == {"90.0"}
    assert beyond.calibration([old]) == beyond.both_layers([old]) == beyond.calibration([]) == NOT_RUN


def test_attention_by_arm_and_files_without_it():
    told = [{"attention_spread_last": spread, "attention_peak_last": 30.0} for spread in (40.0, 44.0)]
    runs = [run("saol", 0, told[0]), run("saol", 1, told[1]), run("saol_sd", 0, {"top1_saol_last": 60.0})]
    (row,) = beyond.attention_by_arm(runs).reset_index().to_dict("records")
    assert row["trained as"] == "SAOL" and row["seeds"] == 2
    assert row["entropy of A, % of uniform"] == "42.0 ± 2.8" and row["on its largest cell, %"] == "30.0 ± 0.0"
    assert beyond.attention_by_arm(RUNS) == beyond.attention_by_arm([]) == NOT_RUN


def test_variants_stay_apart():
    narrow = run("saol_sd", 0, scores(1.0, 2.0, 3.0), kernel_size=1)
    names = beyond.both_layers([*RUNS, narrow]).reset_index()["trained as"].tolist()
    assert names == ["SAOL + L_SD", "SAOL + L_SD (kernel_size 1)"]


def test_reliability_adds_bins_over_seeds_and_leaves_out_small_ones():
    kept = [
        run("gap_fc", 0, {}, {"gap": bins((0.2, 0.8))}),
        run("gap_fc", 1, {}, {"gap": bins((0.4, 0.9))}),
        run("saol_cutmix", 0, {}, {"saol": bins((0.5, 0.9), (19, 100))}),
        run("saol_cutmix", 1, {}),
    ]
    table = beyond.reliability_table(kept)
    assert table.confidence.tolist() == pytest.approx([50, 90, 90])
    assert table.accuracy.tolist() == pytest.approx([100 * (6 + 12) / 60, 100 * (56 + 63) / 140, 90])
    assert table["trained as"].tolist() == ["GAP-FC", "GAP-FC", "SAOL"]
    drawn = figures.reliability(table)
    assert {tile.get_title() for tile in drawn.axes} == {"GAP-FC read", "SAOL read"}


def test_the_taught_gap_fcs_cam_is_paired_with_the_one_alone():
    def cam(arm, seed, value, **changes):
        return run(arm, seed, {"max_box_acc_v2": value}, measure="localization", method="cam", enlarge=False, **changes)

    alone = [cam("gap_fc_cutmix", seed, 50.0) for seed in (0, 1)]
    taught = [cam("saol_cutmix_sd", seed, 51.0 + seed) for seed in (0, 1, 2)]
    doubled = cam("saol_cutmix_sd", 0, 99.0, start="saol_cutmix_sd-s0-0123456789")
    (row,) = beyond.cam_of_taught([*alone, *taught, doubled]).to_dict("records")
    assert row["taught − alone (points)"] == "+1.50" and row["pairs"] == 2
    assert beyond.cam_of_taught(alone) == NOT_RUN
