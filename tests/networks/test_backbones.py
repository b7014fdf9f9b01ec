"""Backbones by name: what the grammar reads, what it refuses, and that names draw nothing they should not."""

import re
import sys

import pytest
import torch

from saol_lib.attach import read_network
from saol_lib.networks import (
    backbones,
    build,
    build_backbone,
    build_model,
    check_backbone,
    input_scaling,
    multiply_adds,
)
from saol_lib.training.config import RunConfig


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet-20", 0.27),  # He et al., table 6
        ("resnet-110", 1.73),
        ("wrn-28-10", 36.5),  # Zagoruyko and Komodakis, table 4
        ("densenet-bc-100-12", 0.8),  # Huang et al., table 2
        ("pyramidnet-110-270", 28.3),  # Han et al., table 4
        ("pyramidnet-bn-200-240", 26.0),
        ("resnet50", 25.56),
    ],
)
def test_published_numbers_of_parameters(name, parameters):
    with torch.device("meta"):
        network = build_backbone(name, 1000 if name == "resnet50" else 10).network
    found = sum(p.numel() for p in network.parameters()) / 1e6
    assert found == pytest.approx(parameters, rel=0.04)


@pytest.mark.parametrize(("name", "cost"), [("resattnet56", 6.3), ("resattnet92", 10.4)])
def test_residual_attention_networks_cost_what_their_paper_says(name, cost):
    """Wang et al., table 6: 6.3 and 10.4 G multiply-adds at 224, 31.9 and 51.3 M parameters."""
    with torch.device("meta"):
        network = build_backbone(name, 1000).network
    assert multiply_adds(network, (224, 224)) / 1e9 == pytest.approx(cost, rel=0.02)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    assert parameters == pytest.approx({"resattnet56": 31.9, "resattnet92": 51.3}[name], rel=0.03)


def test_a_residual_attention_network_takes_other_sizes_and_a_saol():
    model = build_model("resattnet56", 5, seed=0).eval()
    outputs, last = model.look(images(1, 3, 64, 96))
    assert outputs.gap_logits.shape == outputs.saol_log_probs.shape == (1, 5)
    assert last.shape == (1, 2048, 2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "backbone 'vgg' is not known; write for example resnet-8"),
        ("resnet-9", "depth 9 must be 6n + 2: 8, 14, ..."),
        ("resnet-8-7", "width must be at least 8"),
        ("wrn-16-0", "depth and width must be positive"),
        ("resattnet57", "backbone 'resattnet57' is not known"),
        ("timm:resnet188", "timm has no network 'resnet188'; the nearest are resnet18,"),
        ("timm:resnet18.nope", "timm has no weights 'nope' of resnet18; it has a1_in1k"),
    ],
)
@pytest.mark.parametrize(
    "ask", [check_backbone, lambda name: build_backbone(name, 3), lambda name: RunConfig(backbone=name)]
)
def test_names_that_cannot_be(ask, name, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ask(name)
    assert "\n" not in str(caught.value)


def test_no_pretrained_weights_for_our_own_families():
    with pytest.raises(ValueError, match="'resnet-8' has no pretrained weights; torchvision's names have"):
        build_backbone("resnet-8", 10, pretrained=True)


def test_a_missing_timm_is_told_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"'timm:resnet18' needs timm; install it with: pip install saol_lib\[timm\]"):
        build_backbone("timm:resnet18", 3)
    assert build_backbone("resnet-8", 3).nodes  # the others do not need it


def test_checking_a_name_draws_nothing():
    before = torch.get_rng_state()
    check_backbone("wrn-16-4")
    check_backbone("timm:tf_efficientnet_lite0")
    assert torch.equal(before, torch.get_rng_state())


def test_names_are_checked_and_read_once(monkeypatch):
    """A study makes hundreds of configs and networks: only the first of a name is looked into."""
    RunConfig(backbone="wrn-10-1", seed=0)
    build_model("wrn-10-1", 3, seed=0)

    def again(*_):
        raise AssertionError("looked into again")

    with monkeypatch.context() as patch:
        patch.setattr(backbones, "_build_own", again)
        RunConfig(backbone="wrn-10-1", seed=1)
    monkeypatch.setattr(build, "read_network", again)
    assert build_model("wrn-10-1", 3, seed=1)(images(1, 3, 32, 32)).saol_log_probs.shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet-8", "densenet-bc-22-12", "pyramidnet-shakedrop-8-12", "resnet18"])
@pytest.mark.parametrize("heads", [("gap",), ("saol",), ("gap", "saol")])
def test_a_family_is_read_on_a_copy_without_numbers(name, heads):
    """What stands for every network of a name is what reading that network gives."""
    made = build_backbone(name, 3)
    plan, _ = read_network(made.network, made.nodes, 3, heads)
    kept = build._plan(name, 3, False, made.nodes, heads)
    assert kept._replace(device=plan.device) == plan


def test_a_network_kept_in_mind_is_on_the_device_asked_for():
    with torch.device("meta"):
        assert all(value.is_meta for value in build_model("resnet-8", 3).state_dict().values())
    assert not any(value.is_meta for value in build_model("resnet-8", 3).state_dict().values())


def test_scaling_is_what_the_weights_were_trained_on():
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert input_scaling("resnet18") == imagenet
    assert input_scaling("timm:tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert input_scaling("timm:resnet18.a1_in1k") == imagenet
    assert input_scaling("resnet-8") is None
