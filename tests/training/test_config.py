"""RunConfig: what it refuses and how, what a run's id depends on, and grids."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saol_lib.training.config import ARMS, RunConfig, grid
from saol_lib.training.runs import run_id

OTHER = {  # another valid value for every field
    "dataset": "cifar10", "data_dir": "/somewhere", "train_images": 500, "eval_split": "held_out", "held_out": 100,
    "backbone": "resnet-14", "arm": "saol", "seed": 1, "epochs": 7, "batch_size": 32, "lr": 0.2, "schedule": "cosine",
    "momentum": 0.5, "weight_decay": 1e-4, "pad": 2, "eval_every": 2, "cutmix_schedule": "batch",
    "cutmix_probability": 0.25, "cutmix_alpha": 0.4, "beta": 0.25, "sl_weight": 0.5, "ss_weight": 0.5, "sd_weight": 0.5,
    "ss2_direction": "mixed_to_source", "teacher": "trained", "mask_resize": "nearest", "blocks": 2, "separable": True,
    "output_size": 4, "logit_width": 40, "attention_width": 32, "between_logits": "none", "between_attention": "none",
    "kernel_size": 1, "resize": "adaptive", "earlier_blocks": "bn_relu", "class_softmax": "image",
    "mask_source": "attention", "autocast": "bfloat16", "compile": True, "device": "cuda", "processes": 2,
    "image_size": 64, "classes": 30, "skip_damaged": True, "pretrained": True, "start": "gap_fc-s0-0123456789",
    "enlarge": True, "dilation": True, "workers": 2, "weights_content": "0123456789abcdef", "accumulate": 2,
    "warmup_epochs": 1, "milestones": (2, 3), "gamma": 0.2, "decay": "all", "clip_norm": 1.0, "sync_batch_norm": False,
    "checkpoint_minutes": 1.0, "weights": "a file, see below",
}  # fmt: skip
WITH = {  # what a field's other value needs beside it
    "classes": {"dataset": "tiny-imagenet"},
    "dilation": {"enlarge": True},
    "cutmix_probability": {"cutmix_schedule": "sample"},
    "image_size": {"dataset": "digits"},
    "warmup_epochs": {"schedule": "cosine"},
    "milestones": {"schedule": "step"},
}
WHERE = ("data_dir", "device", "processes", "workers", "sync_batch_norm", "checkpoint_minutes", "weights")  # fmt: skip
SETTLED = OTHER | {  # these go together
    "dataset": "tiny-imagenet", "image_size": 128, "pretrained": False, "weights_content": None, "weights": None,
    "schedule": "step",
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


def refused(**values):
    with pytest.raises(ValueError) as error:
        RunConfig.of(**values)
    text = str(error.value)
    assert "\n" not in text and len(text) < 900
    return text


def id_of(**values):
    return run_id(RunConfig.of(**values).identity())


def test_unknown_key_names_the_nearest():
    assert "'epoch'" in refused(epoch=3) and "did you mean epochs?" in refused(epoch=3)
    assert "did you mean weight_decay?" in refused(weight_deacy=0.1)
    text = refused(zzzzzz=1)
    assert "'zzzzzz'" in text and "cutmix_alpha" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("separable", "True"), ("compile", 1), ("lr", "1e-3"), ("epochs", "6"), ("epochs", 6.0), ("epochs", True),
        ("lr", False), ("lr", None), ("arm", None), ("backbone", 8), ("train_images", "100"), ("data_dir", 3),
        ("seed", None), ("arm", ["saol"]), ("output_size", 7.0),
    ],
)  # fmt: skip
def test_wrong_types(name, value):
    text = refused(**{name: value})
    assert name in text and repr(value) in text and type(value).__name__ in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("batch_size", 1), ("seed", -1), ("lr", 0.0), ("lr", -0.1), ("lr", float("inf")),
        ("lr", float("nan")), ("momentum", 1.0), ("momentum", -0.1), ("weight_decay", -1e-4), ("pad", -1),
        ("weight_decay", float("inf")), ("beta", float("nan")), ("eval_every", -1), ("held_out", 0),
        ("train_images", 1), ("blocks", 0), ("output_size", 0), ("logit_width", 0), ("attention_width", 0),
        ("processes", 0), ("cutmix_alpha", 0.0), ("sl_weight", -1.0), ("cutmix_probability", 0.3),
    ],
)  # fmt: skip
def test_out_of_range(name, value):
    text = refused(**{name: value})
    assert name in text


def test_probability_is_free_where_the_schedule_leaves_it_free():
    assert RunConfig(cutmix_schedule="sample", cutmix_probability=0.3).cutmix_probability == 0.3
    assert "cutmix_probability" in refused(cutmix_schedule="sample", cutmix_probability=1.1)
    assert "0.5" in refused(cutmix_schedule="paired", cutmix_probability=1.0)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("arm", "saol_mixup", "saol_cutmix"), ("dataset", "mnist", "digits"), ("backbone", "resnet-9", "8"),
        ("backbone", "vgg", "wrn-16-4"), ("schedule", "poly", "one_cycle"), ("eval_split", "train", "held_out"),
        ("cutmix_schedule", "pairs", "paired"), ("autocast", "half", "bfloat16"), ("decay", "none", "kernels"),
        ("resize", "cubic", "bilinear"),
        ("teacher", "free", "constant"), ("mask_source", "none", "branch"), ("kernel_size", 5, "3"),
    ],
)  # fmt: skip
def test_unknown_choices_name_the_known(name, value, known):
    text = refused(**{name: value})
    assert str(value) in text and known in text


def test_every_field_has_another_value_here():
    assert set(OTHER) == set(FIELDS)
    assert all(getattr(RunConfig(), name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "weights"])
def test_id_hashes_what_can_change_a_number_and_nothing_else(name):
    beside = WITH.get(name, {})
    if name == "milestones":  # "step" asks for some
        assert id_of(schedule="step", milestones=[2]) != id_of(schedule="step", milestones=[3])
        return
    same = id_of(**beside | {name: OTHER[name]}) == id_of(**beside)
    assert same == (name in WHERE)
    assert (name in RunConfig().identity()) == (not same)


def test_weights_are_identified_by_their_content(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, value in zip(paths, (1.0, 1.0, 2.0), strict=True):
        torch.save({"a": torch.tensor(value)}, path)
    a, b, c = (RunConfig(weights=str(path)) for path in paths)
    assert run_id(a.identity()) == run_id(b.identity()) != run_id(c.identity()) != id_of()
    assert "weights" not in a.identity() and a.identity()["weights_content"] == a.weights_content
    assert len(a.weights_content) == 16 and RunConfig.of(**a.identity()).identity() == a.identity()
    assert a.weights_content in refused(weights=str(paths[2]), weights_content=a.weights_content)
    assert "does not go with" in refused(weights=str(paths[0]), pretrained=True, backbone="resnet18")
    with pytest.raises(FileNotFoundError, match="is no file"):
        RunConfig(weights=str(tmp_path / "nowhere"))


def test_id_reads_and_does_not_depend_on_how_numbers_are_written():
    assert id_of(arm="saol_sd", seed=3).startswith("saol_sd-s3-")
    assert id_of(lr=1) == id_of(lr=1.0) and RunConfig(lr=1) == RunConfig(lr=1.0)


def test_identity_makes_the_config_again():
    config = RunConfig(**SETTLED)
    again = RunConfig.of(**config.identity())
    assert again.identity() == config.identity() and again.data_dir is None
    assert again.milestones == (2, 3) and json.loads(json.dumps(config.identity())) == config.identity()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"milestones": [2]}, ("milestones", "schedule='step'")),
        ({"schedule": "step"}, ("milestones", "schedule='step'")),
        ({"schedule": "step", "milestones": [3, 2]}, ("[3, 2]", "rising")),
        ({"schedule": "step", "milestones": [0.5]}, ("0.5", "milestones")),
        ({"schedule": "step", "milestones": ["2"]}, ("'2'", "whole numbers")),
        ({"warmup_epochs": 1}, ("warmup_epochs=1", "one_cycle")),
        ({"warmup_epochs": 4, "schedule": "cosine"}, ("warmup_epochs=4", "epochs=4")),
        ({"accumulate": 3}, ("accumulate=3", "batch_size=64")),
        ({"clip_norm": 0.0}, ("clip_norm", "above 0")),
    ],
)
def test_recipes_that_do_not_go_together(values, parts):
    text = refused(**values)
    assert all(part in text for part in parts), text


def test_building_a_config_draws_nothing_random():
    import torch

    before = torch.random.get_rng_state()
    RunConfig(backbone="wrn-16-4")
    assert torch.equal(before, torch.random.get_rng_state())


def test_arms_switch_on_what_they_say():
    for name, arm in ARMS.items():
        assert arm.cutmix == ("cutmix" in name), name
        assert ("ss1" in arm.terms) == name.endswith(("_ss1", "_ss", "_ss_sd")), name
        assert ("ss2" in arm.terms) == name.endswith(("_ss2", "_ss", "_ss_sd")), name
        assert ("sd" in arm.terms) == name.endswith("_sd"), name
        assert ("gap" in arm.heads) == (name.startswith("gap_fc") or name.endswith(("_sd", "_ce"))), name
        assert ("sl" in arm.terms) == ("saol" in arm.heads) == name.startswith("saol"), name
        assert ("gap_ce" in arm.terms) == (name.startswith(("gap_fc", "abn")) or name == "saol_ce"), name
        assert ("aux_ce" in arm.terms) == (arm.heads == ("abn",)) == name.startswith("abn"), name


@given(
    st.lists(st.sampled_from(sorted(ARMS)), unique=True, max_size=4),
    st.lists(st.integers(0, 9), unique=True, max_size=3),
)
def test_grid(arms, seeds):
    configs = grid(arms, seeds, epochs=3)
    assert [(c.arm, c.seed) for c in configs] == [(arm, seed) for arm in arms for seed in seeds]
    assert all(config.epochs == 3 for config in configs)


@pytest.mark.parametrize("seeds", [0, [0], (0,), "[0]"])
@pytest.mark.parametrize("arms", ["saol", ["saol"], '["saol"]', [{"arm": "saol"}]])
def test_lists_as_papermill_passes_them(arms, seeds):
    assert [(c.arm, c.seed) for c in grid(arms, seeds)] == [("saol", 0)]


@pytest.mark.parametrize(
    ("arms", "seeds", "told"),
    [
        (["saol"], "0 1", "seeds='0 1'"),
        (["saol"], "[0,", "seeds='[0,'"),
        (["saol"], ["0"], "seeds=['0']"),
        (["saol"], True, "seeds=True"),
        (["saol"], None, "seeds=None"),
        (3, [0], "arms=3"),
        ([None], [0], "arms=[None]"),
    ],
)
def test_lists_that_are_none_are_one_sentence(arms, seeds, told):
    with pytest.raises(ValueError) as error:
        grid(arms, seeds)
    text = str(error.value)
    assert told in text and "is not a list; write for example" in text and "\n" not in text


def test_grid_takes_arms_with_options():
    plain, wide = grid(["saol", {"arm": "saol", "logit_width": 40}], [2], logit_width=10)
    assert (plain.logit_width, wide.logit_width) == (10, 40) and wide.seed == plain.seed == 2
    with pytest.raises(ValueError, match="did you mean logit_width"):
        grid([{"arm": "saol", "logit_widht": 40}], [0])
