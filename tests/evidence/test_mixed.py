"""What notebook 05 measures and shows."""

import pandas as pd
import pytest
import torch
from made_runs import make

from saol_lib.data import load
from saol_lib.evidence import figures, mixed
from saol_lib.evidence.tables import NOT_RUN, caveat
from saol_lib.networks import build_model
from saol_lib.training.config import RunConfig
from saol_lib.training.runs import OtherData, save_run

NUMBERS = {"guess_error": 25.0, "share_slope": 80.0, "attention_slope": 40.0, "own_mass": 60.0, "attention_both": 30.0}


@pytest.fixture
def measured(tmp_path):
    """Two seeds of two readings; SAOL's error is worse than one half, once."""
    runs = make([50.0, 51.0], arm="saol_cutmix_ss_sd")
    by_attention = make([50.0, 51.0], arm="saol_cutmix_ss_sd", mask_source="attention")
    for run, error in zip([*runs, *by_attention], [24.0, 30.0, 20.0, 21.0], strict=True):
        config = run.config | {"measure": "cutmix_pairs", "method": "saol"}
        save_run(tmp_path, run._replace(config=config, metrics=NUMBERS | {"share_error": error}), folder="measures")
    return shown([*runs, *by_attention], tmp_path)


def shown(runs, results):
    """Networks without weights: of these runs is shown what was measured."""
    return mixed.Networks(runs, [], results, None, "")


def test_readings_of_the_mask_are_kept_apart():
    full = {"arm": "saol_cutmix_ss_sd", "mask_source": "attention"}
    assert mixed.reading(full, "saol") == "SAOL, mask by the attention"
    assert mixed.reading(full, "cam") == "its GAP-FC, mask by the attention"
    assert mixed.reading(full | {"arm": "saol_cutmix_sd"}, "saol") == "SAOL", "no L_SS1: nothing predicts a mask"
    assert mixed.reading(full | {"arm": "gap_fc_cutmix"}, "cam") == "GAP-FC"


def test_without_a_saol_and_without_a_measure_the_result_says_so(measured):
    table = mixed.pair_table(measured)
    gap_alone = table.assign(reading="GAP-FC")
    assert mixed.pair_result(gap_alone)[1] == "No SAOL is among them, and so no attention."
    assert "0.40 and not measured" in mixed.pair_result(table.drop(columns="attention_both"))[1]


def test_the_result_holds_every_share_against_one_half(measured):
    table = mixed.pair_table(measured)
    first, second = mixed.pair_result(table)
    assert "against always one half: SAOL 27.0 against 25.0 (better in 1 of 2 seeds); " in first
    assert first.endswith("SAOL, mask by the attention 20.5 against 25.0 (better in 2 of 2 seeds).")
    assert second.endswith(": SAOL 0.40 and 30 %; SAOL, mask by the attention 0.40 and 30 %.")
    numbers = mixed.pair_numbers(table)
    assert numbers.loc["SAOL", "error, each seed"] == "24.0, 30.0"
    assert numbers.loc["SAOL", "A: split"] == "–"


def test_only_measures_of_these_runs_count_and_none_is_told(measured):
    table = mixed.pair_table(shown(measured.runs[:1], measured.results))
    assert table.share_error.tolist() == [24.0]

    empty = mixed.pair_table(shown(make([1.0], arm="saol"), measured.results))
    assert mixed.pair_numbers(empty) == NOT_RUN
    assert mixed.pair_result(empty) == ("No network was measured yet.", "Nothing is known of its attention.")
    assert mixed.pair_faults(empty) == []
    assert caveat(empty) == "Nothing has run yet."


def test_a_network_that_does_not_look_is_a_fault(measured):
    table = mixed.pair_table(measured)
    assert mixed.pair_faults(table) == []
    (fault,) = mixed.pair_faults(table.assign(own_mass=[60.0, 60.0, 50.0, 60.0]))
    assert fault == "SAOL, mask by the attention, seed 0: own_mass is 50.0, not above 50"


def test_pairs_are_chosen_by_area_from_a_seeded_stream():
    share = torch.linspace(0.05, 0.95, 1000)
    chosen = mixed.chosen_pairs(share)
    assert torch.equal(chosen, mixed.chosen_pairs(share))
    assert (share[chosen] - torch.tensor([0.15, 0.5, 0.85])).abs().max() < 0.02


def test_networks_are_measured_and_drawn(tmp_path):
    config = RunConfig(arm="saol_cutmix_ss_sd", backbone="resnet-8-8", eval_split="held_out", held_out=100)
    fields = {"backbone": config.backbone, "eval_split": "held_out", "held_out": 100}
    (run,) = make([10.0], arm=config.arm, origin={"data": load("digits").fingerprint}, **fields)
    model = build_model("resnet-8-8", 10, seed=0).eval()
    networks = mixed.one_network(run, model, config, tmp_path)

    pairs = mixed.draw_all_pairs(networks)
    assert len(pairs.share) == 100
    assert str(pairs).startswith("100 pairs; the patch covers ")
    assert " over " in pairs.title(0) and "% of " in pairs.title(0)

    mixed.measure_networks(networks, pairs)
    assert set(mixed.pair_table(networks).reading) == {"SAOL", "its GAP-FC"}
    drawn = mixed.share_figure(shown([run], tmp_path))
    assert len(drawn.axes) == 6, "from the measures alone: two readings, three panels"

    figure = mixed.pairs_figure(networks, pairs)
    titles = [tile.get_title() for tile in figure.axes[:6]]
    assert titles[1:] == ["A", "A·Y pasted", "A·Y base", "CAM pasted", "CAM base"]


def test_shares_are_kept_in_ninths_of_the_area():
    share = [0.06, 0.12, 0.13, 0.94]
    table = pd.DataFrame({"share": share, "predicted": [0.1, 0.3, 0.5, 0.9], "attention": float("nan")})
    table = table.assign(own_pasted=0.5, own_base=0.25)
    points = pd.DataFrame(mixed._by_ninth(table))
    shares = points[points.panel.str.startswith("share")].set_index("area")
    assert shares["mean"].to_dict() == {10: 30.0, 90: 90.0}
    assert shares.loc[10, ["low", "high"]].tolist() == [20.0, 40.0]
    assert not points.panel.str.startswith("attention").any()
    masses = points[points.panel.str.startswith("positive")]
    assert set(masses.area) == {10, 90} and masses["mean"].tolist() == [43.75, 31.25]


def test_networks_of_other_data_are_not_measured(tmp_path):
    (run,) = make([10.0], arm="saol_cutmix_ss_sd", origin={"data": "another"})
    config = RunConfig(arm="saol_cutmix_ss_sd", eval_split="held_out", held_out=100)
    with pytest.raises(OtherData, match="computed from other data"):
        mixed.draw_all_pairs(mixed.one_network(run, None, config, tmp_path))


def test_without_weights_the_figure_that_was_saved_is_shown(tmp_path):
    nobody = shown([], tmp_path)
    assert mixed.draw_all_pairs(nobody) is None
    assert mixed.pairs_figure(nobody, None) is None
    mixed.measure_networks(nobody, None)
    assert mixed.share_figure(nobody) is None
    assert figures.kept(None, tmp_path, "05_pairs") == figures.NO_WEIGHTS

    drawn = figures.bars(pd.Series({"a": 1.0}), "a bar")
    assert figures.kept(drawn, tmp_path, "05_pairs") is drawn
    again = figures.kept(None, tmp_path, "05_pairs")
    assert again.data == (tmp_path / "figures" / "05_pairs.png").read_bytes()
