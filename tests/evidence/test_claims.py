"""The file of the claims, the runs that it reads, and the rule of the verdicts by hand."""

import re
from dataclasses import replace

import pytest
import yaml
from made_runs import gap, make

from saol_lib.evidence import benchmark, claims, readme
from saol_lib.evidence.claims import Case, Claim, Count, Found, Plan, Side, judge, judge_counts, load_claims, verdicts
from saol_lib.evidence.statistics import describe
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import RESULTS, save_run

TEXT = (RESULTS / "claims.yaml").read_text()
LEDGER = load_claims()
CHOSEN = {"train_images": 5000, "epochs": 60, "autocast": "none", "image_size": 128}


# --- the file ---------------------------------------------------------------------------------------------------------


def test_every_claim_of_the_paper_is_there_at_both_scales():
    names = [claim.id for claim in LEDGER.claims]
    assert {name.rstrip("ab") for name in names} == {f"C{i}" for i in range(1, 16)}
    assert {"C7a", "C7b", "C12a", "C12b"} <= set(names)
    for claim in LEDGER.claims:
        assert bool(claim.counted) != bool(claim.cpu.tests and claim.paper.tests), claim.id
        assert claim.counted or claim.smallest_effect > 0
        assert (RESULTS.parent / claim.notebook).exists()


def test_the_numbers_of_seeds_are_those_that_were_decided():
    twelve = {test.label for claim in LEDGER.claims for test in claim.cpu.tests if test.seeds == 12}
    assert {"ResNet", "ResNet with CutMix", "L_SS2"} <= twelve
    assert {test.seeds for claim in LEDGER.claims for test in claim.cpu.tests} == {8, 12}
    (one,) = [claim for claim in LEDGER.claims if claim.id == "C1"]
    assert [test.seeds for test in one.cpu.tests] == [12, 8, 8]


def test_claims_about_cutmix_name_their_control_and_box_claims_their_readings():
    assert {claim.id for claim in LEDGER.claims if claim.control == "CutMix"} == {"C4", "C9", "C10", "C14"}
    read = {claim.id for claim in LEDGER.claims if len(claim.cpu.groups) == 2}
    assert read == {"C10", "C12a", "C13", "C14", "C15"}
    assert [claim.id for claim in LEDGER.claims if claim.margin is not None] == ["C12a"]


def test_every_arm_metric_and_setting_exists():
    known = RunConfig().identity()
    settings = yaml.load(TEXT, claims.LOADER)["settings"]
    assert {name: known[name] for name in settings} == settings, "not the method's defaults"
    for claim in LEDGER.claims:
        for test in [*claim.cpu.tests, *claim.paper.tests, *claim.cpu.beside, *claim.paper.beside]:
            assert test.a != test.b
            for side in (test.a, test.b):
                assert set(side.where) <= set(known) | {"method", "measure"}
                heads = ARMS[side.arm].heads
                layer = side.metric.removeprefix("top1_").removesuffix("_last")
                measured = side.where["method"] is not None
                assert measured or layer in heads or (layer == "gap" and heads == ("abn",)), (claim.id, side)


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("control: CutMix", "control: MixUp", "C4 names the control 'MixUp'; known are CutMix"),
    ("smallest_effect: 0.5", "smallest: 0.5", "C1 has unknown smallest; known are id, statement"),
    ("direction: lower", "direction: down", "C14 has direction 'down'; expected higher or lower"),
    ("      needs: 3\n", "      needs: 5\n", "C2 needs 5 tests in 1 readings; it has 4 tests in 1"),
    ("id: C2\n", "id: C1\n", "two claims of one id"),
])  # fmt: skip
def test_what_the_file_says_wrong_is_one_sentence(tmp_path, old, new, sentence):
    path = tmp_path / "claims.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        load_claims(path)


# --- the rule ---------------------------------------------------------------------------------------------------------

GAIN, SMALL = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0], [0.2, 0.3, 0.1, 0.2, 0.25, 0.15]
LOSS, WIDE = [-value for value in GAIN], [2.0, -1.0, 1.5, -0.5, 2.5, 0.3]
NO_SIDE = Side("", "", {})


def plan_of(count, needs=None, readings=1, of=None, direction="higher", seeds=6):
    names = of or [None] * count
    tests = tuple(claims.Test(f"t{i}", NO_SIDE, NO_SIDE, "", seeds, direction, names[i]) for i in range(count))
    return Plan(tests, needs or count, readings)


