"""Networks by name: their sizes and costs. Networks that the library never names: SAOL attached to them."""

import re
from functools import cache, partial

import pytest
import timm
import torch
import torch.nn.functional as F
from pytorchcv.model_provider import get_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as vision

from saol_lib.attach import attach_saol
from saol_lib.layers import GAPFC
from saol_lib.losses import gap_loss, saol_loss
from saol_lib.networks.backbones import build_backbone
from saol_lib.networks.build import build_model

SMALL = ["resnet-8", "resnet-8-8", "wrn-10-1", "densenet-bc-10-12", "pyramidnet-8-12", "pyramidnet-bn-11-12"]
STRANGERS = {  # how to make it, and the nodes that feed SAOL; one, two, three or four of them
    "regnet_y_400mf": (vision.regnet_y_400mf, [f"trunk_output.block{i}" for i in (2, 3, 4)]),
    "efficientnet_b0": (vision.efficientnet_b0, ["features.4", "features.6", "features.8"]),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, ["features.3", "features.8", "features.12"]),
    "densenet121": (vision.densenet121, ["features.denseblock2", "features.denseblock3", "relu"]),
    "shufflenet_v2_x0_5": (vision.shufflenet_v2_x0_5, ["stage2", "stage3", "stage4", "conv5"]),
    "squeezenet1_1": (vision.squeezenet1_1, ["features.12", "classifier.2"]),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto"), ["stages.1", "stages.2", "norm_pre"]),
    "timm resnet10t": (lambda: timm.create_model("resnet10t"), ["layer2", "layer3", "layer4"]),
    "timm tinynet_e": (lambda: timm.create_model("tinynet_e"), ["blocks.4", "bn2"]),
    "pytorchcv resnet10": (lambda: get_model("resnet10"), ["features.stage2", "features.stage3", "features.stage4"]),
    "pytorchcv mobilenet_wd4": (lambda: get_model("mobilenet_wd4"), ["features.stage5"]),
}  # fmt: skip


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def images(height, width, count=2, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@cache
def resnet18():
    return vision.resnet18()


class Plain(nn.Module):
    """Somebody's own network; `pool` makes its last map a vector."""

    def __init__(self, pool=lambda x: x.mean((2, 3))):
        super().__init__()
        self.head = nn.Linear(6, 5)
        self.first, self.second, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), pool

    def forward(self, x):
        return self.head(self.pool(self.second(self.first(x).relu()).relu()))


# --- sizes and costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [("wrn-28-10", 100, 36.5), ("densenet-bc-100-12", 100, 0.8), ("pyramidnet-bn-200-240", 100, 26.8),
     ("wrn-28-10", 10, 36.5), ("densenet-bc-100-12", 10, 0.8)],
)  # fmt: skip
def test_parameter_counts(name, classes, millions):
    with torch.device("meta"):
        assert round(parameters(build_model(name, classes, heads=("gap",))) / 1e6, 1) == millions


