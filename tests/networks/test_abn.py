"""ABN against its literal composition and its known cost."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saol_lib.networks import ABN, build_backbone, build_model, multiply_adds
from saol_lib.networks.abn import without_stride

NAMES = ["resnet-8-8", "wrn-10-1", "densenet-bc-10-12", "pyramidnet-8-12", "pyramidnet-bn-11-12",
         "pyramidnet-shakedrop-8-12", "resnet18", "resnext50_32x4d"]  # fmt: skip


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(model, seed=0):
    """Every BatchNorm with statistics and weights of its own, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_var, norm.weight.data):
            tensor.uniform_(0.5, 1.5, generator=generator)
        for tensor in (norm.running_mean, norm.bias.data):
            tensor.normal_(std=0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "first", "end"), [("resnet18", 4, 5), ("wrn-10-1", 3, 5), ("densenet-bc-10-12", 3, 5)]
)
def test_abn_is_its_literal_composition(name, first, end):
    """The definition of facts: x, its branch at stride 1, M, x * (1 + M), written out with functional calls."""
    network, nodes = build_backbone(name, 5)
    model = shaken(ABN(network, nodes, 5))
    x = images(2, 3, 32, 32)
    children = list(getattr(network, "features", network).children())
    if name == "resnet18":
        trunk, last = nn.Sequential(*children[:7]), nn.Sequential(children[7])
    else:
        trunk, last = nn.Sequential(*children[:first]), nn.Sequential(*children[first:end])
    _, norm_a, conv, norm_b, _ = model.branch

    def bn(y, n):
        return F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)

    seen = trunk(x)
    features = bn(model.branch[0](seen), norm_a)
    maps = bn(F.conv2d(features, conv.weight), norm_b).relu()
    attention = bn(F.conv2d(maps, model.map[0].weight, padding=1), model.map[1]).sigmoid()
    feature = last(seen * attention + seen)
    linear = list(network.children())[-1]
    outputs, found = model.look(x)
    torch.testing.assert_close(outputs.attention, attention)
    torch.testing.assert_close(outputs.aux_logits, F.conv2d(maps, model.aux.weight).mean((2, 3)))
    torch.testing.assert_close(outputs.gap_logits, linear(feature.mean((2, 3))))
    torch.testing.assert_close(found, feature)
    assert outputs.saol_log_probs is outputs.spatial_log_probs is outputs.mask_logits is None
    assert model.gap is linear and model(x).gap_logits.equal(outputs.gap_logits)


