"""The study's file and the claims: every run that a claim reads is planned, and neither file can say something else."""

import re

import gate
import pytest

from saol_lib.evidence.claims import MEASURED, _fits, load_claims
from saol_lib.evidence.mixed import is_measured
from saol_lib.training.files import ROOT
from saol_lib.training.profiles import OPEN, read_runs, study_configs
from saol_lib.training.runs import RESULTS, run_id

PLAN = ROOT / "notebooks/profiles/cpu/study.yaml"
CLAIMS = RESULTS / "claims.yaml"
RATES = ("gap_rate", "gap_cutmix_rate", "saol_rate", "saol_cutmix_rate", "sd_rate", "sd_cutmix_rate")
REGIME = {"train_images": 4000, "epochs": 7, "autocast": "bfloat16"}


def made_up(text):
    """What is still to be chosen filled in: another number for each, the same in both files."""
    for number, name in enumerate(RATES, 1):
        text = text.replace(f"&{name} {OPEN}", f"&{name} {number / 1000}")
    for name, value in REGIME.items():
        text = text.replace(f"{name}: {OPEN}", f"{name}: {value}", 1)  # in claims.yaml other regimes come later
    return text


def still_open(text):
    """The names of the study's values that are not chosen yet."""
    rates = {name for name in RATES if f"&{name} {OPEN}" in text}
    first = {name: re.search(rf"^ *{name}: (.*?)(  #.*)?$", text, re.MULTILINE)[1] for name in REGIME}
    return rates | {name for name, value in first.items() if value == OPEN}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "study.yaml").write_text(made_up(PLAN.read_text()))
    (folder / "claims.yaml").write_text(made_up(CLAIMS.read_text()))
    configs, results = read_runs(folder / "study.yaml")
    ledger = load_claims(folder / "claims.yaml")
    assert results == "results/study"
    return configs, [*ledger.claims, *ledger.controls.values()]


def test_both_files_wait_for_the_same_values():
    assert still_open(PLAN.read_text()) == still_open(CLAIMS.read_text())


def test_the_study_has_exactly_the_runs_that_each_claim_reads(planned):
    configs, claims = planned
    identities = [config.identity() for config in configs]
    tests = [(claim.id, test) for claim in claims for test in claim.cpu.tests if test.results == "study"]
    expected = {"C1", "C2", "C3", "C4", "C5", "C7b", "C8", "C9", "C10", "C11", "C14", "CutMix"}
    assert {name for name, _ in tests} == expected
    for name, test in tests:
        for side in (test.a, test.b):
            wanted = {key: value for key, value in side.where.items() if key not in MEASURED}
            seeds = sorted(identity["seed"] for identity in identities if _fits(identity, wanted))
            assert [seed for seed in seeds if seed < test.seeds] == list(range(test.seeds)), (name, test.label, side)


def test_what_is_reached_first_decides_first(planned):
    """Each grid is one arm or a few with all of its seeds, the main family before all others; no run stands twice."""
    configs, _ = planned
    names = [run_id(config.identity()) for config in configs]
    assert len(set(names)) == len(names) == 14 * 12 + (2 + 9 + 2 + 2 + 6) * 8
    first = [config.arm for config in configs[:24:12]]
    assert first == ["gap_fc", "saol"] and [config.seed for config in configs[:12]] == list(range(12))
    families = [config.backbone for config in configs]
    assert families[:168] == ["resnet-8"] * 168
    assert {config.eval_split for config in configs} == {"test"}


def test_notebook_05_measures_what_C14_reads_and_its_baseline(planned):
    configs, claims = planned
    notebook = ROOT / "notebooks/05_cutmix_attention.ipynb"
    known = gate.defaults(gate.read(notebook))
    values = known | gate.profile_values(PLAN.with_name("05.yaml"), known)
    assert values["study"] == "cpu" and values["results"] == "results/study"

    identities = [config.identity() for config in configs]
    measured = [one for one in identities if is_measured(one, values["backbone"], values["arms"])]
    (claim,) = [claim for claim in claims if claim.id == "C14"]
    read = []
    for test in claim.cpu.tests:
        wanted = {key: value for key, value in test.a.where.items() if key not in MEASURED}
        read += [one for one in identities if _fits(one, wanted) and one not in read]
    rest = [one for one in measured if one not in read]
    assert len(read) == 2 * 12 and all(one in measured for one in read)
    assert [one["arm"] for one in rest] == ["gap_fc_cutmix"] * 12


def test_the_profiles_study_is_its_file_alone():
    """The notebooks of the profile train demonstrations of their own in another folder."""
    changes = {"lr": 0.1, "train_images": 100, "epochs": 1, "autocast": "none"}
    assert study_configs("cpu", changes=changes) == study_configs("cpu", only="study", changes=changes)
