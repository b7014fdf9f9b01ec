"""Networks by name: their sizes and costs. Networks that the library never names: SAOL attached to them."""

import hashlib
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache, partial
from typing import NamedTuple

import attach_everywhere
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
    "densenet121": (vision.densenet121, ["features.denseblock2", "features.denseblock3", "features"]),
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
        self.act = nn.ReLU()

    def forward(self, x):
        return self.head(self.pool(self.act(self.second(self.first(x).relu()))))


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
@pytest.mark.numeric
def test_the_last_map_is_exactly_what_the_network_pools(name):
    network, nodes = build_backbone(name, 7)
    model, pooled = build_model(name, 7, seed=0).eval(), []
    network.load_state_dict(
        {k.removeprefix("body."): v for k, v in model.state_dict().items() if k.startswith("body.")}
    )
    network.eval().features.final_pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    x = images(32, 32)
    plain, maps = network(x), model.maps(x)[1]
    assert len(nodes) == 3 and torch.equal(maps[2], pooled[0])
    assert (pooled[0] >= 0).all()  # after the last ReLU, in pre-activation networks too
    layer = GAPFC(pooled[0].shape[1], 7)
    layer.load_state_dict(network.output.state_dict())
    torch.testing.assert_close(layer(maps[2]), plain)
    assert torch.equal(model(x).gap_logits, plain)
    assert [tuple(maps[i].shape[2:]) for i in range(3)] == [(32, 32), (16, 16), (8, 8)]


def test_earlier_maps_are_the_stages_as_they_are():
    network, _ = build_backbone("wrn-10-1", 5)
    model, seen = attach_saol(network, ["features.stage1", "features.stage2", "features.post_activ"], 5).eval(), []
    for stage in (network.features.stage1, network.features.stage2):
        stage.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    network.eval()(images(32, 32))
    seen.clear()
    _, maps = model.maps(images(32, 32))
    assert all(torch.equal(maps[i], seen[i]) for i in (0, 1)) and (seen[0] < 0).any()


@pytest.mark.parametrize("heads", [("gap",), ("saol",), ("gap", "saol")])
@pytest.mark.numeric
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


@pytest.mark.numeric
def test_masks_are_passed_on():
    model = build_model("resnet-8", 4).eval()
    assert model(images(32, 32)).mask_logits is None and model(images(32, 32), mask=True).mask_logits is not None


# --- networks never named --------------------------------------------------------------------------------------------


def answer(network, x, seed=5):
    """What a plain network answers, with the random state of `seed`."""
    torch.manual_seed(seed)
    found = network(x)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("name", STRANGERS)
