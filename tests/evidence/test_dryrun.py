"""The rehearsal of the paper profile: what is counted, what is rehearsed, and the page."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from saol_lib.data import load
from saol_lib.evidence import dryrun, made_data, paper
from saol_lib.evidence.forecast import IMAGES, Network, count, forecast, structure
from saol_lib.networks import multiply_adds
from saol_lib.training import ARMS, RunConfig, new_model, save_run
from saol_lib.training import files as training_files
from saol_lib.training.runs import Run, run_id

TINY = RunConfig(dataset="cifar10", backbone="resnet-8-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_data.make_data(tmp_path_factory.mktemp("made"))


# --- made data --------------------------------------------------------------------------------------------------------


def test_made_data_have_the_true_layouts(made):
    with made_data.trusted(made):
        cifar10, cifar100 = (load(name, str(made)) for name in ("cifar10", "cifar100"))
    assert cifar10.train.images.shape == (10, 3, 32, 32) and len(cifar10.test.labels) == 2
    assert len(cifar10.classes) == 10 and len(cifar100.classes) == 100
    assert len(cifar100.train.labels) == 10, "enough for several steps, though it is one file"

    imagenet, cub = (load(name, str(made)) for name in ("imagenet", "cub"))
    for data in (imagenet, cub):
        assert len(data.train.labels) == 6 == len(data.test.labels) and data.test.boxes is not None
    middle = imagenet.test.boxes[0, 0].tolist()
    assert 0 < middle[0] < middle[2] < 223 and 0 < middle[1] < middle[3] < 223


def test_made_cifar_is_trusted_only_where_it_is_asked_for(made):
    before = [list(source.train_list) for source in made_data.CIFAR.values()]
    with made_data.trusted(made):
        assert [list(source.train_list) for source in made_data.CIFAR.values()] != before
    assert [list(source.train_list) for source in made_data.CIFAR.values()] == before


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["gap_fc", "saol_cutmix_ss_sd", "abn"])
def test_counts_are_those_of_the_network(arm):
    """Parameters and multiply-adds as notebook 06 counts them; the mask's branch counts in training alone."""
    config = replace(TINY, arm=arm)
    found = count(config)
    model = new_model(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.multiply_adds == multiply_adds(model, (32, 32))
    has_mask = "ss1" in ARMS[arm].terms
    assert (found.training > 3 * found.multiply_adds) == has_mask and found.training >= 3 * found.multiply_adds


def test_bytes_kept_for_the_backward_pass_are_those_of_a_real_pass():
    model = new_model(TINY).train()
    own = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(torch.randn(8, 3, 32, 32))
    bytes_of_one = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 8
    assert outputs.gap_logits.requires_grad
    assert abs(count(TINY).kept / bytes_of_one - 1) < 0.02


def test_arms_with_the_same_layers_are_counted_once():
    shapes = {structure(replace(TINY, arm=arm)) for arm in ARMS}
    assert {config.arm for config in shapes} == {
        "gap_fc",
        "saol",
        "saol_sd",
        "saol_cutmix_ss1",
        "saol_cutmix_ss_sd",
        "abn",
    }
    assert structure(replace(TINY, seed=3, lr=0.4, epochs=9, batch_size=8)) == structure(TINY)


def test_a_forecast_is_the_sum_of_its_parts():
    network = Network(parameters=1_000_000, multiply_adds=10**9, training=3 * 10**9, kept=10**7)
    config = replace(TINY, epochs=20, eval_every=10, batch_size=100)
    cost = forecast(config, network, sustained=1.0)
    images, evaluated = IMAGES["cifar10"]
    work = 20 * images * 3e9 + 2 * evaluated * 1e9
    assert cost.hours == pytest.approx(2 * work / 1e12 / 3600) and cost.disk == pytest.approx(0.016)
    assert cost.memory == pytest.approx((12e6 + 100 * 1e7) / 1e9)

    assert forecast(config, network).hours == pytest.approx(cost.hours / 30)
    split = replace(config, accumulate=2, autocast="bfloat16")
    assert forecast(split, network).memory == pytest.approx((12e6 + 0.5 * 50 * 1e7) / 1e9)
    second = replace(config, arm="saol_cutmix_ss2", cutmix_schedule="batch", cutmix_probability=1.0)
    assert forecast(second, network, 1.0).hours - cost.hours == pytest.approx(2 * 20 * images * 1e9 / 1e12 / 3600)
    with pytest.raises(ValueError, match="dataset='digits' has no known size"):
        forecast(replace(config, dataset="digits"), network)


# --- which runs stand for all -----------------------------------------------------------------------------------------


def test_every_network_loss_and_option_of_the_profile_is_rehearsed():
    configs = paper.profile_runs()
    chosen = list(paper.representatives(configs).values())
    assert 40 < len(chosen) < 90
    assert {paper.kind(config) for config in configs} == {paper.kind(config) for config in chosen}
    assert {config.dataset for config in chosen} == {"cifar10", "cifar100", "imagenet", "cub"}
    together = dryrun.for_two(chosen)
    assert {config.backbone for config in together} == {config.backbone for config in configs}
    assert all(config.arm == "saol_cutmix_ss_sd" or config.backbone.startswith("resattnet") for config in together)
    assert 0 < len(dryrun.small(chosen)) <= 2


# --- the rehearsal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"arm": "saol_cutmix_ss_sd", "dataset": "cifar100"}, {"arm": "abn_cutmix"}])
def test_a_rehearsal_trains_saves_resumes_and_evaluates(made, tmp_path, change):
    with made_data.trusted(made):
        dryrun.rehearse(replace(TINY, epochs=300, autocast="bfloat16", **change), made, tmp_path)
    run = next((tmp_path / "runs").glob("*.json"))
    assert json.loads(run.read_text())["status"] == "finished"


def test_a_rehearsal_that_goes_on_from_elsewhere_is_told(made, tmp_path, monkeypatch):
    """A trainer that forgets the second step, and a network that is not the one that was evaluated."""
    with made_data.trusted(made):
        monkeypatch.setattr(dryrun, "_moved", lambda before, after: False)
        with pytest.raises(RuntimeError, match="did not move a weight"):
            dryrun.rehearse(TINY, made, tmp_path / "still")
        monkeypatch.undo()
        monkeypatch.setattr(dryrun, "evaluate", lambda model, data: {"top1_gap": -1.0})
        with pytest.raises(RuntimeError, match=r"evaluates to .*-1.0"):
            dryrun.rehearse(TINY, made, tmp_path / "other")


@pytest.mark.timeout(900)
def test_two_processes_rehearse_photographs_and_cifar(made, tmp_path):
    photographs = RunConfig(dataset="imagenet", image_size=32, backbone="resnet-8-8", arm="saol_cutmix_ss_sd",
                            separable=True, cutmix_schedule="batch", cutmix_probability=1.0)  # fmt: skip
    with made_data.trusted(made):
        dryrun.rehearse_by_two([TINY, photographs], made, tmp_path)
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2


# --- the two commands of an experiment --------------------------------------------------------------------------------


def test_a_command_that_fails_is_told_with_its_last_words(made, tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun, "MINIATURE", (*dryrun.MINIATURE, "epochs=0"))
    with pytest.raises(RuntimeError, match=r"(?s)cifar10-wrn40: -m saol_lib.training study failed:.*epochs=0"):
        dryrun.show("cifar10-wrn40", made, tmp_path)


def test_a_miniature_has_every_arm_and_stage_of_its_experiment():
    for name, runs in (("cifar10-choices", 16), ("wsol-cub", 11)):
        changes = dryrun.read_changes(dryrun.miniature(name))
        configs, _ = dryrun.study_configs("paper", only=name, changes=changes)
        assert len(configs) == runs and {(c.epochs, c.seed, c.pretrained) for c in configs} == {(1, 0, False)}
        assert len({c.backbone for c in configs}) == 1 and configs[0].backbone.startswith("resnet")


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["cifar10-ablations", "wsol-cub"])
def test_an_experiment_is_trained_and_shown_in_miniature(made, tmp_path, name):
    copies = dryrun.show(name, made, tmp_path)
    assert (
        copies
        == {"cifar10-ablations": [f"04_{name}.ipynb"], "wsol-cub": [f"02_{name}.ipynb", f"03_{name}.ipynb"]}[name]
    )
    assert str(made) not in (tmp_path / copies[0]).read_text()


