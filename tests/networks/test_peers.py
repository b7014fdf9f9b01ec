"""ABN against its literal composition and its known cost; ShakeDrop's factors, expectations and draws."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from saol_lib.networks.backbones import build_backbone
from saol_lib.networks.build import build_model
from saol_lib.networks.enlarge import multiply_adds
from saol_lib.networks.peers import ABN, ShakeDrop, without_stride
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import train

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


# --- ABN -------------------------------------------------------------------------------------------------------------


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
        (lambda: ShakeDrop(0.5, "pixel"), "per='pixel' is not known; choose one of 'sample', 'batch'"),
        (lambda: ShakeDrop(1.5), "keep=1.5 must be a probability, 0 to 1"),
        (lambda: build_model("pyramidnet-shakedrop-21-48", 4), "depth 21 must be 6n + 2"),
        (lambda: build_model("pyramidnet-shakedrop-pixel-20-48", 4), "is not known; write for example"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- ShakeDrop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.8, 1.0])
def test_shakedrop_means_p_forward_and_at_test(keep):
    """E[b + a - b a] = p, E[b + c - b c] = p + (1 - p) / 2; the standard errors over 20,000 draws are under 0.006."""
    torch.manual_seed(0)
    y = torch.ones(20000, 1, 1, 1, requires_grad=True)
    layer = ShakeDrop(keep)
    out = layer(y)
    out.sum().backward()
    assert out.mean().item() == pytest.approx(keep, abs=0.02)
    assert y.grad.mean().item() == pytest.approx((1 + keep) / 2, abs=0.02)
    assert (out.max() <= 1 + 1e-6) and (out.min() >= -1 - 1e-6) and (y.grad.min() >= 0)
    assert torch.equal(layer.eval()(y), keep * y)


class Twin(torch.autograd.Function):
    """The definition, literally: one factor forward, another one backward."""

    @staticmethod
    def forward(ctx, y, b, alpha, beta):
        ctx.factor = b + beta - b * beta
        return (b + alpha - b * alpha) * y

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None, None, None


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_shakedrop_is_the_literal_function(per, seed):
    y, weights = images(6, 3, 4, 5, seed=seed).double(), images(6, 3, 4, 5, seed=seed + 9).double()
    ours, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    torch.manual_seed(seed)
    out = ShakeDrop(0.2, per)(ours)
    torch.manual_seed(seed)
    shape = (6 if per == "sample" else 1, 1, 1, 1)
    b = torch.bernoulli(torch.full(shape, 0.2, dtype=torch.float64))
    alpha = 2 * torch.rand(shape, dtype=torch.float64) - 1
    twin = Twin.apply(theirs, b, alpha, torch.rand(shape, dtype=torch.float64))
    torch.testing.assert_close(out, twin)
    (out * weights).sum().backward(), (twin * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    factors = (out / ours).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))  # one for a whole sample
    torch.testing.assert_close(factors.amax(0), factors.amin(0)) if per == "batch" else None
    assert per == "batch" or factors[:, 0].round(decimals=9).unique().numel() > 1


@pytest.mark.parametrize(("infix", "per"), [("", "sample"), ("batch-", "batch")])
def test_shakedrop_in_pyramidnet(infix, per):
    with torch.random.fork_rng():
        model = (torch.manual_seed(0), build_backbone(f"pyramidnet-shakedrop-{infix}20-48", 10).network)[1]
        plain = (torch.manual_seed(0), build_backbone("pyramidnet-20-48", 10).network)[1]
    layers = [m for m in model.modules() if isinstance(m, ShakeDrop)]
    assert [layer.keep for layer in layers] == pytest.approx([1 - unit / 9 * 0.5 for unit in range(1, 10)])
    assert {layer.per for layer in layers} == {per}
    first = dict(plain.named_parameters())
    assert all(torch.equal(p, first[re.sub(r"unit(\d)\.bn\.0", r"unit\1.bn", n)]) for n, p in model.named_parameters())
    for layer in layers:
        layer.keep = 1.0  # nothing dropped: the plain network
    x = images(4, 3, 32, 32)
    torch.testing.assert_close(model.train()(x), plain.train()(x))
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("name", ["pyramidnet-shakedrop-8-12", "pyramidnet-bn-shakedrop-batch-11-12"])
def test_fx_traces_the_draws_of_training_and_none_of_evaluation(name):
    network, nodes = build_backbone(name, 4)
    body = create_feature_extractor(network, [nodes[-1]], suppress_diff_warning=True)
    x = images(3, 3, 32, 32)
    drawn = []
    for mode in (True, False):
        body.train(mode), network.train(mode)
        torch.manual_seed(1)
        first = body(x)[nodes[-1]]
        drawn.append(not body(x)[nodes[-1]].equal(first))
    assert drawn == [True, False]
    torch.manual_seed(1)
    a = body.train()(x)[nodes[-1]]
    torch.manual_seed(1)
    assert a.equal(network.train().features[:-1](x))


def test_a_shakedrop_network_trains_and_evaluates_alike_twice(tmp_path):
    values = {"backbone": "pyramidnet-shakedrop-20-48", "train_images": 20, "batch_size": 20, "epochs": 1,
              "eval_split": "held_out", "held_out": 50}  # fmt: skip
    runs = [train(RunConfig(arm="saol", **values), tmp_path / str(i), progress=False) for i in range(2)]
    assert runs[0].metrics == runs[1].metrics and runs[0].epochs == runs[1].epochs
    model, x = build_model("pyramidnet-shakedrop-20-48", 10, seed=0).eval(), images(2, 3, 32, 32)
    assert model(x).gap_logits.equal(model(x).gap_logits)