def test_saol_on_a_network_never_named(name):
    make, nodes = STRANGERS[name]
    torch.manual_seed(0)
    network, fixed = make(), name.startswith("pytorchcv")  # by the window of its pooling
    plain, x = deepcopy(network).train(), images(224, 224) if fixed else images(96, 64)
    model, size = (
        attach_saol(network, nodes, 1000, separable=True, logit_width=8, seed=0).train(),
        (7, 7) if fixed else (3, 2),
    )
    torch.manual_seed(5)
    outputs = model(x)
    if "squeezenet" in name:  # its strides end at 16, without padding
        size = tuple(outputs.attention.shape[2:])
    assert outputs.gap_logits.shape == outputs.saol_log_probs.shape == (2, 1000) and model.gap is None
    assert outputs.attention.shape == outputs.mask_logits.shape == (2, 1, *size)
    assert outputs.spatial_log_probs.shape == (2, 1000, *size)
    assert torch.equal(outputs.gap_logits, answer(plain, x))
    first = next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))
    for loss in (
        saol_loss(outputs.saol_log_probs, torch.tensor([1, 7])),
        gap_loss(outputs.gap_logits, torch.eye(1000)[:2]),
    ):
        (gradient,) = torch.autograd.grad(loss, first.weight, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any()
    model.eval(), plain.eval()
    with torch.no_grad():
        assert torch.equal(model(x).gap_logits, plain(x))  # their normalisations have seen the same
        assert model(images(160, 224)).attention.shape[3] in (7, 13)  # squeezenet's is 13 wide


def test_a_new_linear_layer_takes_over_where_the_number_of_classes_differs():
    for network, nodes in (
        (Plain(), ["act"]),
        (resnet18(), ["layer4"]),
        (get_model("resnet10"), ["features.stage4"]),
    ):
        model = attach_saol(network, nodes, 7).eval()
        assert isinstance(model.gap, nn.Linear) and model.gap.out_features == 7
        x = images(96, 64)
        torch.testing.assert_close(
            model(x).gap_logits, F.linear(model.maps(x)[1][0].mean((2, 3)), *model.gap.parameters())
        )
        outputs = model.train()(x)
        (outputs.saol_log_probs[:, 0].sum() + outputs.gap_logits.sum() + outputs.mask_logits.sum()).backward()
        assert all(weight.grad is not None for weight in model.parameters())  # the old classifier's are gone


@pytest.mark.parametrize("pool", [lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
                                  nn.Sequential(nn.AvgPool2d(8), nn.Flatten())])  # fmt: skip
def test_your_own_network(pool):
    network = Plain(pool)
    model = attach_saol(network, ["first", "act"], 5).eval()
    assert torch.equal(model(images(32, 32)).gap_logits, network.eval()(images(32, 32)))
    assert model(images(40, 24)).attention.shape == (2, 1, 10, 6)
    assert model.body.get_parameter("first.weight") is network.first.weight  # shared, not copied
    assert pool is network.pool and (not isinstance(pool, nn.Sequential) or type(pool[0]) is nn.AvgPool2d)


def test_blocks_in_any_order_and_more_than_ten_of_them():
    model = attach_saol(resnet18(), ["layer3", "layer2", "layer4"], 3)
    assert model.saol.in_channels == (256, 128, 512) and model(images(64, 32)).attention.shape == (2, 1, 2, 1)
    network, nodes = build_backbone("pyramidnet-26-24", 3)
    units = [f"features.stage{s}.unit{u}" for s in (1, 2, 3) for u in (1, 2, 3, 4)][:11]
    model = attach_saol(network, [*units, nodes[-1]], 3)
    assert len(set(model.saol.in_channels)) > 9 and model(images(32, 32)).attention.shape == (2, 1, 8, 8)


# --- the user's own forward, untouched -------------------------------------------------------------------------------


class Odd(nn.Module):
    """Everything that a rewritten forward gets wrong: in-place changes, random scaling, an auxiliary output, state."""

    def __init__(self, returns=tuple):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.middle, self.last = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.aux, self.classifier = nn.Linear(8, 5), nn.Linear(12, 5)
        self.pool, self.returns = nn.AdaptiveAvgPool2d(1), returns
        self.frozen = True

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self

    def forward(self, x):
        x = self.norm(self.stem(x))
        x.relu_()
        y = self.middle(x)
        aux = self.aux(y.mean((2, 3)))
        y.add_(1)
        y[:, 0] = 0
        if self.training:
            y.div_(0.8).mul_(torch.empty(len(y), 1, 1, 1, dtype=y.dtype).bernoulli_(0.8))
        y = self.last(F.dropout(y, 0.1, self.training, inplace=True))
        y.relu_()
        self.seen = y.detach()
        logits = self.classifier(self.pool(y).flatten(1))
        if not self.training:
            return logits
        if self.returns is dict:
            return {"aux": aux, "logits": logits}
        return Pair(aux, logits) if self.returns is Pair else (aux, logits)


class Pair(NamedTuple):
    aux: torch.Tensor
    main: torch.Tensor


@pytest.mark.parametrize("returns", [tuple, dict, Pair])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.numeric
def test_an_odd_network_answers_as_it_did(returns, dtype):
    network = Odd(returns).to(dtype)
    plain, model, x = deepcopy(network), attach_saol(network, seed=0), images(48, 32).to(dtype)
    assert [tap.name for tap in model.taps] == ["norm", "middle", "last"]
    assert model.saol.logits.weight.dtype == dtype
    for mode in (True, False):
        plain.train(mode), model.train(mode)
        assert not network.norm.training
        torch.manual_seed(3)
        outputs, last = model.look(x)
        torch.manual_seed(3)
        made = plain(x)
        if mode:
            made = made["logits"] if returns is dict else made[1]
        assert torch.equal(outputs.gap_logits, made)
        assert torch.equal(last, plain.seen) and (last >= 0).all()


@pytest.mark.numeric
def test_maps_that_change_in_place_later_are_kept_as_they_were():
    network = Odd()
    model, x = attach_saol(network, seed=0).eval(), images(48, 32)
    _, (first, second, last) = model.maps(x)
    stem = network.norm(network.stem(x))
    assert (stem < 0).any() and torch.equal(first, stem)
    assert torch.equal(second, network.middle(stem.relu()))
    assert [tap.clone for tap in model.taps] == [True, True, False]
    outputs = model(x)
    for value in (outputs.gap_logits, outputs.saol_log_probs):
        (gradient,) = torch.autograd.grad(value[:, 0].sum(), network.stem.weight, retain_graph=True)
        assert gradient.any()
    assert last.requires_grad


def test_the_network_is_found_out_without_being_changed():
    network, calls = Odd(), []
    network.stem.register_forward_hook(lambda *_: calls.append(1))
    network.train().middle.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch_state = torch.get_rng_state()
    model = attach_saol(network, seed=0)
    assert torch.equal(torch_state, torch.get_rng_state()) and not calls
    assert not hasattr(network, "seen") and not network.middle.training and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    model(images(48, 32))
    assert calls == [1]


def test_the_users_hooks_act_in_the_attached_network():
    network = Odd().eval()
    model, x = attach_saol(network, seed=0), images(48, 32)
    before = model(x).gap_logits
    network.last.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    assert not torch.equal(model(x).gap_logits, before) and torch.equal(model(x).gap_logits, network(x))


def test_under_autocast_the_answer_is_the_networks_own():
    network = vision.resnet18(num_classes=5).eval()
    plain, model, x = deepcopy(network), attach_saol(network, seed=0), images(64, 96)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(model(x).gap_logits, plain(x)) and model(x).gap_logits.dtype == torch.bfloat16


def test_two_attachments_of_one_network_do_not_meet():
    network, x = vision.resnet18(num_classes=5).eval(), images(64, 96)
    first = attach_saol(network, ["layer1", "layer4"], seed=0)
    alone = first(x)
    second = attach_saol(network, ["layer3", "layer4"], seed=0)
    assert second.saol.in_channels == (256, 512) and torch.equal(first(x).attention, alone.attention)
    assert not torch.equal(second(x).saol_log_probs, alone.saol_log_probs)


# --- what is done to networks ----------------------------------------------------------------------------------------


def odd_network():
    return attach_saol(Odd(), seed=0).eval()


def same(a, b, bound=0.0):
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None]
    return len(pairs) > 3 and all(torch.allclose(x, y, rtol=0, atol=bound) for x, y in pairs)


