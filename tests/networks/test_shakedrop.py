"""ShakeDrop's factors, expectations and draws."""

import re

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from saol_lib.networks import ShakeDrop, build_backbone, build_model
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import train


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
