"""What notebook 02 shows, from made runs."""

import pytest
from made_runs import gap, make

from saol_lib.evidence.claims import OPEN, load_claims
from saol_lib.evidence.claims import _fits as fits
from saol_lib.evidence.finetuned import (
    enlargement,
    network_name,
    stage_effects,
    stage_numbers,
    stage_plan,
    stage_result,
    stage_table,
)
from saol_lib.training import ROOT, notebook_runs
from saol_lib.training.config import RunConfig, grid


@pytest.fixture
def finished():
    both = {"arm": "saol_cutmix_ss_sd"}
    start = {"start": "saol_cutmix_ss_sd-s0-0123456789"}
    return {
        "trained": [],
        "fine-tuned": [
            *make([70.0, 72.0], arm="gap_fc_cutmix", metric="top1_gap_last"),
            *make([71.0, 71.0], **both),
            *make([69.0, 70.0], mask_source="attention", **both),
        ],
        "continued": make([75.0, 76.0], **both, **start),
        "enlarged": make([74.0, 77.0], enlarge=True, **both, **start),
    }


def test_networks_are_told_apart_by_what_is_different():
    full = {"arm": "saol_cutmix_ss_sd"}
    assert network_name({"arm": "gap_fc"}) == "GAP-FC" and network_name({"arm": "abn_cutmix"}) == "ABN + CutMix"
    assert network_name(full) == "SAOL, all losses (mask: branch)"
    assert network_name(full | {"mask_source": "attention"}).endswith("(mask: attention)")
    assert network_name({"arm": "saol", "class_softmax": "image"}) == "SAOL (class softmax per image)"


def test_a_plan_has_a_row_a_stage_and_network():
    both = grid(["gap_fc", "saol"], [0, 1])
    plan = stage_plan({"trained": [], "fine-tuned": both, "continued": both[2:]})
    rows = [("fine-tuned", "GAP-FC"), ("fine-tuned", "SAOL"), ("continued", "SAOL")]
    assert plan.index.tolist() == rows and set(plan["seed numbers"]) == {"0, 1"}


def test_distances_are_to_gap_fc_of_the_same_stage_and_seed(finished):
    shown = stage_numbers(stage_table(finished))
    branch = shown.loc[("fine-tuned", "SAOL, all losses (mask: branch)", "SAOL")]
    assert list(branch) == ["71.0", "+0.0", "+1.0, -1.0", "72.0"]
    by_attention = shown.loc[("fine-tuned", "SAOL, all losses (mask: attention)", "SAOL")]
    assert by_attention["each seed"] == "-1.0, -2.0"
    assert shown.loc[("fine-tuned", "GAP-FC + CutMix", "GAP-FC"), "each seed"] == "–"
    assert (shown.loc["continued"]["against GAP-FC"] == "–").all(), "no GAP-FC went on: nothing to be held against"


def test_the_figure_gets_a_row_an_effect_and_a_column_a_seed(finished):
    effects = stage_effects(stage_table(finished))
    assert effects.to_numpy().tolist() == [[1.0, -1.0], [-1.0, -2.0]] and list(effects.columns) == [0, 1]


def test_the_sentences_say_both_signs(finished):
    gains, doubling = stage_result(stage_table(finished))
    assert "(mask: attention) -1.5 (SAOL read, 0 of 2 seeds above)" in gains
    assert "(mask: branch) +0.0 (SAOL read, 1 of 2 seeds above)" in gains
    assert doubling.endswith("(mask: branch) +0.0 (SAOL read).")
    only = {"fine-tuned": gap([1.0, 2.0])}
    assert stage_result(stage_table(only)) == ("No network was held against GAP-FC.", "No output was doubled.")


def test_enlarging_doubles_x_l_and_costs_more():
    table = enlargement([RunConfig(backbone="resnet-8-8", arm=arm) for arm in ("gap_fc", "saol", "abn")])
    assert list(table["X_L"]) == ["8 x 8", "16 x 16", "16 x 16"]
    assert table["M multiply-adds"].is_monotonic_increasing and table["M multiply-adds"].iloc[0] > 0


def test_the_imagenet_profile_has_the_runs_that_the_claims_read():
    """With the values that are still to be chosen filled in from the profile, every side has its eight seeds."""
    configs, folder = notebook_runs(ROOT / "notebooks/profiles/imagenet/02.yaml")
    assert folder == "results/imagenet"
    measured_on, place = notebook_runs(ROOT / "notebooks/profiles/imagenet/03.yaml")
    assert (measured_on, place) == (configs, folder), "notebook 03 would train networks of its own"
    tests = [test for claim in load_claims().claims for test in claim.cpu.tests if test.results == "imagenet"]
    assert len(tests) == 2 + 6 + 2 + 4, "C6, C12a, C13, C15"
    for test in tests:
        for side in (test.a, test.b):
            wanted = {name: value for name, value in side.where.items() if value != OPEN}
            measured = {"measure": "localization", "method": wanted["method"]} if wanted["method"] else {}
            found = [c.seed for c in configs if fits(c.identity() | measured, wanted)]
            assert sorted(found) == list(range(8)), (test.label, side)