def multiply_adds(**options):
    with torch.device("meta"):
        model = build_model("resnet101", 1000, **options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2e9


def test_multiply_adds_of_resnet101_with_and_without_saol():
    assert round(multiply_adds(heads=("gap",)), 1) == 7.8
    assert 8.2 <= multiply_adds(separable=True) <= 8.35


# --- networks by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_last_map_is_exactly_what_the_network_pools(name):
    network, nodes = build_backbone(name, 7)
    model, pooled = build_model(name, 7, seed=0).eval(), []
    network.load_state_dict(
        {k.removeprefix("body."): v for k, v in model.state_dict().items() if k.startswith("body.")}
    )
    network.eval().features.final_pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    x = images(32, 32)
    plain, maps = network(x), model.body(x)
    assert len(nodes) == 3 and torch.equal(maps["2"], pooled[0])
    assert (pooled[0] >= 0).all()  # after the last ReLU, in pre-activation networks too
    layer = GAPFC(pooled[0].shape[1], 7)
    layer.load_state_dict(network.output.state_dict())
    torch.testing.assert_close(layer(maps["2"]), plain)
    torch.testing.assert_close(model(x).gap_logits, plain)
    assert [tuple(maps[str(i)].shape[2:]) for i in range(3)] == [(32, 32), (16, 16), (8, 8)]


def test_earlier_maps_are_the_stages_as_they_are():
    network, _ = build_backbone("wrn-10-1", 5)
    model, seen = attach_saol(network, ["features.stage1", "features.stage2", "features.post_activ"], 5).eval(), []
    for stage in (network.features.stage1, network.features.stage2):
        stage.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    network.eval()(images(32, 32))
    maps = model.body(images(32, 32))
    assert all(torch.equal(maps[str(i)], seen[i]) for i in (0, 1)) and (seen[0] < 0).any()


@pytest.mark.parametrize("heads", [("gap",), ("saol",), ("gap", "saol")])
def test_heads_decide_what_comes_out(heads):
    outputs = build_model("resnet-8", 4, heads=heads)(images(32, 48))
    made = {name for name, value in zip(outputs._fields, outputs, strict=True) if value is not None}
    saol = {"saol_log_probs", "attention", "spatial_log_probs", "mask_logits"}
    assert made == ({"gap_logits"} if "gap" in heads else set()) | (saol if "saol" in heads else set())
    if "saol" in heads:
        assert outputs.attention.shape == (2, 1, 8, 12) and outputs.spatial_log_probs.shape == (2, 4, 8, 12)


def weights(seed=3, **options):
    return build_model("wrn-10-1", 4, seed=seed, **options).state_dict()


def equal(a, b, part, but=()):
    names = [n for n in a if n.startswith(part) and not n.startswith(but or " ")]
    return bool(names) and all(torch.equal(a[n], b[n]) for n in names if n in b)


def test_one_seed_gives_one_backbone_and_one_head():
    torch.manual_seed(11)
    torch_state = torch.get_rng_state()
    both = weights()
    for heads in (("gap",), ("saol",)):
        assert equal(weights(heads=heads), both, "body.")
    assert equal(weights(heads=("saol",)), both, "saol.")
    unmasked = weights(mask_source="none")
    assert set(both) - set(unmasked) == {n for n in both if n.startswith("saol.mask.")} != set()
    assert equal(both, unmasked, ("saol.", "body."), but="saol.mask.")
    assert torch.equal(torch.get_rng_state(), torch_state)  # the global generator is left alone
    assert not equal(weights(seed=4), both, "body.features.stage1.") and not equal(weights(4), both, "saol.logits.")


def test_a_new_linear_layer_is_drawn_alike_whatever_the_other_head_is():
    nodes = ["layer3", "layer4"]
    arms = [{"heads": ("gap",)}, {}, {"mask_source": "none"}, {"logit_width": 9}]
    made = [attach_saol(resnet18(), nodes, 3, seed=1, **arm).state_dict() for arm in arms]
    assert all(equal(made[0], other, "gap.") for other in made)


def test_blocks_and_options_reach_saol():
    for blocks, channels in ((1, (64,)), (2, (32, 64)), (3, (16, 32, 64))):
        assert build_model("resnet-8", 4, blocks=blocks).saol.in_channels == channels
    assert build_model("resnet-8", 4, output_size=(8, 40))(images(32, 48)).attention.shape == (2, 1, 8, 40)
    model = build_model("resnet-8", 4, output_size=(3, 5), logit_width=9, separable=True, class_softmax="image")
    assert model(images(32, 32)).attention.shape == (2, 1, 3, 5)
    assert model.saol.class_softmax == "image" and model.saol.branches[0][1].out_channels == 9


def test_masks_are_passed_on():
    model = build_model("resnet-8", 4).eval()
    assert model(images(32, 32)).mask_logits is None and model(images(32, 32), mask=True).mask_logits is not None


# --- networks never named --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGERS)
def test_saol_on_a_network_never_named(name):
    make, nodes = STRANGERS[name]
    torch.manual_seed(0)
    network, x = make(), images(96, 64)
    model, size = attach_saol(network, nodes, 1000, separable=True, logit_width=8, seed=0).train(), (3, 2)
    outputs = model(x)
    if "squeezenet" in name:  # its strides end at 16, without padding
        size = tuple(outputs.attention.shape[2:])
    assert outputs.gap_logits.shape == outputs.saol_log_probs.shape == (2, 1000) and model.gap is None
    assert outputs.attention.shape == outputs.mask_logits.shape == (2, 1, *size)
    assert outputs.spatial_log_probs.shape == (2, 1000, *size)
    first = next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))
    for loss in (
        saol_loss(outputs.saol_log_probs, torch.tensor([1, 7])),
        gap_loss(outputs.gap_logits, torch.eye(1000)[:2]),
    ):
        (gradient,) = torch.autograd.grad(loss, first.weight, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any()
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    model.eval(), network.eval()
    x = images(224, 224, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x).gap_logits, network(x), rtol=1e-4, atol=1e-5)


def test_a_new_linear_layer_takes_over_where_the_number_of_classes_differs():
    for network, nodes in (
        (Plain(), ["relu_1"]),
        (resnet18(), ["layer4"]),
        (get_model("resnet10"), ["features.stage4"]),
    ):
        model = attach_saol(network, nodes, 7).eval()
        assert isinstance(model.gap, nn.Linear) and model.gap.out_features == 7
        x = images(96, 64)
        torch.testing.assert_close(
            model(x).gap_logits, F.linear(model.body(x)["0"].mean((2, 3)), *model.gap.parameters())
        )


@pytest.mark.parametrize("pool", [lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
                                  nn.Sequential(nn.AvgPool2d(8), nn.Flatten())])  # fmt: skip