def case(*tests, margin=None, control=(), smallest=0.5, **plan):
    """A claim whose tests have these differences; None: not run."""
    planned = plan_of(len(tests), **plan)
    claim = Claim("C", "", "", "", planned, smallest_effect=smallest, margin=margin)
    found = [
        Found(test, describe(deltas) if deltas else None) for test, deltas in zip(planned.tests, tests, strict=True)
    ]
    return Case(claim, planned, found, control)


def one(*tests, **options):
    return verdicts({"C": case(*tests, **options)})["C"]


@pytest.mark.parametrize(("tests", "options", "word", "direction"), [
    ([GAIN], {}, "supported", "agrees"),
    ([SMALL], {}, "smaller than that", "agrees"),
    ([LOSS], {}, "contradicted", "disagrees"),
    ([WIDE], {}, "inconclusive", "agrees"),
    ([GAIN], {"smallest": 1.01}, "inconclusive", "agrees"),  # above 0 for sure, but not as much as that
    ([GAIN[:5]], {}, "incomplete", "agrees"),
    ([LOSS[:2]], {}, "incomplete", "disagrees"),
    ([GAIN, None], {}, "incomplete", "agrees"),
    ([None, None], {}, "not run", "none"),
    ([GAIN, GAIN, LOSS], {}, "contradicted", "none"),
    ([GAIN, GAIN, LOSS], {"needs": 2}, "supported", "agrees"),
    ([GAIN, LOSS, LOSS], {"needs": 2}, "contradicted", "disagrees"),
    ([GAIN, WIDE, LOSS], {"needs": 2}, "inconclusive", "agrees"),
    ([GAIN, SMALL, LOSS], {"needs": 2}, "smaller than that", "agrees"),
    ([LOSS], {"direction": "lower"}, "supported", "agrees"),
    ([GAIN], {"direction": "lower"}, "contradicted", "disagrees"),
    ([GAIN, LOSS], {"needs": 1, "of": ["x", "y"]}, "supported", "agrees"),  # one reading of two is enough
    ([LOSS, LOSS], {"needs": 1, "of": ["x", "y"]}, "contradicted", "disagrees"),
    ([GAIN, LOSS], {"needs": 1, "of": ["x", "y"], "readings": 2}, "contradicted", "none"),
    ([GAIN, GAIN, LOSS], {"needs": 2, "of": ["x", None, "y"]}, "supported", "agrees"),  # None is part of both
    ([GAIN, LOSS, GAIN], {"needs": 2, "of": ["x", None, "y"]}, "contradicted", "none"),
    ([[-value / 2 for value in SMALL]], {"margin": 0.5}, "supported", "agrees"),  # hardly behind
    ([LOSS], {"margin": 0.5}, "contradicted", "disagrees"),
    ([[value - 0.7 for value in WIDE]], {"margin": 0.5}, "inconclusive", "agrees"),
])  # fmt: skip
def test_the_rule(tests, options, word, direction):
    found = one(*tests, **options)
    assert (found.word, found.direction) == (word, direction)


def test_verdicts_say_what_they_rest_on():
    assert str(one(GAIN[:5])) == "incomplete (5 of 6 seeds)"
    assert str(one(GAIN[:2], GAIN[:1])) == "incomplete (1 of 6 seeds)"
    assert str(one(GAIN, GAIN[:1])) == "incomplete (1 of 2 tests complete; of another 1 of 6 seeds)"
    assert str(one(GAIN)).startswith("supported, Holm p < 0.001")
    assert claims._p_in_words(0.0014) == "p = 0.001"
    text = str(one(WIDE))
    seeds = int(text.removeprefix("inconclusive: about ").removesuffix(" seeds would tell no effect from one of 0.5"))
    assert 60 < seeds < 200  # (2.0 + 1.7) * 1.46 / 0.5, squared
    behind = str(one([value - 0.7 for value in WIDE], margin=0.5))
    assert behind.endswith(" seeds would tell equal from 0.5 behind")


FAR, SURE = [1.5, -1.4, 2.6, -0.2, 0.9, 0.1], [0.3, 0.31, 0.29, 0.3, 0.32, 0.28]


