"""Networks started from runs, and the last stage enlarged."""

import pytest
import torch
from torch import nn

from saol_lib.data import load
from saol_lib.networks import build_model, enlarge, input_scaling
from saol_lib.training.config import RunConfig, finetuning
from saol_lib.training.loop import evaluate, train
from saol_lib.training.profiles import settings
from saol_lib.training.recipe import batches, load_model, new_model
from saol_lib.training.runs import run_id
from saol_lib.training.study import run_stages

TINY = {
    "backbone": "resnet-8-8",
    "train_images": 100,
    "epochs": 1,
    "eval_split": "held_out",
    "held_out": 100,
    "image_size": 16,
}
BACKBONES = [
    "resnet-s2-8-8",
    "wrn-10-1",
    "densenet-bc-10-8",
    "pyramidnet-8-12",
    "pyramidnet-bn-11-12",
    "resnet18",
]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_enlarging_doubles_the_output_and_keeps_every_weight(backbone):
    model = build_model(backbone, 10, seed=0).eval()
    larger = enlarge(model)
    images = torch.rand(2, 3, 96, 64)
    before, after = model.look(images)[1], larger.look(images)[1]
    assert after.shape[2:] == tuple(2 * side for side in before.shape[2:])
    assert larger(images).attention.shape[2:] == after.shape[2:] and larger(images).gap_logits.shape == (2, 10)
    weights = larger.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backbone", ["resnet-s2-8-8", "wrn-10-1"])
def test_with_the_stride_put_back_the_outputs_are_the_same_bits(backbone):
    model = build_model(backbone, 10, seed=0).eval()
    larger, images = enlarge(model), torch.rand(2, 3, 64, 64)
    old = dict(model.named_modules())
    changed = [name for name, m in larger.named_modules() if isinstance(m, nn.Conv2d) and m.stride != old[name].stride]
    assert changed and not torch.equal(larger(images).gap_logits, model(images).gap_logits)
    for name in changed:
        larger.get_submodule(name).stride = old[name].stride
    for mine, theirs in zip(larger(images), model(images), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.numeric
def test_dilation_sees_as_far_as_before():
    """At the pixels that a stride would have kept, dilated convolutions after the first see what they saw."""
    model = build_model("resnet-8-8", 10, heads=("gap",), seed=0).eval().double()
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    dilated = enlarge(model, dilation=True).look(images)[1][..., ::2, ::2]
    assert torch.allclose(dilated, model.look(images)[1], rtol=0, atol=1e-12)
    assert not torch.allclose(enlarge(model).look(images)[1][..., ::2, ::2], dilated, rtol=0, atol=1e-2)


def test_the_original_is_left_alone_and_what_has_no_stride_is_told():
    model = build_model("resnet-8-8", 10, seed=0).eval()
    images = torch.rand(1, 3, 32, 32)
    before = model(images).saol_log_probs
    enlarge(model)
    assert torch.equal(model(images).saol_log_probs, before)
    flat = build_model("resnet-8-8", 10, seed=0)
    for module in flat.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    with pytest.raises(ValueError, match="cannot be enlarged"):
        enlarge(flat)


def test_the_stages_form_a_chain_with_one_budget():
    stages = finetuning(["gap_fc_cutmix", "abn"], [0, 1], trained={"epochs": 9}, lr=0.03)
    assert [len(stage) for stage in stages.values()] == [2, 4, 4, 2]
    names = [{run_id(config.identity()) for config in stage} for stage in stages.values()]
    assert [c.epochs for c in stages["trained"]] == [9, 9] and {c.arm for c in stages["trained"]} == {"gap_fc"}
    assert {c.start for c in stages["fine-tuned"]} == names[0] and {c.start for c in stages["continued"]} == names[1]
    for same, larger in zip(stages["continued"][:2], stages["enlarged"], strict=True):
        assert vars(larger) == vars(same) | {"enlarge": True}
    pretrained = finetuning(["saol"], [0], trained={}, pretrained=True, backbone="resnet18")
    assert not pretrained["trained"] and pretrained["fine-tuned"][0].pretrained
    assert not pretrained["continued"][0].pretrained and pretrained["continued"][0].start


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return folder, train(RunConfig(**TINY), folder, progress=False)


@pytest.mark.parametrize("arm", ["gap_fc_cutmix", "saol_sd", "saol", "abn"])
def test_a_network_starts_from_the_trained_backbone(base, arm):
    folder, run = base
    trained = load_model(run, folder).state_dict()
    begun = new_model(RunConfig(**TINY | {"arm": arm, "start": run.id}), folder)
    fresh = new_model(RunConfig(**TINY | {"arm": arm, "start": run.id}))
    same = [
        name
        for name, v in begun.state_dict().items()
        if any(v.shape == t.shape and torch.equal(v, t) for t in trained.values())
    ]
    kernels = [name for name, value in trained.items() if value.ndim == 4]
    assert len([name for name in same if begun.state_dict()[name].ndim == 4]) >= len(kernels)
    others = [name for name in fresh.state_dict() if name.startswith("saol.")]
    assert all(torch.equal(begun.state_dict()[name], fresh.state_dict()[name]) for name in others), "pairs start alike"


def test_the_same_kind_of_network_is_taken_over_whole(base):
    folder, run = base
    tuned = train(RunConfig(**TINY | {"arm": "saol_sd", "start": run.id}), folder, progress=False)
    for enlarged in (False, True):
        config = RunConfig(**TINY | {"arm": "saol_sd", "start": tuned.id, "enlarge": enlarged})
        begun, last = new_model(config, folder).state_dict(), load_model(tuned, folder).state_dict()
        assert begun.keys() == last.keys() and all(torch.equal(begun[name], last[name]) for name in last)
        again = train(config, folder, progress=False)
        assert load_model(again, folder)(torch.rand(1, 3, 16, 16)).attention.shape[-1] == (8 if enlarged else 4)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"start": "saol-s0-0000000000"}, FileNotFoundError, "is no finished run"),
        ({"backbone": "resnet-8-16"}, ValueError, "another network's"),
        ({"backbone": "wrn-10-1"}, ValueError, "another network's"),
    ],
)
def test_a_start_that_does_not_fit(base, change, error, message):
    folder, run = base
    with pytest.raises(error, match=message):
        train(RunConfig(**TINY | {"arm": "saol_sd", "start": run.id} | change), folder, progress=False)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dilation": True}, "dilation goes with enlarge=True"),
        ({"pretrained": True, "start": "x", "backbone": "resnet18"}, "pretrained does not go with start"),
        ({"classes": 5}, r"only \(tiny-\)imagenet"),
        ({"dataset": "tiny-imagenet", "classes": 201}, "2 to 200"),
        ({"dataset": "cifar10", "image_size": 64}, "cifar10 has its own size"),
        ({"backbone": "resnet-8-4"}, "width must be at least 8"),
    ],
)
def test_settings_that_do_not_go_together(values, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**values)


