"""The paper profile: exactly the runs that the claims read, one recipe a network, heads that say it all."""

import argparse
import re
import shlex
from collections import defaultdict
from dataclasses import asdict
from functools import cache

import pytest
import run as notebooks
import yaml

from saol_lib.evidence import claims, configs_of, stages_of
from saol_lib.training import __main__ as shell
from saol_lib.training.profiles import experiments, read_runs, study_configs
from saol_lib.training.runs import RESULTS, ROOT, Run, run_id

PROFILE = ROOT / "notebooks" / "profiles" / "paper"
HEAD = ("NEVER run.", "For: ", "# Counted by make dryrun: ", "# One GPU", "# Slurm: sbatch ")
HEAD += ("# Then its notebooks, from the finished runs: make replicate PROFILE=paper ONLY=",)
RECIPE = ("epochs", "batch_size", "lr", "schedule", "milestones", "gamma", "warmup_epochs", "weight_decay", "decay")
RECIPE += ("clip_norm", "momentum", "accumulate", "autocast", "cutmix_probability", "cutmix_alpha", "eval_split", "pad")


@cache
def runs_of(name):
    return read_runs(PROFILE / f"{name}.yaml")[0]


@cache
def profile():
    found = {}
    for path in experiments("paper"):
        for config in runs_of(path.stem):
            found.setdefault(run_id(config.identity()), config)
    return found


def test_every_test_at_the_papers_scale_has_exactly_its_runs():
    """Of every side and seed one run, no more and no less, as `claims` itself chooses them."""
    ledger = yaml.load((RESULTS / "claims.yaml").read_text(), claims.LOADER)
    settings = ledger["settings"] | dict.fromkeys(claims.MEASURED)
    identities = [config.identity() for config in profile().values()]
    tests = 0
    for entry in [*ledger["claims"], *ledger["controls"]]:
        for test in claims._claim(entry, settings).paper.tests:
            assert test.results == "paper"
            for side in (test.a, test.b):
                measured = {name: side.where[name] for name in claims.MEASURED if side.where.get(name)}
                runs = [Run(identity | measured, {}, [], {}, "finished") for identity in identities]
                found = claims._select(side, test.seeds, runs)
                assert sorted(found) == list(range(test.seeds)), (entry["id"], test.label, side)
            tests += 1
    assert tests > 40


def test_what_is_compared_differs_in_nothing_else():
    """One recipe for each network, data set and start, whatever the arm and the file."""
    recipes = defaultdict(set)
    for config in profile().values():
        start = bool(config.start), config.pretrained
        recipes[config.dataset, config.backbone, *start].add(tuple(str(getattr(config, name)) for name in RECIPE))
    assert {key: len(found) for key, found in recipes.items() if len(found) > 1} == {}


def test_the_families_arms_and_seeds_that_were_asked_for():
    cifar = {(c.dataset, c.backbone) for c in profile().values() if c.dataset.startswith("cifar")}
    families = ("resnet-110", "wrn-28-10", "wrn-40-2", "densenet-bc-100-12", "pyramidnet-bn-200-240")
    families += ("pyramidnet-bn-shakedrop-200-240",)
    assert cifar == {(data, name) for data in ("cifar10", "cifar100") for name in families}
    for data, name in cifar:
        arms = {(c.arm, c.seed) for c in profile().values() if (c.dataset, c.backbone) == (data, name)}
        plain = {"gap_fc", "saol", "saol_sd", "gap_fc_cutmix", "saol_cutmix", "saol_cutmix_sd", "saol_cutmix_ss_sd"}
        assert arms >= {(arm, seed) for arm in plain for seed in range(5)}
    imagenet = {(c.backbone, c.pretrained) for c in profile().values() if c.dataset == "imagenet"}
    three = ("resnet50", "resnet101", "resnext50_32x4d")
    assert imagenet == {*((name, given) for name in three for given in (True, False))} | {
        ("resattnet56", False),
        ("resattnet92", False),
    }


@pytest.mark.parametrize("name", ["wsol-imagenet", "wsol-cub"])
def test_localisation_goes_on_from_its_own_runs_as_it_is_and_doubled(name):
    configs = runs_of(name)
    known = {run_id(config.identity()): config for config in configs}
    again = [config for config in configs if config.start]
    assert len(configs) == 33 and len(again) == 21 and sum(config.enlarge for config in again) == 9
    for config in again:
        first = known[config.start]
        assert (first.arm, first.seed, first.mask_source) == (config.arm, config.seed, config.mask_source)
        assert first.start is None and not config.pretrained and config.epochs < first.epochs
    assert not any(config.enlarge for config in again if "abn" in config.arm)  # 14x14 as it is


def test_localisation_and_ablations_share_their_first_runs_with_the_tables():
    table, wsol = ({run_id(c.identity()) for c in runs_of(name)} for name in ("imagenet-resnet50", "wsol-imagenet"))
    assert {run_id(c.identity()) for c in runs_of("wsol-imagenet") if not c.start} <= table and len(wsol - table) == 21
    shared = {run_id(c.identity()) for c in runs_of("cifar10-ablations")}
    assert len(shared & {run_id(c.identity()) for c in runs_of("cifar10-wrn")}) == 5  # saol_cutmix_ss_sd


