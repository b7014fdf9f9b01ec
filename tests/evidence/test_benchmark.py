"""Notebook 06's tables: exact counts, and the arithmetic of ratios; never how long something took."""

import json

import pytest

from saol_lib import AttentionExplorer
from saol_lib.evidence import cost
from saol_lib.evidence.benchmark import Benchmark, count, stored


@pytest.fixture
def small():
    return Benchmark("resnet-8-8", 8, ["resnet18"], [], "resnet18", 64, rounds=1, seconds=0.1)


def test_counts_are_those_of_the_networks():
    parameters, adds = count("resnet101", "GAP-FC")
    assert round(parameters, 2) == 44.55 and round(adds, 2) == 7.80
    assert round(count("resnet101", "SAOL, separable")[1], 2) == 8.23


def test_the_papers_row_follows_from_the_peers(small):
    for layer, adds in (("GAP-FC", 8.0), ("SAOL, separable", 8.4), ("SAOL, separable, 4 blocks", 8.8), ("ABN", 12.0)):
        small.measured[f"G multiply-adds of resnet101 at 224, {layer}"] = adds
    assert small.paper_row()["more (%)"].tolist() == [5.0, 10.0, 50.0]
    assert small.measured["more multiply-adds of resnet101 at 224 with ABN, percent"] == pytest.approx(50.0)


def test_ratios_are_of_the_first_row_and_have_the_names_that_claims_read(small, monkeypatch):
    """Seconds are made up: of SAOL twice, of ABN three times those of GAP-FC."""
    made = {"GAP-FC": 1.0, "SAOL, separable": 2.0, "ABN": 3.0}
    monkeypatch.setattr(cost, "side_by_side", lambda calls, rounds: {pair: made[pair[1]] for pair in calls})
    monkeypatch.setattr(cost, "peak_memory", lambda call: 10)
    table = small.inference()
    assert table["time, of GAP-FC's"].tolist() == [1.0, 2.0, 3.0] and set(table["memory, of GAP-FC's"]) == {1.0}
    assert small.measured["inference time of ABN / GAP-FC, resnet18 at 64"] == 3.0


def test_every_way_to_a_map_gives_one_as_large_as_the_image(small, monkeypatch):
    monkeypatch.setattr(cost, "side_by_side", lambda calls, rounds: {name: 2.0 + i for i, name in enumerate(calls)})
    monkeypatch.setattr(cost, "peak_memory", lambda call: 10)
    table = small.maps()
    assert table["time, GAP-FC passes"].iloc[:2].tolist() == [1.0, 1.5]
    assert small.measured["map of SAOL / forward pass of SAOL, resnet18 at 64"] == pytest.approx(8 / 7)
    assert "time of SAOL, A * Y_k / forward pass of GAP-FC, resnet18 at 64" in small.measured


def test_a_bar_below_1_is_a_least_and_one_above_a_most(small):
    names = ["train / bare step, images per second", "evaluate / bare inference, images per second"]
    names += ["step of saol_cutmix_ss_sd / gap_fc_cutmix"]
    names += ["inference time of SAOL, separable / GAP-FC, resnet18 at 64"]
    names += ["map of SAOL / forward pass of SAOL, resnet18 at 64"]
    small.measured |= dict(zip(names, [0.95, 0.89, 1.30, 1.05, 1.10], strict=True))
    assert small.targets().met.tolist() == ["yes", "no", "no", "yes", "yes"]


def test_what_is_saved_is_what_was_measured_and_nothing_empty(small, tmp_path):
    small.measured["a"] = 1.23456
    small.save(tmp_path)
    assert json.loads((tmp_path / "06_cost.json").read_text()) == stored(tmp_path) == {"a": 1.2346}
    small.measured["b"] = 0.0
    with pytest.raises(ValueError, match=r"\['b'\] are not above 0"):
        small.save(tmp_path)
    assert stored(tmp_path / "nowhere") == {}


def test_steps_have_the_names_of_other_figures_and_are_kept_under_their_arms(small, monkeypatch):
    monkeypatch.setattr(cost, "steps", lambda configs: dict.fromkeys(configs))
    monkeypatch.setattr(cost, "with_whole_batch_pass", lambda config: None)
    monkeypatch.setattr(cost, "side_by_side", lambda calls, rounds: {name: 2.0 + i for i, name in enumerate(calls)})
    table = small.terms()
    names = ["GAP-FC", "SAOL", "SAOL + L_SS1", "SAOL + L_SS2", "SAOL + L_SS", "SAOL + L_SS + L_SD"]
    passes = ["second pass over the sources", "second pass over the batch"]
    assert list(table.index) == [*names, *(f"SAOL + L_SS + L_SD, {one}" for one in passes)]
    assert small.measured["step of saol_cutmix_ss_sd / gap_fc_cutmix"] == 3.5
    assert small.measured["step of full, second pass over the batch / gap_fc_cutmix"] == 4.5


def test_an_option_costs_what_it_takes_of_the_default(small, monkeypatch):
    monkeypatch.setattr(cost, "steps", lambda configs: dict.fromkeys(configs))
    monkeypatch.setattr(cost, "side_by_side", lambda calls, rounds: {name: 3.0 for name in calls} | {"default": 2.0})
    table = small.options()
    assert table.loc["default"].item() == 1.0 and table.loc["separable"].item() == 1.5
    assert small.measured["step of SAOL with 1x1 kernels / default"] == 1.5


def test_streaming_is_told_as_images_a_second(small, monkeypatch):
    monkeypatch.setattr(cost, "side_by_side", lambda passes, rounds: {"Stream": 2.0, "bare DataLoader": 1.0})
    assert small.streaming(images=4, side=40).ratio.item() == 0.5, "half as fast as the bare one"


def test_a_drag_of_the_explorer_moves_the_patch(small):
    """Both shipped networks answer, from a new place each time."""
    table = small.drag(AttentionExplorer.shipped())
    assert table.index.tolist() == ["digits", "cifar10"]
    assert all(value > 0 for name, value in small.measured.items() if "drop in the explorer" in name)