def test_the_ids_of_published_runs_stay():
    """Fields that came later are part of an id only where they are used."""
    assert run_id(RunConfig().identity()) == run_id({k: v for k, v in RunConfig().identity().items() if k != "start"})
    assert run_id(RunConfig().identity()) != run_id(RunConfig(start="x").identity())


def test_load_model_does_not_fetch_public_weights_again(base, monkeypatch):
    """What is loaded replaces them; only the structure is built."""
    import torchvision

    folder, _ = base
    asked = []
    get_model = torchvision.models.get_model

    def without_weights(name, weights=None, **more):
        asked.append(weights)
        return get_model(name, weights=None, **more)

    monkeypatch.setattr(torchvision.models, "get_model", without_weights)
    config = RunConfig(**TINY | {"backbone": "resnet18", "pretrained": True, "arm": "saol", "batch_size": 50})
    run = train(config, folder, progress=False)
    assert "DEFAULT" in asked
    asked.clear()
    load_model(run, folder)
    assert asked and not any(asked)


def test_the_last_stages_can_have_settings_and_arms_of_their_own():
    arms = ["gap_fc_cutmix", {"arm": "saol_cutmix_ss_sd", "mask_source": "attention"}]
    stages = finetuning(arms, [0], trained={}, continued={"arms": ["saol_cutmix_ss_sd"], "epochs": 2}, epochs=7)
    assert [(c.arm, c.epochs) for c in stages["fine-tuned"]] == [("gap_fc_cutmix", 7), ("saol_cutmix_ss_sd", 7)]
    (again,), (larger,) = stages["continued"], stages["enlarged"]
    assert (again.arm, again.mask_source, again.epochs, again.enlarge) == ("saol_cutmix_ss_sd", "attention", 2, False)
    assert again.start == larger.start == run_id(stages["fine-tuned"][1].identity()) and larger.enlarge
    with pytest.raises(ValueError, match="config key 'epocs' is not known"):
        finetuning(["saol"], [0], trained={}, continued={"epocs": 2})