@pytest.mark.parametrize(("tests", "sign", "needs", "word"), [
    ([FAR, SURE], 1, 1, "inconclusive"),
    ([FAR, GAIN], 1, 1, "supported"),
    ([FAR, SURE], -1, 2, "smaller than that"),  # both have to hold, so that one is enough against
    ([FAR, GAIN], -1, 2, "contradicted"),
])  # fmt: skip
def test_p_and_size_are_those_of_one_test(tests, sign, needs, word):
    """One is large by chance, another is above 0 for sure and too small: neither alone makes a verdict."""
    assert describe(FAR).mean > 0.5 > describe(SURE).mean and describe(FAR).p_value > 0.05 > describe(SURE).p_value
    claimed = [[sign * value for value in deltas] for deltas in tests]
    assert one(*claimed, needs=needs).word == word


@pytest.mark.parametrize(("tests", "options", "lost"), [
    ([LOSS, None], {}, True),
    ([SMALL, None], {}, True),  # above 0, and not by as much as counts
    ([WIDE, None], {}, False),  # by enough, so far as its mean says
    ([LOSS, None], {"needs": 1}, False),
    ([LOSS, LOSS, None], {"needs": 2}, True),
    ([LOSS[:2], None], {}, False),  # of a test that is not complete nothing is known
    ([LOSS, None], {"of": ["x", "y"], "needs": 1}, False),
    ([LOSS, None], {"of": ["x", "y"], "needs": 1, "readings": 2}, True),
    ([LOSS, None], {"of": [None, "y"], "needs": 2, "readings": 1}, True),
    ([LOSS, None], {"direction": "lower"}, False),
    ([[-0.3, -0.31, -0.29, -0.3, -0.32, -0.28], None], {"margin": 0.5}, False),
    ([LOSS, None], {"margin": 0.5}, True),
])  # fmt: skip
def test_what_can_no_longer_be_supported_is_told(tests, options, lost):
    found = one(*tests, **options)
    assert found.word == "incomplete" and ("; it can no longer be supported)" in str(found)) == lost


def test_choosing_costs():
    """Two of three, and one reading of two: the p of the partial conjunction."""
    p = [describe(deltas).p_value for deltas in (GAIN, WIDE)]
    assert one(GAIN, GAIN, LOSS, needs=2).p_value == pytest.approx(2 * p[0])
    assert one(GAIN, LOSS, needs=1, of=["x", "y"]).p_value == pytest.approx(2 * p[0])


def test_claims_that_have_not_run_are_part_of_the_family():
    weak = [0.9, 1.6, 0.2, 1.4, 0.3, 1.1]
    p = describe(weak).p_value
    assert 0.05 / 20 < p < 0.05 and verdicts({"C": case(weak)})["C"].word == "supported"
    family = {"C": case(weak)} | {f"D{i}": case(None) for i in range(19)}
    assert verdicts(family)["C"].word == "open", "it may be supported still, if the others are"
    family = {"C": case(weak)} | {f"D{i}": case([0.1, -0.1, 0.2, -0.2, 0.1, -0.1]) for i in range(19)}
    assert verdicts(family)["C"].word == "inconclusive"
    family = {"C": case(GAIN)} | {f"D{i}": case(None) for i in range(19)}
    assert verdicts(family)["C"].word == "supported", "whatever the others will say"


def control(deltas, seeds=6):
    test = claims.Test("CutMix on GAP-FC", NO_SIDE, NO_SIDE, "", seeds)
    return [Found(test, describe(deltas) if deltas else None)]


def test_a_claim_whose_control_failed_cannot_be_tested():
    found = one(GAIN, control=control(LOSS))
    assert found.word == "not testable at this scale" and "CutMix on GAP-FC -1.00 [" in found.detail
    assert one(GAIN, control=control(GAIN)).word == "supported"
    assert str(one(GAIN, control=control(GAIN[:3]))) == "incomplete (3 of 6 seeds)"
    assert one(None, control=control(GAIN)).word == "not run"


def test_the_cost_of_a_map_is_held_against_every_peer_that_the_claim_names():
    """None may be dropped because it failed. Grad-CAM's backward pass to the last map is nothing beside the network."""
    (claim,) = [claim for claim in load_claims().claims if claim.id == "C12b"]
    against = {count.label.split("of those of ")[-1]: count for count in claim.counted[1:]}
    assert set(against) == {"CAM", "Grad-CAM", "ABN's map"}
    assert all(list(count.band) == [0.0, 0.8] for count in against.values())
    networks = [count.over.split(", ")[-1] for count in against.values()]
    assert networks == ["GAP-FC", "GAP-FC", "ABN"]

    _, forward = benchmark.count("resnet50", "GAP-FC")
    backward = 2 * 2048 * 1000 / 1e9
    assert backward < 0.0011 * forward


