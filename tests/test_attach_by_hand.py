"""Networks as people write them for CIFAR by hand, whose last map is often made and pooled by functions alone."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saol_lib.attach import attach_saol, find_nodes
from saol_lib.networks import enlarge


def images(height=32, width=32, count=2, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def conv(entering, leaving, stride=1, groups=1):
    return nn.Conv2d(entering, leaving, 3, stride, 1, groups=groups, bias=False)


class Base(nn.Module):
    """`last(x)` is X_L; what is written there runs in `forward` itself, as in the networks that these are like."""

    def forward(self, x):
        x = self.last(x)
        self.seen = x.detach().clone()
        return self.answer(x)

    def answer(self, x):
        return self.linear(F.avg_pool2d(x, x.size(2)).view(x.size(0), -1))


class DenseLayer(nn.Module):
    def __init__(self, entering, growth):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(entering), conv(entering, growth)

    def forward(self, x):
        return torch.cat([self.conv(F.relu(self.bn(x))), x], 1)


class Transition(nn.Module):
    def __init__(self, entering, leaving):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(entering), nn.Conv2d(entering, leaving, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseLike(Base):
    nodes = ("dense2", "dense3", "avg_pool2d()")

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.dense1, self.trans1 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4)), Transition(16, 8)
        self.dense2, self.trans2 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4)), Transition(16, 8)
        self.dense3, self.trans3 = nn.Sequential(DenseLayer(8, 4)), Transition(12, 8)
        self.dense4, self.bn = nn.Sequential(DenseLayer(8, 4)), nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 5)

    def last(self, x):
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans3(self.dense3(self.trans2(self.dense2(x))))
        return F.relu(self.bn(self.dense4(x)))

    def answer(self, x):
        return self.linear(F.avg_pool2d(x, 4).view(x.size(0), -1))


class PreActBlock(nn.Module):
    def __init__(self, entering, leaving, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv(entering, leaving, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(leaving), conv(leaving, leaving)
        self.shortcut = nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreActLike(Base):
    """Its last block is normalised by a function that many use: a mean over the last two axes."""

    nodes = ("layer1", "layer2", "mean()")

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.layer1 = nn.Sequential(PreActBlock(8, 8, 1), PreActBlock(8, 8, 1))
        self.layer2 = nn.Sequential(PreActBlock(8, 16, 2), PreActBlock(16, 16, 1))
        self.layer3 = nn.Sequential(PreActBlock(16, 16, 2))
        self.bn, self.linear = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def last(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.relu(self.bn(x))

    def answer(self, x):
        return self.linear(x.mean([-1, -2]))


class InPlace(PreActLike):
    """The last activation changes the normalisation's output, which is therefore X_L."""

    nodes = ("layer1", "layer2", "bn")

    def last(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.relu(self.bn(x), inplace=True)


class Flattened(PreActLike):
    nodes = ("layer1", "layer2", "adaptive_avg_pool2d()")

    def answer(self, x):
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class ChangedAfterwards(PreActLike):
    """What was pooled is changed in place before the end."""

    def last(self, x):
        return F.hardswish(super().last(x))  # whose gradient does not need what it made

    def answer(self, x):
        pooled = x.mean((2, 3))
        x.zero_()
        return self.linear(pooled)


class LeavesOut(PreActLike):
    """Blocks that do not run in training, with functions like the one that pools."""

    def last(self, x):
        x = self.layer1(self.conv1(x))
        if not self.training:
            x = x + x.mean((2, 3), keepdim=True)
        x = F.relu(self.bn(self.layer3(self.layer2(x))))
        if self.training:
            x = x * x.mean((2, 3), keepdim=True).sigmoid()
        return x


class MobileBlock(nn.Module):
    def __init__(self, entering, leaving, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(entering, entering, stride, groups=entering), nn.BatchNorm2d(entering)
        self.conv2, self.bn2 = nn.Conv2d(entering, leaving, 1, bias=False), nn.BatchNorm2d(leaving)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class MobileLike(Base):
    """A block is read where a function makes its output; the last convolution stands in the forward itself."""

    nodes = ("layers.1", "layers", "avg_pool2d()")

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(MobileBlock(8, 8, 1), MobileBlock(8, 12, 2), MobileBlock(12, 16, 2))
        self.conv2, self.bn2 = conv(16, 24, 2), nn.BatchNorm2d(24)
        self.linear = nn.Linear(24, 5)

    def last(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(x)))

    def answer(self, x):
        return self.linear(F.avg_pool2d(x, 4).view(x.size(0), -1))


class VggLike(Base):
    """Pools nothing: its last map is flattened."""

    nodes = ("features.6", "features.10", "features")

    def __init__(self):
        super().__init__()
        layers, entering = [], 3
        for leaving in (8, 12, 16):
            layers += [conv(entering, leaving), nn.BatchNorm2d(leaving), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
            entering = leaving
        self.features, self.linear = nn.Sequential(*layers), nn.Linear(16 * 4 * 4, 5)

    def last(self, x):
        return self.features(x)

    def answer(self, x):
        return self.linear(x.view(x.size(0), -1))


class Pooled(PreActLike):
    nodes = ("layer1", "layer2", "pool")

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())

    def answer(self, x):
        return self.linear(self.pool(x))


class TwoHeads(PreActLike):
    """An answer of 3 classes and one of 5, from one vector."""

    def __init__(self):
        super().__init__()
        self.coarse = nn.Linear(16, 3)

    def answer(self, x):
        x = x.mean((2, 3))
        return self.coarse(x), self.linear(x)


class Dict(PreActLike):
    nodes = ("layer1", "layer2", "amax()")

    def answer(self, x):
        features = torch.amax(x, dim=(2, 3))
        return {"features": features, "logits": self.linear(features)}


NETWORKS = [
    DenseLike,
    PreActLike,
    InPlace,
    Flattened,
    ChangedAfterwards,
    LeavesOut,
    MobileLike,
    VggLike,
    Pooled,
    TwoHeads,
    Dict,
]
FREE = [network for network in NETWORKS if network not in (DenseLike, MobileLike, VggLike)]  # of one image size


def own(answer):
    if isinstance(answer, dict):
        return answer["logits"]
    return answer[1] if isinstance(answer, tuple) else answer


@pytest.mark.parametrize("make", NETWORKS)
def test_what_a_network_written_by_hand_pools_is_read(make):
    torch.manual_seed(0)
    network = make().double()
    plain, model = deepcopy(network), attach_saol(network, num_classes=5, seed=0)
    assert tuple(tap.name for tap in model.taps) == make.nodes and model.gap is None
    sizes = [(32, 32), (24, 40)] if make in FREE and make is not Pooled else [(32, 32)]
    for training in (True, False):
        plain.train(training), model.train(training)
        for size in sizes:
            x = images(*size).double()
            outputs, last = model.look(x)
            assert torch.equal(outputs.gap_logits, own(plain(x)))
            assert torch.equal(last, plain.seen) and last.requires_grad
            assert outputs.attention.shape[2:] == last.shape[2:]
    first = next(network.parameters())
    (gradient,) = torch.autograd.grad(outputs.saol_log_probs[:, 0].sum(), first)
    assert gradient.any()


def test_a_new_classifier_reads_what_the_call_is_given():
    model = attach_saol(PreActLike(), num_classes=7, seed=0).eval()
    outputs, last = model.look(images(24, 40))
    assert last.shape == (2, 16, 6, 10)
    torch.testing.assert_close(outputs.gap_logits, F.linear(last.mean((2, 3)), *model.gap.parameters()))
    outputs = model.train()(images())
    (outputs.saol_log_probs[:, 0].sum() + outputs.gap_logits.sum() + outputs.mask_logits.sum()).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_nodes_may_be_named_and_the_call_is_one_of_them():
    assert find_nodes(PreActLike()) == ("layer1", "layer2", "mean()")
    model = attach_saol(PreActLike(), ["layer2", "mean()"])
    assert [tap.name for tap in model.taps] == ["layer2", "mean()"] and model.saol.in_channels == (16, 16)
    with pytest.raises(ValueError, match=re.escape("the last node is 'layer3', but the network pools 'mean()'")):
        attach_saol(PreActLike(), ["layer2", "layer3"])


def same(a, b):
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None]
    return len(pairs) > 3 and all(torch.allclose(x, y, rtol=0, atol=1e-4) for x, y in pairs)