@pytest.mark.parametrize("name", NAMES)
def test_with_m_at_zero_abn_is_the_gap_fc_network_bit_for_bit(name):
    plain, abn = build_model(name, 7, heads=("gap",), seed=3), build_model(name, 7, heads=("abn",), seed=3)
    x = images(2, 3, 64, 64)
    trained = {n.removeprefix("features."): value for n, value in shaken(plain).body.state_dict().items()}
    for part in (abn.trunk, abn.stage):
        part.load_state_dict({n: trained[n] for n in part.state_dict()})
    abn.eval()
    assert not abn(x).gap_logits.equal(plain(x).gap_logits)
    abn.map[1].bias.data.fill_(-1e4)  # the sigmoid's zero
    outputs, last = abn.look(x)
    assert not outputs.attention.any() and outputs.gap_logits.equal(plain(x).gap_logits)
    assert last.equal(plain.look(x)[1])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_the_first_weights(name):
    model = build_model(name, 4, heads=("abn",), seed=0).train()
    x = images(3, 3, 64, 96)
    outputs, last = model.look(x)
    height, width = last.shape[2:]
    assert outputs.attention.shape == (3, 1, 2 * height, 2 * width)
    assert outputs.gap_logits.shape == outputs.aux_logits.shape == (3, 4)
    assert outputs.attention.min() > 0 and outputs.attention.max() < 1
    (outputs.gap_logits.logsumexp(1) + outputs.aux_logits.logsumexp(1)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    drawn = build_model(name, 4, heads=("gap",), seed=0).body.named_parameters()
    plain = {n.removeprefix("features."): value for n, value in drawn}
    for part in (model.trunk, model.stage, model.branch[0]):  # of the same seed, as other arms; the branch is a copy
        own = dict(part.named_parameters())
        assert own and all(torch.equal(value, plain[n]) for n, value in own.items())
    assert not {id(p) for p in model.branch.parameters()} & {id(p) for p in model.stage.parameters()}


def test_one_seed_gives_one_abn_and_leaves_torch_alone():
    before = torch.get_rng_state()
    a, b, c = (build_model("resnet-8", 4, heads=["abn"], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a) and not torch.equal(a["aux.weight"], c["aux.weight"])


def test_a_classifier_for_other_classes_is_replaced():
    network, nodes = build_backbone("resnet-8", 6)
    assert ABN(network, nodes, 3).gap.out_features == 3 and network.output.out_features == 6


@pytest.mark.parametrize(("name", "total"), [("resnet50", 7.6), ("resnet101", 11.3)])
def test_cost_at_224_is_the_known_one(name, total):
    """+3.53 G multiply-adds and +18.0 M parameters, counted from the authors' code for 1,000 classes."""
    with torch.device("meta"):
        plain, abn = (build_model(name, 1000, heads=heads) for heads in (("gap",), ("abn",)))
    more = multiply_adds(abn, (224, 224)) - multiply_adds(plain, (224, 224))
    parameters = [sum(p.numel() for p in model.parameters()) for model in (plain, abn)]
    assert round(more / 1e9, 2) == 3.53 and round((parameters[1] - parameters[0]) / 1e6, 1) == 18.0
    assert round(multiply_adds(abn, (224, 224)) / 1e9, 1) == total


@pytest.mark.parametrize("name", NAMES)
def test_without_stride_keeps_size_weights_and_the_original(name):
    network, nodes = build_backbone(name, 4)
    stage = network.get_submodule("layer4" if nodes[-1] == "layer4" else "features.stage3")
    x = images(1, next(m for m in stage.modules() if isinstance(m, nn.Conv2d)).in_channels, 8, 6)
    before = stage.eval()(x).detach()
    wide = without_stride(stage)
    assert wide(x).shape[2:] == (8, 6) and before.shape[2:] == (4, 3) and stage(x).equal(before)
    assert all(a.equal(b) for a, b in zip(wide.state_dict().values(), stage.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("resnet-8", 4, heads=("abn", "gap")), "build_model also takes ('abn',)"),
        (lambda: build_model("resnet-8", 4, heads=("abn",))(torch.zeros(2, 1, 32, 32)), "expected (B, 3, H, W)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_nested_stage_of_a_timm_network_is_opened():
    """EfficientNet keeps its stages in one Sequential: the parts in turn are still the network, bit for bit."""
    pytest.importorskip("timm")
    model = build_model("timm:tf_efficientnet_lite0", 4, heads=("abn",), seed=0).eval()
    network = build_model("timm:tf_efficientnet_lite0", 4, heads=("gap",), seed=0).eval()
    x = images(2, 3, 64, 96)
    assert torch.equal(model.stage(model.trunk(x)), network.look(x)[1])
    outputs, found = model.look(x)
    assert outputs.attention.shape == (2, 1, 4, 6) and found.shape == (2, 1280, 2, 3)


def test_a_network_that_does_more_than_its_parts_in_turn_is_refused():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.last(2 * self.first(x)).mean((2, 3)))

    class Wrapped(Doubled):
        def __init__(self):
            super().__init__()
            self.inner = Doubled()

    with pytest.raises(ValueError, match="the network's own forward does more than that"):
        ABN(Doubled(), ["first", "last"], 5)
    with pytest.raises(ValueError, match="inner is a Doubled, which does more than call its parts in turn"):
        ABN(Wrapped(), ["inner.first", "inner.last"], 5)
