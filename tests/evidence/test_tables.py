"""The one table of runs, and what is written from it."""

import json

import pytest
from made_runs import gap, make

from saol_lib.evidence.claims import Claim, Found, Plan, Side
from saol_lib.evidence.claims import Test as ClaimTest
from saol_lib.evidence.statistics import describe
from saol_lib.evidence.tables import (
    ARMS_IN_WORDS,
    VARIANTS,
    above_chance,
    accuracies,
    caveat,
    effects_table,
    faults,
    glossary,
    lead,
    paired,
    runs_tables,
    summary,
)
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import save_run


def delta(table, arm, **where):
    part = table[table.arm == arm]
    for name, value in where.items():
        part = part[part[name] == value]
    return part.sort_values("seed").delta.tolist()


def test_every_arm_is_explained_in_words():
    assert set(ARMS_IN_WORDS) == set(ARMS)
    assert glossary().count("\n") == len(ARMS) + 1
    assert set(VARIANTS) <= set(RunConfig().identity())


def test_an_arm_is_held_against_gap_fc_of_its_seed_and_regime_with_its_own_rate_and_options():
    runs = gap([70.0, 71.0], lr=0.2) + make([72.0, 74.0], lr=0.1) + make([73.0, 73.5], blocks=1, lr=0.1)
    runs += make([60.0, 62.0], "gap_fc_cutmix", "top1_gap_last", lr=0.4) + make([61.0, 61.0], "saol_cutmix", lr=0.1)
    table = paired(runs)
    assert delta(table, "saol", variant="") == [2.0, 3.0]
    assert delta(table, "saol", variant="blocks 1") == [3.0, 2.5]
    assert delta(table, "saol_cutmix") == [1.0, -1.0]
    assert table.setting.nunique() == 1


def test_where_gap_fc_has_several_rates_pairs_share_theirs():
    runs = gap([70.0], lr=0.2) + gap([60.0], lr=0.1) + make([71.0], lr=0.1) + make([72.0], lr=0.2)
    table = paired(runs).set_index(["arm", "lr"]).delta
    assert table["saol", 0.1] == 11.0 and table["saol", 0.2] == 2.0


@pytest.mark.parametrize("change", [{"epochs": 7}, {"origin": {"sources": "other"}}, {"origin": {"data": "other"}}])
def test_pairs_never_cross_settings_sources_or_data(change):
    table = paired(gap([70.0]) + make([72.0], **change))
    assert table.setting.nunique() == 2 and table[table.arm == "saol"].delta.isna().all()


def test_rates_that_were_tried_in_one_setting_do_not_part_the_pairs_of_another():
    study = gap([70.0, 71.0], lr=0.1) + make([72.0, 74.0], lr=0.4)
    tried = [run for lr in (0.1, 0.2) for run in gap([60.0, 61.0], lr=lr, eval_split="held_out", train_images=900)]
    table = paired(study + tried)
    assert table[table.arm == "saol"].delta.tolist() == [2.0, 3.0]


def test_two_runs_of_one_arm_and_seed_are_refused():
    with pytest.raises(ValueError, match="two runs of arm saol share a seed"):
        paired(make([1.0]) + make([2.0]))


def test_runs_tables_show_every_seed_both_epochs_and_the_paired_difference(tmp_path):
    for run in make([72.0, 74.0]) + gap([70.0, 71.0, 10.0]):
        save_run(tmp_path / "cpu", run)
    save_run(tmp_path / "cpu", make([1.0] * 3, status="failed")[2])
    text = runs_tables("cpu", tmp_path)
    assert "| `saol`, SAOL | 0.1 | 73.00 (0: 72.00, 1: 74.00) | 74.00 | +2.50 (0: +2.00, 1: +3.00) |" in text
    assert "| `gap_fc`, GAP-FC | 0.1 | 50.33 (0: 70.00, 1: 71.00, 2: 10.00) | 51.33 | – |" in text
    assert "dataset: digits" in text and "; 2.5 h of training" in text and "| 1.00" not in text
    assert runs_tables("paper", tmp_path) == "not run yet"


def test_changing_one_number_changes_the_table(tmp_path):
    for run in make([72.0, 74.0]) + gap([70.0, 71.0]):
        save_run(tmp_path / "cpu", run)
    before = runs_tables("cpu", tmp_path)
    (path,) = (tmp_path / "cpu" / "runs").glob("gap_fc-s1-*.json")
    entry = json.loads(path.read_text())
    entry["metrics"]["top1_gap_last"] = 71.01
    path.write_text(json.dumps(entry))
    after = runs_tables("cpu", tmp_path)
    assert "1: +2.99" in after and "1: +2.99" not in before