def test_it_is_copied_pickled_saved_and_loaded():
    model, x = odd_network(), images(48, 32)
    wanted = model(x)
    assert same(deepcopy(model)(x), wanted)
    again = pickle.loads(pickle.dumps(model))
    assert same(again(x), wanted) and again.train().body.training and not again.body.norm.training
    other = attach_saol(Odd(), seed=1).eval()
    assert not same(other(x), wanted)
    other.load_state_dict(model.state_dict())
    assert same(other(x), wanted)


def test_it_is_exported_and_compiled():
    model, x = odd_network(), images(48, 32)
    wanted = model(x)
    program = torch.export.export(model, (x,))
    assert same(program.module()(x), wanted, 1e-4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert same(compiled(x), wanted, 1e-4)


def test_threads_and_replicas_keep_their_maps_apart():
    """As DataParallel does it: replicas share the hooks, and each runs in a thread."""
    model = odd_network()
    replicas = []
    for _ in range(2):
        replica = model._replicate_for_data_parallel()
        replica.body = model.body._replicate_for_data_parallel()
        for name, module in model.body.named_children():
            copy = module._replicate_for_data_parallel()
            for own, weight in module._parameters.items():
                copy._parameters[own] = weight
            setattr(replica.body, name, copy)
        replicas.append(replica)
    batches = [images(48, 32, seed=seed) for seed in range(8)]
    wanted = [model(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(model, batches))
        parted = list(pool.map(lambda i: replicas[i % 2](batches[i]), range(8)))
    assert all(same(a, b) for a, b in zip(shared, wanted, strict=True))
    assert all(same(a, b) for a, b in zip(parted, wanted, strict=True))


# --- maps found by themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (vision.resnet18, ["layer2", "layer3", "layer4"]),
        (vision.mobilenet_v3_small, ["features.3", "features.8", "features"]),
        (vision.squeezenet1_1, ["features.4", "features.7", "classifier.2"]),
        (lambda: vision.vgg11(num_classes=3), ["features.14", "features.19", "features"]),
        (lambda: timm.create_model("convnext_atto"), ["stages.1", "stages.2", "norm_pre"]),
    ],
)
def test_the_last_map_and_two_finer_levels_are_found(make, names):
    with torch.device("meta"):
        model = attach_saol(make())
    assert [tap.name for tap in model.taps] == names