def test_your_own_network(pool):
    network = Plain(pool)
    model = attach_saol(network, ["first", "relu_1"], 5).eval()
    torch.testing.assert_close(model(images(32, 32)).gap_logits, network.eval()(images(32, 32)))
    assert model(images(40, 24)).attention.shape == (2, 1, 10, 6)
    assert model.body.get_parameter("first.weight") is network.first.weight  # shared, not copied
    assert not isinstance(pool, nn.Sequential) or isinstance(
        pool[0], nn.AvgPool2d
    )  # and the original is left as it was


def test_blocks_in_any_order_and_more_than_ten_of_them():
    model = attach_saol(resnet18(), ["layer3", "layer2", "layer4"], 3)
    assert model.saol.in_channels == (256, 128, 512) and model(images(64, 32)).attention.shape == (2, 1, 2, 1)
    network, nodes = build_backbone("pyramidnet-26-24", 3)
    units = [f"features.stage{s}.unit{u}" for s in (1, 2, 3) for u in (1, 2, 3, 4)][:11]
    model = attach_saol(network, [*units, nodes[-1]], 3)
    assert len(set(model.saol.in_channels)) > 9 and model(images(32, 32)).attention.shape == (2, 1, 8, 8)


# --- bad input -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


SEQUENTIAL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 5))
NODES = ["layer3", "layer4"]
small = partial(build_model, "resnet-8", 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("resnext-29", 10), "backbone 'resnext-29' is not known; write for example resnet-8,"),
        (lambda: build_model("", 10), "backbone '' is not known"),
        (lambda: build_model("resnet-21", 10), "'resnet-21': depth 21 must be 6n + 2: 8, 14, ..."),
        (lambda: build_model("resnet-2", 10), "'resnet-2': depth 2 must be 6n + 2"),
        (lambda: build_model("wrn-27-10", 10), "'wrn-27-10': depth 27 must be 6n + 4: 10, 16, ..."),
        (lambda: build_model("pyramidnet-bn-201-240", 10), "depth 201 must be 9n + 2: 11, 20, ..."),
        (lambda: build_model("wrn-16-0", 10), "'wrn-16-0': depth and width must be positive"),
        (lambda: small(pretrained=True), "'resnet-8' has no pretrained weights"),
        (lambda: small(blocks=4), "blocks=4: resnet-8 has 3 stages; choose 1 to 3"),
        (lambda: small(blocks=0), "blocks=0: resnet-8 has 3 stages; choose 1 to 3"),
        (lambda: small(heads=("gap", "cam")), "heads=('gap', 'cam') must name one or both"),
        (lambda: small(heads=()), "heads=() must name one or both"),
        (lambda: small(heads="saol"), "heads='saol' must name one or both"),
        (lambda: small(resize="cubic"), "resize='cubic' is not known; choose one of 'bilinear'"),
        (lambda: small(output_size=0), "output_size=0 must be None or at least 1"),
        (lambda: small(output_size=33)(images(32, 48)), "output_size=(33, 33) is larger than the"),
        (lambda: small(output_size=(40, 8))(images(32, 48)), "(40, 8) is larger than the images, (32, 48)"),
        (lambda: small()(torch.zeros(2, 1, 32, 32)), "shape (2, 1, 32, 32); expected (B, 3, H, W)"),
        (lambda: small()(torch.zeros(3, 32, 32)), "shape (3, 32, 32); expected (B, 3, H, W)"),
        (lambda: attach_saol(resnet18(), ["layer3", "layr4"], 10), "'layr4' is not in ResNet; the nearest are layer4"),
        (lambda: attach_saol(resnet18(), ["layer4", "layer4"], 10), "nodes=['layer4', 'layer4']: name at least"),
        (lambda: attach_saol(Plain(), ["relu_1", "relu_1"], 5), "nodes=['relu_1', 'relu_1']: name at least one block"),
        (lambda: attach_saol(resnet18(), [], 10), "nodes=[]: name at least one block, and none twice"),
        (lambda: attach_saol(resnet18(), "layer4", 10), "nodes='layer4' must be a list of names"),
        (lambda: attach_saol(resnet18(), ["layer4", "layer3"], 10), "is 'layer3', but the network pools 'layer4"),
        (lambda: attach_saol(resnet18(), ["layer4.1.bn2"], 10), "last node is 'layer4.1.bn2', but the network pools"),
        (lambda: attach_saol(resnet18(), ["fc"], 10), "last node is 'fc', but the network pools 'layer4.1.relu_1'"),
        (lambda: attach_saol(resnet18(), ["flatten", "layer4"], 10), "node 'flatten' gives (512,)"),
        (lambda: attach_saol(small(), NODES, 10), "this network has its output layers already"),
        (lambda: attach_saol(SEQUENTIAL, ["0"], 5), "no global average pooling was found in this network"),
        (lambda: attach_saol(Recurrent(), ["x"], 5), "torch.fx cannot trace Recurrent"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="logitwidth"):
        small(logitwidth=3)
