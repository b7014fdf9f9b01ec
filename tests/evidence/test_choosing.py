"""The pilot's rules, on made-up runs of its own files."""

import pytest

from saol_lib.evidence import choosing, plans
from saol_lib.evidence.choosing import (
    READ,
    Scores,
    best_rate,
    edges,
    precision_chosen,
    precisions,
    rates,
    regime_chosen,
    regimes,
)
from saol_lib.training.files import ROOT
from saol_lib.training.profiles import read_runs
from saol_lib.training.runs import Run, save_run

PILOT = ROOT / "notebooks/profiles/pilot"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The plans of the pilot, with an empty folder of results."""
    known = {"train_images": 5000, "epochs": 60}
    changes = {"rates": known, "precision": known}

    def plan(profile, name="study"):
        return read_runs(PILOT / f"{name}.yaml", changes=changes.get(name))[0], str(tmp_path)

    monkeypatch.setattr(choosing, "planned", plan)
    return tmp_path


def save(place, name, score, wanted=lambda config: True):
    configs, _ = choosing.planned("pilot", name)
    for config in filter(wanted, configs):
        value = score(config)
        metrics = {"top1_gap_last": value, "top1_saol_last": value + 10}
        save_run(place, Run(config.identity(), metrics, [], {}, "finished"))


def test_the_regime_is_the_first_with_a_whole_point(place):
    gains = {(5000, 60): 0.9, (5000, 100): 1.0, (10000, 60): 3.0}

    def score(config):
        gain = gains[config.train_images, config.epochs] if config.arm == "gap_fc_cutmix" else 0.0
        return 64.0 + config.seed + gain

    assert regime_chosen() == "Not decided yet: runs of 5,000 images × 60 epochs are missing."
    save(place, "study", score, lambda config: config.epochs == 60)
    assert regime_chosen() == "Not decided yet: runs of 5,000 images × 100 epochs are missing."
    save(place, "study", score)
    assert regime_chosen().startswith("The regime is **5,000 images × 100 epochs**")
    table = regimes()
    assert table["CutMix gains"].tolist() == ["+0.90", "+1.00", "+3.00"] and set(table.runs) == {"6 of 6"}
    assert table["each seed"].iloc[2] == "0: +3.0, 1: +3.0, 2: +3.0"

    gains |= {(5000, 100): 0.99, (10000, 60): -1.0}
    save(place, "study", score)
    assert "the longest is taken, **10,000 images × 60 epochs**" in regime_chosen()


def test_each_family_takes_its_best_rate_of_the_layer_that_is_read(place):
    assert edges() == "Rates are not decided yet."
    assert set(rates().chosen) == {"not decided yet"} and len(rates()) == len(READ) == 6
    best = dict(zip(READ, (0.1, 0.2, 0.4, 0.2, 0.1, 0.2), strict=True))
    save(place, "rates", lambda config: 60 + config.seed + 5 * (config.lr == best[config.arm]))
    told = "2 of 6 families of arms chose 0.1, 1 of 6 families of arms chose 0.4, an edge of the rates tried: "
    assert edges() == f"{told}**better ones may lie beyond**."
    table = rates()
    assert table.chosen.tolist() == ["0.1 (an edge)", "0.2", "0.4 (an edge)", "0.2", "0.1 (an edge)", "0.2"]
    assert table[0.2].iloc[1] == "65.50 (65.0, 66.0) *" and table[0.1].iloc[1] == "60.50 (60.0, 61.0)"
    assert table[0.2].iloc[3] == "75.50 (75.0, 76.0) *", "SAOL is read"
    assert table[0.1].iloc[4] == "65.50 (65.0, 66.0) *", "GAP-FC of saol_sd is read"


def test_bfloat16_may_be_taken_where_it_changes_less_than_seeds_do(place):
    assert precision_chosen() == "Not decided yet: runs in one of the precisions are missing."
    assert precisions()["bfloat16 changes"].tolist() == ["–", "–"]
    change = {"gap_fc": 0.3, "saol": -0.6}

    def score(config):
        spread = (config.seed - 1) * 0.5  # standard deviation 0.5, so that chance explains 2 * 0.5 * sqrt(2 / 3) = 0.82
        return 70 + spread + change[config.arm] * (config.autocast == "bfloat16")

    save(place, "precision", score)
    table = precisions()
    assert table["bfloat16 changes"].tolist() == ["+0.30", "-0.60"] and set(table.runs) == {"6 of 6"}
    assert table["each seed"].iloc[0] == "0: +0.3, 1: +0.3, 2: +0.3" and table.float32.tolist() == ["70.0", "80.0"]
    told = "it changes an arm's mean by 0.60 points at most, and 0.82 are allowed"
    assert precision_chosen() == f"bfloat16 **may be taken**: {told}."

    change["saol"] = -0.9
    save(place, "precision", score)
    assert precision_chosen().startswith("bfloat16 **may not be taken**")


def test_no_precision_that_changes_a_whole_point_however_wide_the_seeds_lie(place):
    def score(config):
        return 70 + 3 * config.seed + 1.0 * (config.autocast == "bfloat16")

    save(place, "precision", score)
    assert (
        precision_chosen().endswith("by 1.00 points at most, and 1.00 are allowed.") and "may not" in precision_chosen()
    )


def test_of_equal_rates_the_lowest_and_none_while_a_run_is_missing():
    assert best_rate({0.4: Scores(1, {0: 5.0}), 0.1: Scores(1, {0: 5.0})}) == 0.1
    assert best_rate({0.4: Scores(2, {0: 9.0}), 0.1: Scores(2, {0: 5.0, 1: 5.0})}) is None


def test_a_profile_without_such_files_says_where_it_is_chosen():
    assert regimes("cpu") == regimes("quick") == rates("quick") == "*This is chosen in the profile `pilot`.*"
    assert precisions("cpu") == "*This is chosen in the profile `pilot`.*"
    assert regime_chosen("quick") == precision_chosen("quick") == ""
    assert plans.planned("quick") == ([], "")
