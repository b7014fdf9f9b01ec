"""From `make study` over notebook 05 to C14's row of README: the study's own files, made tiny, on noise."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import gate
import numpy as np
import pytest
import run as notebooks
import yaml
from PIL import Image

from saol_lib.evidence import mixed
from saol_lib.evidence.claims import judge
from saol_lib.evidence.readme import Judged, claims_table
from saol_lib.training.files import ROOT
from saol_lib.training.profiles import read_runs
from saol_lib.training.runs import RESULTS, load_runs, save_run
from saol_lib.training.study import run_study

PROFILE = ROOT / "notebooks/profiles/cpu"
NOTEBOOK = ROOT / "notebooks/05_cutmix_attention.ipynb"
TINY = {"train_images": 40, "epochs": 1, "autocast": "none", "batch_size": 10}
ARMS = (["gap_fc"], ["gap_fc_cutmix"], ["saol_cutmix_ss_sd"])
KEPT = {"lr", "mask_source", "arms", "seeds", "teacher"}  # (a), and of (f) one grid that C14 does not read
SEEDS = [0, 1]


def tiny(text):
    """The study's file, or the claims', with small values for what they name first: the study's regime and rates."""
    for name, value in TINY.items():
        text = re.sub(rf"\b{name}: (to be chosen|\w+)", f"{name}: {value}", text, count=1)
    return re.sub(r"&(\w+_rate) (to be chosen|[\d.]+)", r"&\1 0.05", text)


def tiny_study(results):
    study = yaml.safe_load(tiny((PROFILE / "study.yaml").read_text()))
    grids = [grid for grid in study["grids"] if grid["arms"] in ARMS and set(grid) <= KEPT]
    return study | {"results": str(results), "grids": [grid | {"seeds": SEEDS} for grid in grids]}


def write_pictures(root):
    """CIFAR-10 as an image tree: six training and six test pictures a class, noise."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the pictures, the study's file, the claims, and the study as `make study` trains it."""
    home = tmp_path_factory.mktemp("study")
    write_pictures(home / "cifar10")
    results = home / "results" / "study"
    plan = home / "profiles" / "cpu" / "study.yaml"
    plan.parent.mkdir(parents=True)
    plan.write_text(yaml.safe_dump(tiny_study(results)))
    results.mkdir(parents=True)
    claims = tiny((RESULTS / "claims.yaml").read_text())
    (home / "results" / "claims.yaml").write_text(claims.replace("seeds: 12", f"seeds: {len(SEEDS)}"))

    configs, place = read_runs(plan, str(home / "cifar10"))
    runs = run_study(configs, place, ThreadPoolExecutor(1), progress=False, in_order=True)
    assert [run.status for run in runs] == ["finished"] * 10, [run.error for run in runs]
    let_cutmix_gain(runs, results)
    return home


def let_cutmix_gain(runs, results):
    """C14's control is not what is tested here: without CutMix GAP-FC is made five points worse."""
    with_cutmix = {run.config["seed"]: run for run in runs if run.config["arm"] == "gap_fc_cutmix"}
    for run in runs:
        if run.config["arm"] == "gap_fc":
            seed = run.config["seed"]
            worse = with_cutmix[seed].metrics["top1_gap_last"] - 5 - seed / 100
            save_run(results, run._replace(metrics=run.metrics | {"top1_gap_last": worse}))


def networks(home, data=True):
    data_dir = str(home / "cifar10") if data else None
    arms = gate.defaults(gate.read(NOTEBOOK))["arms"]
    return mixed.study_networks(str(home / "profiles" / "cpu"), "resnet-8", arms, data_dir)


def row(home, claim):
    """The claim's row of README."""
    lines = claims_table(Judged(home / "results")).splitlines()
    (line,) = [line for line in lines if line.startswith(f"| [{claim}]")]
    return line.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def measured(home):
    """The same folder after notebook 05 in the cpu profile; its executed copy lies beside the study."""
    assert "**not run**" in row(home, "C14")
    known = gate.defaults(gate.read(NOTEBOOK))
    values = gate.profile_values(PROFILE / "05.yaml", known)
    own = {
        "results": str(home / "results" / "study"),
        "study": str(home / "profiles" / "cpu"),
        "data_dir": str(home / "cifar10"),
    }
    failure = notebooks.run(NOTEBOOK, values | own, home / "05.ipynb")
    assert failure is None, failure
    return home