def test_counted_claims(tmp_path):
    (tmp_path / "cost.json").write_text('{"a": 5.5, "b": 11.0}')
    claim = Claim("C", "", "", "", counted=(Count("", "cost.json", "a", (5, 6)),))
    assert judge_counts(claim, tmp_path).word == "supported"
    half = Count("", "cost.json", "a", (0.5, 0.5), over="b")
    assert judge_counts(claim._replace(counted=(*claim.counted, half)), tmp_path).word == "supported"
    outside = Count("", "cost.json", "a", (6, 7))
    found = judge_counts(claim._replace(counted=(*claim.counted, outside)), tmp_path)
    assert found.word == "contradicted" and "1 of 2" in found.detail and found.direction == "none"
    beside = claim._replace(counted=(*claim.counted, Count("", "cost.json", "b"), Count("", "no.json", "b")))
    assert judge_counts(beside, tmp_path).word == "supported", "what has no band decides nothing"
    for missing in (Count("", "cost.json", "c", (0, 1)), Count("", "no.json", "a", (0, 1))):
        assert judge_counts(claim._replace(counted=(missing,)), tmp_path).word == "not run"


# --- from runs to verdicts --------------------------------------------------------------------------------------------

RATE = 0.2


def decided(text):
    """The file with every regime chosen, where it is still open, and one rate for all families of arms."""
    for name, value in CHOSEN.items():
        text = text.replace(f"{name}: to be chosen", f"{name}: {value}")
    text = re.sub(r"(&\w+_rate) .*", rf"\1 {RATE}", text)
    return text.replace("to be chosen", f"{RATE}")


def undecided(text):
    """The file before the study's regime was chosen."""
    return re.sub(r"^(  (?:train_images|epochs|autocast)): .*", r"\1: to be chosen", text, flags=re.MULTILINE)


REGIME = yaml.load(decided(TEXT), claims.LOADER)["regime"]
SETTINGS = {"dataset": "cifar10", "batch_size": 128, "lr": RATE} | REGIME


@pytest.fixture
def results(tmp_path):
    """C4 complete: GAP-FC with and without CutMix, SAOL with CutMix, 12 seeds, in results/study."""
    (tmp_path / "claims.yaml").write_text(decided(TEXT))
    noise = [0.1 * (i % 5) for i in range(12)]
    save(tmp_path, gap([70 + x for x in noise], **SETTINGS))
    save(tmp_path, make([72 + 1.1 * x for x in noise], "gap_fc_cutmix", "top1_gap_last", **SETTINGS))
    save(tmp_path, make([74 - x for x in noise], "saol_cutmix", **SETTINGS))
    return tmp_path


def save(results, runs, folder="study", kind="runs"):
    for run in runs:
        save_run(results / folder, run, folder=kind)


def words(results, scale="cpu"):
    found = judge(load_claims(results / "claims.yaml"), scale, results)
    return {name: str(verdict) for name, (_, verdict) in found.items()}


def test_twelve_seeds_decide(results):
    found = words(results)
    assert found["C4"].startswith("supported, Holm p < 0.001")
    assert found["C9"] == "not run" and words(results, "paper")["C4"] == "not run"


def test_removing_one_run_makes_its_claim_incomplete(results):
    (path,) = (results / "study" / "runs").glob("saol_cutmix-s7-*.json")
    path.unlink()
    assert words(results)["C4"] == "incomplete (11 of 12 seeds)"


def test_what_is_shown_of_a_claim_is_its_clearest_test(results):
    held = case(LOSS, [3 * value for value in GAIN], needs=1, of=["branch", "attention"])
    assert readme._clearest(held.claim, held.found, holds=True) is held.found[1]
    assert readme._clearest(held.claim, held.found, holds=False) is held.found[0]


def test_the_short_answer_has_every_effect_that_the_file_has_words_for(results):
    alone = "- SAOL trained alone, against GAP-FC:"
    assert alone not in readme.verdict_box(readme.Judged(results))
    save(results, make([60 + 0.1 * i for i in range(12)], "saol", **SETTINGS))
    told = readme.verdict_box(readme.Judged(results)).replace("\N{NO-BREAK SPACE}", " ")
    lines = told.splitlines()
    assert f"{alone} -9.62 [-9.86, -9.39], n = 12 (C1)" in lines and lines[0].startswith("In short, ")
    (results / "study" / "runs").rename(results / "study" / "elsewhere")
    assert readme.verdict_box(readme.Judged(results)).startswith("Nothing has run yet")


