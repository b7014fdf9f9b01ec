"""Steps that turn one part: which runs they take, what they say, and what of a plan is finished."""

import pytest
from made_runs import gap, make

from saol_lib.evidence import ablations
from saol_lib.evidence.ablations import STEPS, Ablations
from saol_lib.evidence.claims import load_claims
from saol_lib.evidence.plans import layers_of, planned, progress
from saol_lib.evidence.tables import NOT_RUN
from saol_lib.training.config import RunConfig, grid
from saol_lib.training.runs import Run, save_run


def test_every_step_names_arms_and_options_that_there_are():
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        for side in (step.a, step.b):
            assert side.layer in layers_of(side.arm)
            for name, value in side.changes.items():
                for one in value if isinstance(value, tuple) else (value,):
                    RunConfig(arm=side.arm, **{name: one})


def test_a_step_pairs_its_own_runs_by_seed():
    runs = gap([70.0, 71.0]) + make([72.0, 74.0]) + make([60.0, 61.0], blocks=1)
    found = Ablations(runs).found
    assert found["SAOL − GAP-FC"].differences == (2.0, 3.0)
    assert found["three blocks − one"].differences == (12.0, 13.0)
    assert set(found) == {"SAOL − GAP-FC", "three blocks − one"}


def test_what_most_runs_have_is_the_rule_and_one_option_the_exception():
    """The pilot's logit branches are all 10 wide but for one arm, 40 wide; in the study it is the other way round."""
    pilot = make([60.0], logit_width=10) + make([50.0], "saol_cutmix", logit_width=10) + make([63.0], logit_width=40)
    assert Ablations(pilot).found["branches 40 − K = 10 wide"].differences == (3.0,)
    assert Ablations(pilot).found["CutMix on SAOL"].differences == (-10.0,)
    study = make([60.0], logit_width=10) + make([50.0], "saol_cutmix") + make([64.0])
    assert Ablations(study).found["branches 40 − K = 10 wide"].differences == (4.0,)
    assert Ablations(study).found["CutMix on SAOL"].differences == (-14.0,)


def test_both_readings_of_the_mask_are_told_apart():
    runs = make([60.0], "saol_cutmix") + make([61.0], "saol_cutmix_ss1")
    runs += make([57.0], "saol_cutmix_ss1", mask_source="attention")
    found = Ablations(runs).found
    assert found["SAOL with CutMix: + L_SS1 (branch)"].differences == (1.0,)
    assert found["SAOL with CutMix: + L_SS1 (attention)"].differences == (-3.0,)


def test_seeds_that_one_side_lacks_are_left_out_and_missing_steps_are_named():
    found = Ablations(gap([70.0, 71.0, 72.0]) + make([72.0, 74.0]))
    assert found.found["SAOL − GAP-FC"].seeds == (0, 1)
    assert "CutMix on SAOL" in found.missing and "SAOL − GAP-FC" not in found.missing
    assert "CutMix on SAOL" in found.not_run()


def test_runs_of_unlike_settings_are_refused():
    with pytest.raises(ValueError, match="differ in epochs"):
        Ablations(gap([70.0], epochs=7) + make([72.0]))


def test_the_table_the_figure_and_the_words_tell_the_same_differences():
    found = Ablations(gap([70.0, 71.0]) + make([72.0, 74.0]))
    row = found.table().loc["SAOL − GAP-FC"]
    assert row["mean"] == "+2.50" and row["each seed"] == "+2.0, +3.0" and row.claim == "C1" and row.pairs == 2
    (axes,) = found.figure().axes
    drawn = [x for part in axes.collections for x, _ in part.get_offsets()]
    assert sorted(drawn) == [2.0, 3.0]
    assert found.in_words("SAOL − GAP-FC", "CutMix on SAOL") == "SAOL − GAP-FC: +2.5 (percentage points)"


def test_the_spread_is_pooled_by_degrees_of_freedom():
    runs = gap([70.0, 70.0, 70.0]) + make([71.0, 72.0, 73.0]) + make([70.0, 74.0], "saol_cutmix")
    spread = Ablations(runs).spread
    assert spread == pytest.approx(((2 * 1.0 + 1 * 4.5) / 3) ** 0.5)
    needed = Ablations(runs).seeds_needed([1.0, 10.0])["paired seeds"]
    assert needed[1.0] > needed[10.0] >= 2


def test_without_runs_everything_says_so():
    none = Ablations([])
    assert none.table() == none.figure() == none.seeds_needed() == NOT_RUN
    assert none.spread is None and none.in_words("SAOL − GAP-FC") == "not run yet"


def test_a_profile_without_a_study_plans_nothing():
    assert planned(None) == ([], "") and planned("no such profile") == ([], "")
    assert "No further runs" in progress([], "")


def test_the_pilot_plans_the_regime():
    configs, results = planned("pilot")
    assert results == "results/pilot" and len(configs) >= 18
    assert {config.arm for config in configs[:6]} == {"gap_fc", "gap_fc_cutmix"}


def test_progress_shows_what_is_finished_and_what_cutmix_gains(tmp_path):
    configs = grid(["gap_fc", "gap_fc_cutmix"], [0, 1], epochs=7) + grid(["gap_fc", "gap_fc_cutmix"], [0], epochs=9)
    for config, top1 in zip(configs[:3], [60.0, 62.0, 63.0], strict=True):
        save_run(tmp_path, Run(config.identity(), {"top1_gap_last": top1}, [], {}, "finished"))
    save_run(tmp_path, Run(configs[4].identity(), {}, [], {}, "failed"))

    table = progress(configs, tmp_path)
    assert table.index.names == ["epochs"]
    first, second = table.loc["7"].iloc[0], table.loc["9"].iloc[0]
    assert first.runs == "3 of 4" and first["GAP-FC, GAP-FC"] == "61.0"
    assert first["GAP-FC with CutMix, GAP-FC"] == "63.0" and first["CutMix gains"] == "+3.0", "over shared seeds"
    assert second.runs == "0 of 2" and set(second[1:]) == {"not run yet"}


def test_settings_that_differ_in_many_fields_are_told_in_words(tmp_path):
    changes = [{}, {}, {"blocks": 1}, {"kernel_size": 1}, {"logit_width": 10}, {"backbone": "wrn-10-2", "blocks": 2}]
    configs = [config for changed in changes for config in grid(["saol"], [0], **({"backbone": "resnet-8"} | changed))]
    save_run(tmp_path, Run(configs[0].identity(), {"top1_saol_last": 60.0}, [], {}, "finished"))
    table = progress(configs, tmp_path)
    assert table.index.tolist() == [
        ("resnet-8", "nothing changed", "SAOL"),
        ("resnet-8", "blocks 1", "SAOL"),
        ("resnet-8", "kernel_size 1", "SAOL"),
        ("resnet-8", "logit_width 10", "SAOL"),
        ("wrn-10-2", "blocks 2", "SAOL"),
    ]
    assert list(table.iloc[0]) == ["2 of 2", "60.0", "–"] and table.iloc[1, 1] == "not run yet"


def test_every_claim_about_ablations_has_its_step():
    ours = [claim for claim in load_claims().claims if claim.notebook.endswith("04_ablations.ipynb")]
    stepped = [step.claim for step in ablations.STEPS]
    assert ours and {claim.id: stepped.count(claim.id) for claim in ours} == {
        claim.id: len(claim.cpu.tests) for claim in ours
    }


def test_options_of_a_step_are_those_of_the_tables():
    assert set(ablations.OPTIONS) <= set(RunConfig().identity())