@pytest.mark.parametrize("name", ["torchvision mnasnet0_5", "timm selecsls42", "pytorchcv peleenet"])
def test_a_sample_of_the_networks_of_all_libraries(name):
    """All of them: results/attach.md."""
    record = attach_everywhere.check(attach_everywhere.networks()[name])
    assert "failed" not in record and record["own"] and len(record["nodes"]) == 3
    assert record["enlarged"] == record["dilated"] == "yes"


def test_the_report_counts_and_names_what_fails():
    good = {"nodes": ["a", "b"], "own": True, "enlarged": "yes", "dilated": "its kernel is even"}
    text = attach_everywhere.report({"timm a": good, "timm b": {"failed": "no map"}}, 3)
    assert "| timm | 2 | 1 (50.0 %) | 1 of 1 | 0 of 1 |" in text and "**Incomplete: 2 of 3 networks" in text
    assert "- timm b: no map" in text and "- timm a: its kernel is even" in text and "| timm a | a, b |" in text


class LeNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip


def test_a_network_of_one_size_and_one_channel_that_pools_nothing(caplog):
    network = LeNet()
    model = attach_saol(network, seed=0)
    assert (model.channels, model.size) == (1, (28, 28)) and "takes images of 28 x 28 pixels alone" in caplog.text
    assert [tap.name for tap in model.taps] == ["1", "4", "5"]
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(x).gap_logits, network(x)) and model(x).attention.shape == (2, 1, 5, 5)