def test_the_notebook_measures_the_networks_of_the_study(measured):
    measures = load_runs(measured / "results/study", folder="measures")
    found = {(one.config["arm"], one.config["mask_source"], one.config["method"]) for one in measures}
    both = {("saol_cutmix_ss_sd", reading, method) for reading in ("branch", "attention") for method in ("saol", "cam")}
    assert found == {("gap_fc_cutmix", "branch", "cam"), *both}
    assert len(measures) == 5 * len(SEEDS)
    assert {one.config["teacher"] for one in measures} == {"constant"}, "(f) is not mixed with (a)"

    text = (measured / "05.ipynb").read_text()
    assert "6 of the 6 networks of the study" in text and "all of their weights are here." in text
    assert "60 pairs; the patch covers" in text
    figures = {path.name for path in (measured / "results/study/figures").iterdir()}
    assert figures == {"05_pairs.png", "05_pairs.svg", "05_shares.png", "05_shares.svg"}


def test_the_claims_row_has_what_the_notebook_measured(measured):
    ledger = Judged(measured / "results").ledger
    found, _ = judge(ledger, "cpu", measured / "results")["C14"]
    assert [one.pairs for one in found] == [len(SEEDS)] * 6
    assert all(one.complete for one in found)

    numbers = {}
    for path in (measured / "results/study/measures").glob("saol_cutmix_ss_sd-*.json"):
        one = json.loads(path.read_text())
        if one["config"]["method"] == "saol":
            numbers[one["config"]["mask_source"], one["config"]["seed"]] = one["metrics"]
    for one in found:
        names = one.test.a.metric, one.test.b.metric
        own = [numbers[one.test.reading, seed] for seed in SEEDS]
        assert one.comparison.differences == pytest.approx([each[names[0]] - each[names[1]] for each in own])

    line = row(measured, "C14")
    assert line.count(f"n = {len(SEEDS)}") == 6 + 2, "the tests, and GAP-FC's CAM beside them"
    assert not re.search(r"\*\*(not|incomplete)", line), line


@pytest.fixture
def without_weights(measured, tmp_path):
    """A clone: the study's files are there, its weights are not."""
    results = tmp_path / "results"
    shutil.copytree(measured / "results", results, ignore=shutil.ignore_patterns("checkpoints"))
    plan = tmp_path / "profiles" / "cpu" / "study.yaml"
    plan.parent.mkdir(parents=True)
    plan.write_text(yaml.safe_dump(tiny_study(results / "study")))
    (tmp_path / "cifar10").symlink_to(measured / "cifar10")
    return tmp_path


def test_one_measure_less_is_one_pair_less(without_weights):
    measures = without_weights / "results/study/measures"
    by_saol = [path for path in measures.glob("saol*-s1-*") if '"method": "saol"' in path.read_text()]
    by_saol[0].unlink()
    line = row(without_weights, "C14")
    assert line.count(f"n = 1 of {len(SEEDS)}") == 3 and line.count(f"n = {len(SEEDS)}") == 3 + 2
    assert f"**incomplete (3 of 6 tests complete; of another 1 of {len(SEEDS)} seeds)**" in line


def test_without_weights_what_was_measured_is_shown(measured, without_weights):
    here = networks(without_weights)
    assert here.words == (
        "6 of the 6 networks of the study that are measured here are finished, and weights of none are here "
        "(they are not in git); of the rest what was measured before is shown."
    )
    assert mixed.draw_all_pairs(here) is None and here.here == []
    table = mixed.pair_table(here)
    assert len(table) == 5 * len(SEEDS)
    assert table.equals(mixed.pair_table(networks(measured)))


def test_without_data_what_was_measured_is_shown(measured):
    here = networks(measured, data=False)
    assert here.words.endswith("are finished; DATA is not given, so what was measured before is shown.")
    assert mixed.draw_all_pairs(here) is None
    assert len(mixed.pair_table(here)) == 5 * len(SEEDS)


def test_before_the_study_it_is_said_that_it_has_not_run(without_weights):
    shutil.rmtree(without_weights / "results/study")
    here = networks(without_weights)
    assert here.words.startswith("The study has not been run yet: none of the networks that are measured here is in ")
    assert here.runs == here.here == []
    assert mixed.pair_table(here).empty


def test_before_the_study_the_demonstration_is_shown(monkeypatch):
    monkeypatch.setattr(mixed, "finished", lambda study: [])
    here = mixed.study_networks("cpu", "resnet-8", ["gap_fc_cutmix", "saol_cutmix_ss_sd"])
    assert here.words.endswith("is in results/study; what follows is the demonstration in results/cpu.")
    assert {run.config["eval_split"] for run in here.runs} == {"held_out"}
    assert len(mixed.pair_table(here)) > 0


def test_a_profile_without_a_study_is_refused():
    with pytest.raises(ValueError, match=r"notebooks/profiles/shakedrop has no study\.yaml"):
        mixed.study_networks("shakedrop", "resnet-8", ["saol"])