def test_what_stands_beside_a_claim_decides_nothing(results):
    before = words(results)["C4"]
    save(results, make([60 + 0.1 * i for i in range(12)], "saol", **SETTINGS))
    assert words(results)["C4"] == before
    judged = readme.Judged(results)
    row = next(line for line in readme.claims_table(judged).splitlines() if line.startswith("| [C4]"))
    assert "<br>*beside it: the same without CutMix: -9.62" in row
    assert sum(line.startswith("| beside C4 |") for line in readme.tests_table(judged, "cpu").splitlines()) == 1


def test_the_p_values_of_a_claim_with_a_margin_are_those_of_its_margin():
    behind = [-0.3, -0.31, -0.29, -0.3, -0.32, -0.28]
    found = case(behind, margin=1.0)
    assert claims.threshold(found.claim) == -1.0
    row = readme._test_row("C", found.found[0], claims.threshold(found.claim)).split(" | ")
    assert row[2].startswith("-0.30 [") and row[4] == "< 0.0001" and float(row[5]) == pytest.approx(1 / 64, abs=1e-4)
    row = readme._test_row("C", found.found[0], bar=0.0).split(" | ")
    assert float(row[4]) > 0.99 and float(row[5]) == 1


def test_a_run_of_a_further_seed_is_not_read(results):
    before = words(results)
    save(results, make([0.0] * 14, "saol_cutmix", **SETTINGS)[12:])
    save(results, make([99.0] * 14, "gap_fc_cutmix", "top1_gap_last", **SETTINGS)[12:])
    assert words(results) == before


def test_until_the_regime_is_chosen_nothing_has_run(results):
    (results / "claims.yaml").write_text(undecided(decided(TEXT)))
    assert {word for word in words(results).values() if "counted" not in word} == {"not run"}


@pytest.mark.parametrize("change", [
    {"epochs": 15}, {"eval_split": "held_out"}, {"blocks": 1}, {"class_softmax": "image"}, {"mask_source": "attention"},
    {"cutmix_schedule": "batch"}, {"lr": 0.1}, {"backbone": "resnet-14"}, {"teacher": "trained"}, {"logit_width": 10},
    {"kernel_size": 1}, {"ss2_direction": "mixed_to_source"}, {"dataset": "cifar100"}, {"enlarge": True},
])  # fmt: skip
def test_runs_of_another_setting_enter_no_test_of_these(results, change):
    before = words(results)
    save(results, make([10.0] * 12, "saol_cutmix", **(SETTINGS | change)))
    assert words(results)["C4"] == before["C4"]


def test_two_runs_that_fit_are_named(results):
    save(results, make([10.0], "saol_cutmix", **SETTINGS, eval_every=7))
    with pytest.raises(ValueError, match=r"claim C4, ResNet with CutMix: runs saol_cutmix-s0-\w+ and saol_cutmix-s0"):
        words(results)


def test_the_study_has_exactly_one_run_for_every_side_and_seed():
    """Every run of the study and of fine-tuning, against every test at CPU scale."""
    ledger = yaml.load(decided(TEXT), claims.LOADER)
    settings = ledger["settings"] | dict.fromkeys(claims.MEASURED)
    runs = [*study(), *imagenet()]
    for entry in [*ledger["claims"], *ledger["controls"]]:
        for test in claims._claim(entry, settings).cpu.tests:
            for side in (test.a, test.b):
                there = [run for run, folder in runs if folder == test.results]
                found = claims._select(side, test.seeds, there)
                assert sorted(found) == list(range(test.seeds)), (entry["id"], test.label, side)