def test_summary_has_a_line_for_runs_of_which_only_the_seed_differs():
    lines = summary(make([72.0, 74.0]) + make([60.0], epochs=7)).splitlines()
    assert lines[1].split() == ["arm", "epochs", "top1_gap_last", "top1_saol_last", "runs"]
    assert lines[2].split() == ["saol", "4", "-", "73.0", "2"] and lines[3].split() == ["saol", "7", "-", "60.0", "1"]
    assert len(summary(make([72.0]) + make([60.0], logit_width=10)).splitlines()) == 4, "None is a value, too"
    assert summary([]) == "Arms: no finished run"


def test_effects_are_told_in_the_direction_claimed():
    side = Side("", "", {})
    up, down = ClaimTest("up", side, side, "", 3), ClaimTest("down", side, side, "", 8, "lower")
    tests = (up, down, ClaimTest("unrun", side, side, "", 3))
    claim = Claim("C", "", "", "", Plan(tests, 3), smallest_effect=0.5)
    deltas = ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    found = [Found(test, describe(values)) for test, values in zip(tests, deltas, strict=False)] + [
        Found(tests[2], None)
    ]
    table = effects_table([claim], {"C": found})
    assert table.test.tolist() == ["up", "down"] and table["mean"].tolist() == [2.0, 2.0]
    assert (table.low < table["mean"]).all() and table.smallest.tolist() == [0.5, 0.5]
    assert table.n.tolist() == [3, 3] and table.planned.tolist() == [3, 8]
    assert effects_table([claim._replace(margin=1.0)], {"C": found}).smallest.tolist() == [-1.0, -1.0]


# --- what notebooks show ----------------------------------------------------------------------------------------------


def test_runs_of_another_setting_have_rows_of_their_own():
    arm = {"arm": "saol_cutmix_ss_sd"}
    runs = make([70.0, 72.0, 71.0], **arm) + make([60.0], **arm, cutmix_schedule="batch")
    runs += make([50.0], **arm, cutmix_schedule="batch", teacher="trained")
    told = accuracies(paired(runs))["top-1"].droplevel([0, 2]).to_dict()
    name = "SAOL + L_SS + L_SD"
    other = "cutmix_schedule batch"
    assert told == {name: 71.0, f"{name} ({other})": 60.0, f"{name} (teacher trained, {other})": 50.0}


def test_accuracies_are_means_with_each_seeds_distance_to_its_own_gap_fc():
    runs = gap([70.0, 71.0]) + make([72.0, 75.0]) + make([60.0, 61.0], blocks=1)
    table = accuracies(paired(runs))
    row = table.loc[("without CutMix", "SAOL", "SAOL")]
    assert row["top-1"] == 73.5 and row["above GAP-FC"] == 3.0 and row["each seed"] == "+2.0, +4.0"
    assert row["best epoch"] == 74.5 and row.spread == 2.1
    assert table.loc[("without CutMix", "GAP-FC", "GAP-FC"), "each seed"] == "–"
    assert ("without CutMix", "SAOL (blocks 1)", "SAOL") in table.index
    assert accuracies(paired([])) == "*Not run yet.*"


def test_accuracies_are_in_the_order_of_the_arms_and_defaults_come_first():
    runs = make([60.0], blocks=1) + make([72.0]) + make([50.0], "saol_cutmix") + gap([70.0])
    order = accuracies(paired(runs)).index.tolist()
    assert [names[1] for names in order] == ["GAP-FC", "SAOL", "SAOL (blocks 1)", "SAOL"]
    assert [names[0] for names in order] == ["without CutMix"] * 3 + ["with CutMix"]


def test_a_lead_is_told_for_each_regime():
    runs = gap([70.0, 71.0]) + make([72.0, 70.0]) + make([50.0], "gap_fc_cutmix", "top1_gap_last")
    table = paired(runs + make([49.0], "saol_cutmix"))
    told = lead(table, "SAOL", "SAOL")
    assert told == "+0.5 points without CutMix (1 of 2 seeds above), -1.0 points with CutMix (0 of 1 seeds above)"
    assert lead(table, "ABN", "GAP-FC") == "not run yet"


def test_few_seeds_are_called_a_demonstration():
    assert caveat(paired([])) == "Nothing has run yet."
    assert "decides nothing" in caveat(paired(gap([70.0] * 5)))
    assert caveat(paired(gap([70.0] * 6))).startswith("6 paired seeds")
    unequal = caveat(paired(gap([70.0] * 12) + make([72.0] * 2)))
    assert unequal.startswith("2 to 12 seeds an arm: those with fewer than 6 decide nothing")


def test_failed_runs_and_chance():
    assert faults(make([1.0])) == [] and "failed" in faults(make([1.0], status="failed"))[0]
    assert above_chance(10, 900) == pytest.approx(15.0)
    assert above_chance(10, 900, times=3) == pytest.approx(35.0)