@pytest.fixture(scope="module")
def model():
    return attach_saol(PreActLike(), seed=0).eval()


def test_it_is_copied_and_pickled(model):
    wanted = model(images())
    assert same(deepcopy(model)(images()), wanted)
    assert same(pickle.loads(pickle.dumps(model))(images()), wanted)


def test_it_is_exported_and_compiled(model):
    wanted = model(images(24, 40))
    program = torch.export.export(model, (images(24, 40),))
    assert same(program.module()(images(24, 40)), wanted)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert same(compiled(images(24, 40)), wanted)


def test_threads_keep_their_maps_apart(model):
    batches = [images(seed=seed) for seed in range(8)]
    wanted = [model(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model, batches))
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))


def test_hooks_of_the_users_do_not_shift_the_call(model):
    model, seen = deepcopy(model), []
    wanted = model(images())
    model.body.layer3.register_forward_hook(lambda _module, _given, made: seen.append(made.mean((2, 3))))
    with torch.device("cpu"):  # another mode
        assert same(model(images()), wanted) and len(seen) == 1


def test_another_attachment_inside_does_not_disturb(model):
    """Two attachments of one network, the second made while the first is in use."""
    network = PreActLike()
    first = attach_saol(network, seed=0).eval()
    alone = first(images())
    second = attach_saol(network, ["layer1", "mean()"], seed=0).eval()
    assert same(first(images()), alone) and second(images()).attention.shape == (2, 1, 8, 8)


def test_it_is_enlarged():
    model = attach_saol(PreActLike(), seed=0).eval()
    assert model(images()).attention.shape[2:] == (8, 8)
    assert enlarge(model, dilation=True)(images()).attention.shape[2:] == (16, 16)
    with pytest.raises(ValueError, match="cannot be enlarged: without its last stride it does not run"):
        enlarge(attach_saol(VggLike(), seed=0))


class Hidden(PreActLike):
    """Stacks its last map with another before it is pooled, so that nothing is given X_L alone."""

    def forward(self, x):
        x = self.last(x)
        return self.linear(torch.stack([x, x]).mean((0, 3, 4)))


def test_what_no_call_is_given_gets_one_sentence():
    with pytest.raises(ValueError, match="is seen by no module and no function of torch alone") as caught:
        attach_saol(Hidden())
    assert "pool it by a module, nn.AdaptiveAvgPool2d(1) say" in str(caught.value)


@pytest.mark.faults
@pytest.mark.parametrize("make", [PreActLike, InPlace])
def test_it_is_exported_to_onnx(make, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x = attach_saol(make(), seed=0).eval(), images(24, 40)
    wanted = [value.detach() for value in model(x) if value is not None]
    torch.onnx.export(model, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert len(found) == len(wanted) > 3
    for ours, theirs in zip(wanted, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=1e-4)