def test_each_choice_differs_from_its_arm_in_one_option():
    plain = {(c.arm, c.seed): asdict(c) for name in ("cifar10-wrn", "cifar10-ablations") for c in runs_of(name)
             if c.blocks == 3 and c.mask_source == "branch"}  # fmt: skip
    for config in runs_of("cifar10-choices"):
        beside = plain[config.arm, config.seed]
        changed = [name for name, value in asdict(config).items() if value != beside[name]]
        assert len(changed) == 1, (config.arm, changed)


def test_heads_say_what_where_from_and_how():
    for path in experiments("paper"):
        text = path.read_text()
        head = text[: text.index("results:")]
        assert all(line.startswith("#") for line in head.splitlines())
        missing = [words for words in HEAD if words not in head]
        assert not missing, (path.name, missing)
        assert head.count(f"ONLY={path.stem} ") == 2 and f"slurm.sh {path.stem} DIR" in head
        assert re.search(r"(Given|inferred|Inferred|ours|Ours|recipe is that of)", head), path.name
        assert max(map(len, text.splitlines())) <= 132, path.name


def test_what_would_be_another_run_over_several_gpus_is_refused():
    options = argparse.Namespace(processes=8, workers=None, per_gpu=1)
    (first, *_) = runs_of("cifar10-shakedrop")
    with pytest.raises(ValueError, match="processes=8: pyramidnet-bn-shakedrop-200-240 draws in every process"):
        shell._placed(first, options)
    (first, *_) = runs_of("cifar10-wrn")
    assert shell._placed(first, options).processes == 8
    assert shell._placed(first, argparse.Namespace(processes=None, workers=3, per_gpu=1)).workers == 3


def test_the_job_for_slurm_asks_for_what_the_command_takes():
    text = (PROFILE / "slurm.sh").read_text()
    assert "--signal=B:TERM@" in text, "the batch shell alone hands the signal on"
    words = re.search(r"-m saol_lib.training study (.*) \"\$\{@:3\}\"", text)[1]
    options = shell._study_options().parse_args(shlex.split(words.replace("$1", "cifar10-wrn").replace("$2", "DIR")))
    assert options.leave and (options.profile, options.only, options.data) == ("paper", "cifar10-wrn", "DIR")


def test_one_experiment_is_named_and_changed_from_a_shell():
    configs, results = study_configs("paper", "DIR", only="cifar10-wrn40", changes={"epochs": 1, "seeds": [0]})
    assert results == "results/paper" and len(configs) == 7
    assert {(c.backbone, c.epochs, c.seed, c.data_dir) for c in configs} == {("wrn-40-2", 1, 0, "DIR")}
    with pytest.raises(ValueError, match=r"has no file cifar10-wrn41.yaml; choose one of .* cifar10-ablations, "):
        study_configs("paper", only="cifar10-wrn41")


def test_every_experiment_is_shown_by_a_notebook_on_its_own_runs():
    jobs = [job for job in notebooks.plan("paper", data=PROFILE) if notebooks.experiment_of(job)]
    shown = defaultdict(set)
    for job in jobs:
        shown[notebooks.experiment_of(job)].add(job.copy[:2])
        configs = configs_of(job.parameters)
        assert {run_id(config.identity()) for config in configs} <= profile().keys(), job.copy
        assert job.parameters["results"] == "results/paper" and job.parameters["data_dir"] == str(PROFILE)
    assert shown.keys() == {path.stem for path in experiments("paper")}
    assert shown["cifar10-wrn"] == {"01", "05"} and shown["wsol-cub"] == {"02", "03"}
    assert len(study_configs("paper")[0]) == len(profile()), "a notebook names no run of its own"


def test_notebook_05_shows_what_c14_reads():
    (job,) = notebooks.plan("paper", only="05")
    arms = [(config.arm, config.mask_source) for config in configs_of(job.parameters | {"data_dir": None})]
    read = ("gap_fc_cutmix", "branch"), ("saol_cutmix_ss_sd", "branch"), ("saol_cutmix_ss_sd", "attention")
    assert sorted(arms) == sorted(5 * read)


def test_notebook_04_shows_an_experiment_beside_what_it_is_held_against():
    jobs = {notebooks.experiment_of(job): job for job in notebooks.plan("paper", only="04")}
    names = [
        run_id(config.identity()) for config in configs_of(jobs["cifar10-choices"].parameters | {"data_dir": None})
    ]
    both = [*runs_of("cifar10-choices"), *runs_of("cifar10-wrn")]
    assert names == [run_id(config.identity()) for config in both]


def test_localisation_is_shown_by_stages():
    (job,) = [job for job in notebooks.plan("paper", only="wsol-cub") if job.copy.startswith("03")]
    stages = stages_of(job.parameters | {"data_dir": None})
    assert {name: len(configs) for name, configs in stages.items()} == {
        "trained": 0,
        "fine-tuned": 12,
        "continued": 12,
        "enlarged": 9,
    }
    before, after = stages["fine-tuned"], stages["enlarged"]
    assert {config.start for config in after} <= {run_id(config.identity()) for config in before}