def test_the_runs_of_stages_come_back_by_stage(tmp_path):
    stages = finetuning(["gap_fc_cutmix"], [0], trained={}, **TINY)
    runs = run_stages(stages, tmp_path, progress=False)
    assert {stage: [run.id for run in some] for stage, some in runs.items()} == {
        stage: [run_id(config.identity()) for config in some] for stage, some in stages.items()
    }


def test_a_failed_run_of_a_stage_is_named(tmp_path):
    stages = finetuning(["gap_fc"], [0], trained={}, **TINY | {"batch_size": 300})
    with pytest.raises(RuntimeError, match=r"4 of 4 runs failed: gap_fc-s0-.*batch_size=300 is more than the 100"):
        run_stages(stages, tmp_path, progress=False)


def test_a_notebooks_parameters_become_settings():
    values = {"profile": "quick", "results": "r", "arms": ["saol"], "seeds": [0], "trained": {}, "lr": 0.1, "x": 1}
    assert settings(values) == {"arms": ["saol"], "seeds": [0], "trained": {}, "lr": 0.1}


# --- from a file of weights, and timm's networks ----------------------------------------------------------------------


def test_a_run_starts_from_a_file_of_weights(base, tmp_path):
    """Its content is part of the run, its place is not; and the run can be loaded without it."""
    folder, run = base
    weights = {name.removeprefix("body."): v for name, v in load_model(run, folder).state_dict().items()}
    paths = [tmp_path / name for name in ("here.pth", "there.pth", "other.pth")]
    for path in paths[:2]:
        torch.save({"state_dict": weights}, path)
    torch.save(weights | {"output.bias": weights["output.bias"] + 1}, paths[2])

    here, there, other = (RunConfig(**TINY | {"arm": "saol_sd", "weights": str(path)}) for path in paths)
    assert here.weights_content == there.weights_content != other.weights_content
    begun = new_model(here, tmp_path).state_dict()
    kernels = [name for name, value in weights.items() if value.ndim == 4]
    assert kernels and all(torch.equal(begun[f"body.{name}"], weights[name]) for name in kernels)

    tuned = train(here, tmp_path, progress=False)
    assert "weights" not in tuned.config and tuned.config["weights_content"] == here.weights_content
    assert train(there, tmp_path, progress=False) == tuned  # one run, wherever the file lies
    assert run_id(other.identity()) != tuned.id != run.id
    for path in paths:
        path.unlink()
    assert load_model(tuned, tmp_path).state_dict().keys() == begun.keys()
    with pytest.raises(FileNotFoundError, match=f"content {here.weights_content}; give their file, weights=PATH"):
        train(RunConfig.of(**tuned.config | {"seed": 1}), tmp_path, progress=False)


def test_a_network_of_timm_is_trained_and_loaded(tmp_path):
    config = RunConfig(**TINY | {"backbone": "timm:test_resnet", "arm": "saol_cutmix_ss_sd", "image_size": 32})
    run = train(config, tmp_path, progress=False)
    assert run.status == "finished" and {"top1_gap_last", "top1_saol_last"} <= run.metrics.keys()
    model = load_model(run, tmp_path)
    data = load("digits", image_size=32)
    _, held_out = batches(config, data, torch.device("cpu"))
    found = evaluate(model, held_out)
    assert {f"{name}_last": value for name, value in found.items()}.items() <= run.metrics.items()


@pytest.mark.numeric
def test_images_are_scaled_as_the_network_of_that_name_was_used_to():
    """From its own weights or not, so that all runs of a chain see alike; in float64."""
    data = load("digits", image_size=16)
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    for backbone in ("timm:test_resnet", "resnet18"):
        config = RunConfig(**TINY | {"backbone": backbone})
        _, held_out = batches(config, data, torch.device("cpu"), torch.float64)
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in input_scaling(backbone))
        expected = (1 - mean) / std
        torch.testing.assert_close(held_out.normalise(white)[0, :, 0, 0], expected, rtol=1e-12, atol=1e-12)