# --- the page ---------------------------------------------------------------------------------------------------------

EXPERIMENT = """# CIFAR-10, a small network (of ours): two arms. NEVER run. For: C1, and the page. More words.
# Counted by make dryrun: not yet.
results: results/paper
common: {dataset: cifar10, backbone: resnet-8-8, epochs: 2}
grids:
  - {arms: [gap_fc, saol], seeds: [0, 1]}
"""


def states(page):
    """{experiment: (status, notebooks)} of a page."""
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| [")]
    return {row[0].split("]")[0].removeprefix("| ["): (row[3], row[9].removesuffix(" |")) for row in rows}


def test_the_page_tells_what_is_done_what_is_ready_and_what_it_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(training_files, "ROOT", tmp_path)
    folder = tmp_path / "notebooks" / "profiles" / "paper"
    folder.mkdir(parents=True)
    for name, seeds in (("one", "[0]"), ("two", "[0, 1]"), ("three", "[5]")):
        (folder / f"{name}.yaml").write_text(EXPERIMENT.replace("[0, 1]", seeds))
    configs = paper.profile_runs()
    results = tmp_path / "results"
    with pytest.raises(ValueError, match="nothing was counted yet"):
        paper.write_page(results)

    ledger = dryrun.Ledger({}, write=False)

    def three():
        paper.write_costs(ledger.networks, ledger.rehearsed, ledger.shown, results)
        return states(paper.write_page(results))["three"]

    assert three() == ("not counted yet", "–")
    dryrun.count_all(configs, ledger)
    ledger.rehearsed["cifar10 resnet-8-8 gap_fc"] = dryrun.BOTH
    assert three() == ("not rehearsed yet", "–"), "of two arms one was rehearsed"
    ledger.rehearsed["cifar10 resnet-8-8 saol"] = dryrun.ALONE
    assert three() == ("not shown yet", "–")
    ledger.shown["three"] = ["01_three.ipynb"]
    assert three() == ("ready", "01_three")

    for config in configs:
        if config.seed == 0:
            save_run(results / "paper", Run(config.identity(), {"top1_gap_last": 1.0}, [], {}, "finished"))
    (results / "paper/01_three.ipynb").write_text("{}")
    page = paper.write_page(results)
    assert page == (results / "paper" / "README.md").read_text()
    assert {name: state for name, (state, _) in states(page).items()} == {
        "one": "**done**",
        "two": "2 of 4",
        "three": "ready",
    }
    assert states(page)["three"][1] == "[01_three.ipynb](01_three.ipynb)"
    assert "Of 3 experiments **1 are done**, 1 begun, **1 ready** to be run." in page
    assert "| CIFAR-10, a small network | C1, and the page |" in page
    assert "| C1, and the page | 2 of 4 | 4 (2 shared) |" in page and "| C1, and the page | ready | 2 |" in page
    assert "| cifar10 resnet-8-8 gap_fc | one process, two processes |" in page and "6 distinct runs" in page

    head = (folder / "two.yaml").read_text().splitlines()[1]
    assert head.startswith("# Counted by make dryrun: 4 runs, ") and "GB of disk." in head
    assert yaml.safe_load((folder / "two.yaml").read_text())["results"] == "results/paper"
    assert paper.write_page(results) == page


def test_a_head_without_a_purpose_is_told(tmp_path):
    (tmp_path / "one.yaml").write_text(EXPERIMENT.replace("For: ", ""))
    with pytest.raises(ValueError, match=r"one.yaml: its head has no `For: ...`"):
        paper.read_experiment(tmp_path / "one.yaml")


def test_the_committed_page_is_that_of_the_committed_counts_and_files():
    costs = paper.read_costs()
    assert paper.render(costs) == (paper.RESULTS / "paper" / "README.md").read_text(), "run make claims"
    for path in paper.experiments("paper"):
        line = paper.counted_line(paper.read_runs(path)[0], costs["networks"])
        assert line in path.read_text(), f"{path.name}: run make dryrun"


@pytest.mark.parametrize("arm", ["gap_fc", "saol_cutmix_ss_sd"])
def test_the_committed_counts_of_a_small_network_are_counted_again(arm):
    config = RunConfig(dataset="cifar10", backbone="wrn-40-2", arm=arm)
    assert paper.read_costs()["networks"][paper.case_name(structure(config))] == count(config)._asdict()


def test_the_committed_runs_are_each_named_once():
    ids = [run_id(config.identity()) for config in paper.profile_runs()]
    assert len(ids) == len(set(ids)) > 700