def study():
    """(run, folder): all arms of the main family in both readings, blocks, other families, ABN, open choices."""
    both = [{}, {"mask_source": "attention"}]
    grids = [(arm, {}, 12) for arm in ARMS if "ss1" not in ARMS[arm].terms]
    grids += [(arm, reading, 12) for arm in ARMS if "ss1" in ARMS[arm].terms for reading in both]
    grids += [("saol", {"blocks": 1}, 8), ("saol", {"blocks": 2}, 8)]
    for backbone in ("wrn-10-2", "pyramidnet-14-24", "densenet-bc-22-12"):
        grids += [(arm, {"backbone": backbone}, 8) for arm in ("gap_fc", "saol", "saol_sd")]
    grids += [(arm, {"backbone": "pyramidnet-shakedrop-14-24"}, 8) for arm in ("gap_fc", "saol")]
    choices = [("class_softmax", "image"), ("kernel_size", 1), ("logit_width", 10)]
    grids += [("saol", {name: value}, 8) for name, value in choices]
    choices = [("ss2_direction", "mixed_to_source"), ("teacher", "trained"), ("cutmix_schedule", "batch")]
    grids += [("saol_cutmix_ss_sd", {name: value}, 8) for name, value in choices]
    for arm, change, seeds in grids:
        for run in make([1.0] * seeds, arm, **(SETTINGS | change)):
            yield run, "study"
    for reading in both:
        for run in make([1.0] * 12, "saol_cutmix_ss_sd", **SETTINGS, **reading):
            yield run._replace(config=run.config | {"measure": "cutmix_pairs", "method": "saol"}), "study"


def imagenet():
    """(run, folder): the fine-tuned networks, those that went on, doubled or not, and the boxes of their maps."""
    tiny = {"dataset": "tiny-imagenet", "classes": 30, "separable": True, "epochs": 60, "lr": 0.2}
    fixed = {"backbone": "timm:tf_efficientnet_lite0", "image_size": 128, "train_images": 5000}
    arms = [("gap_fc", {}), ("gap_fc_cutmix", {}), ("saol", {}), ("saol_cutmix_sd", {}), ("abn_cutmix", {})]
    arms += [("saol_cutmix_ss_sd", {"mask_source": reading}) for reading in ("branch", "attention")]
    methods = {"gap_fc": ("cam", "grad_cam"), "abn": ("abn",), "saol": ("saol", "attention", "spatial", "cam")}
    for arm, change in arms:
        for run in make([1.0] * 8, arm, **tiny, **change):
            run = run._replace(config=run.config | fixed)
            stages = [run]
            if arm == "saol_cutmix_ss_sd":
                start = {"start": f"{arm}-s{run.config['seed']}-0123456789"}
                stages += [run._replace(config=run.config | start | {"enlarge": wide}) for wide in (False, True)]
            for stage in stages:
                yield stage, "imagenet"
                for method in methods[arm.split("_cutmix")[0].removesuffix("_sd")]:
                    yield (
                        stage._replace(config=stage.config | {"measure": "localization", "method": method}),
                        "imagenet",
                    )


def test_fifty_paper_runs_move_their_rows_paper_column_alone(results):
    before = words(results), words(results, "paper")
    for seed_noise, arm, metric in ((0.1, "gap_fc", "top1_gap_last"), (0.2, "saol", "top1_saol_last")):
        for backbone in ("resnet-20", "wrn-28-10", "pyramidnet-bn-200-240"):
            values = [90 + (arm == "saol") + seed_noise * (i % 3) for i in range(5)]
            save(results, make(values, arm, metric, dataset="cifar10", backbone=backbone), "paper")
    extra = make(
        [92.0 + 0.1 * i for i in range(20)], "saol_sd", "top1_gap_last", dataset="cifar10", backbone="wrn-28-10"
    )
    save(results, extra, "paper")
    assert len(list((results / "paper" / "runs").glob("*.json"))) == 50
    after = words(results), words(results, "paper")
    assert after[0] == before[0]
    moved = {name for name in after[1] if after[1][name] != before[1][name]}
    assert moved == {"C1", "C2", "C3"}, "those that these arms are about"
    assert after[1]["C1"] == "incomplete (3 of 6 tests complete; of another 0 of 5 seeds)"  # CIFAR-100 has not run


def test_different_sources_are_refused_by_name(results):
    save(results, make([74.0], "saol_cutmix", **SETTINGS, origin={"sources": "other"}))
    with pytest.raises(ValueError, match="claim C4, ResNet with CutMix: the runs differ in sources"):
        words(results)


def test_a_plan_without_a_rate_for_an_arm_is_refused():
    assert replace(plan_of(2), needs=1).groups == [[0, 1]]
    broken = TEXT.replace("  abn: *gap_rate\n", "")
    with pytest.raises(ValueError, match="C7b has no rate for the arm abn"):
        claims._claim(next(c for c in yaml.load(broken, claims.LOADER)["claims"] if c["id"] == "C7b"), {})