class Decides(nn.Module):
    """Its forward depends on numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.conv(x))
        if x.mean() > 1e9:
            x = -x
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_network_that_decides_by_numbers():
    network = Decides()
    model, x = attach_saol(network, seed=0).eval(), images(32, 48)
    assert network.norm.num_batches_tracked == 0 and [tap.name for tap in model.taps] == ["norm"]
    assert torch.equal(model(x).gap_logits, network(x))


def test_an_auxiliary_output_that_needs_a_large_image():
    """It cannot be seen on the first image tried, and is there in training alone."""
    with torch.device("meta"):
        model = attach_saol(vision.inception_v3(init_weights=False))
    assert model.logits == {True: (0,), False: ()} and model.size[0] >= 224


def test_an_unused_classifier_costs_nothing_and_is_not_trained():
    network = vision.vgg11(num_classes=5)
    model = attach_saol(network, heads=("saol",), seed=0)
    assert isinstance(model.body.classifier[0], nn.Identity) and isinstance(network.classifier[0], nn.Linear)
    outputs = model(images(64, 96))
    (outputs.saol_log_probs[:, 0].sum() + outputs.mask_logits.sum()).backward()
    assert outputs.gap_logits is None and all(weight.grad is not None for weight in model.parameters())


HASHES = {  # of all names and first weights of 7 classes and seed 3, by the code before the hooks
    "resnet-8": ("8264bd3b3c636d07", "c2f82afd34c94b0e", "033a99e7a384c4ac"),
    "wrn-10-1": ("0ab9ee056f745c07", "f9f88867bd67b40d", "54eff5fec1612fb0"),
    "densenet-bc-10-8": ("8b31a4cbe0d05f11", "dd9c494019296bab", "8162cf1123226ab4"),
    "pyramidnet-8-12": ("c65972ecdf363dd8", "3f1743ef67ba1bf0", "74711ca6d5c7273b"),
}


@pytest.mark.parametrize("name", HASHES)
@pytest.mark.numeric
def test_first_weights_are_those_of_published_runs(name):
    for heads, wanted in zip((("gap", "saol"), ("saol",), ("gap",)), HASHES[name], strict=True):
        digest = hashlib.sha256()
        for key, value in sorted(build_model(name, 7, heads=heads, seed=3).state_dict().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        assert digest.hexdigest()[:16] == wanted


# --- bad input -------------------------------------------------------------------------------------------------------


class Wants(nn.Module):
    """Wants more than images."""

    def forward(self, x, target):
        return x


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
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
        (lambda: attach_saol(Plain(), ["act", "act"], 5), "nodes=['act', 'act']: name at least one block"),
        (lambda: attach_saol(resnet18(), [], 10), "nodes=[]: name at least one block, and none twice"),
        (lambda: attach_saol(resnet18(), "layer4", 10), "nodes='layer4' must be a list of names"),
        (lambda: attach_saol(resnet18(), ["layer4", "layer3"], 10), "is 'layer3', but the network pools 'layer4"),
        (lambda: attach_saol(resnet18(), ["layer4.1.conv2"], 10), "node is 'layer4.1.conv2', but the network pools"),
        (lambda: attach_saol(resnet18(), ["fc"], 10), "the last node is 'fc', but the network pools 'layer4'"),
        (lambda: attach_saol(resnet18(), ["fc", "layer4"], 10), "node 'fc' gives (1000,)"),
        (lambda: attach_saol(small(), NODES, 10), "this network has its output layers already"),
        (lambda: attach_saol(FLAT), "no map (B, C, H, W) that follows the image's size leads to the network's output"),
        (lambda: attach_saol(ChannelsLast()), "its last map with the channels at the end, (96, 160, 4) for one"),
        (lambda: attach_saol(resnet18().avgpool), "no map"),
        (lambda: attach_saol(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), "gives (B, K): say num_classes"),
        (lambda: attach_saol(nn.DataParallel(resnet18())), "wrapped in DataParallel: attach SAOL to its .module"),
        (lambda: attach_saol(torch.compile(resnet18())), "attach SAOL to its ._orig_mod, then compile the result"),
        (lambda: attach_saol(Wants()), "Wants runs on no image (B, C, H, W) of the sizes tried (TypeError: "),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_keyword_is_named():
    with pytest.raises(ValueError, match="did you mean logit_width"):
        small(logitwidth=3)


def test_networks_are_built_inside_inference_mode():
    """As in a cell that only looks at a network."""
    images = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        named = build_model("resnet-8", 10)
        plain = attach_saol(vision.resnet18(num_classes=10))
        assert named(images).saol_log_probs.shape == plain(images).saol_log_probs.shape == (2, 10)
