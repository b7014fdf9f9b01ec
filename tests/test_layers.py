"""The output layers against plain loops, and the properties that attention, spatial logits and output must have."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saol_lib.layers import GAPFC, SAOL, SaolOptions, aggregate, attention_log_probs, resize_map
from saol_lib.options import check_choice, check_options, option

CHANNELS, CLASSES = (2, 4, 3), 3
OPTIONS = {
    field.name: field.metadata["choices"] for field in dataclasses.fields(SaolOptions) if field.metadata.get("choices")
}
ALTERNATIVES = [(name, other) for name, choices in OPTIONS.items() for other in choices[1:]]


class Fixed(nn.Module):
    """Returns one tensor, whatever it gets."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, _):
        return self.value


def near(ours, twin, relative=1e-6):
    torch.testing.assert_close(ours, torch.as_tensor(twin), rtol=relative, atol=1e-12, check_dtype=False)


def some_maps(seed=0, dtype=torch.float64):
    """Three maps of unequal, non-square sizes: the first shrinks, the second grows; the last is X_L."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((5, 7), (2, 3), (3, 4))
    return [torch.randn(2, c, *size, generator=generator, dtype=dtype) for c, size in zip(CHANNELS, sizes, strict=True)]


def make_saol(channels=CHANNELS, classes=CLASSES, seed=0, **options):
    """A float64 SAOL in evaluation mode, with running statistics that are not those of a new one."""
    torch.manual_seed(seed)
    saol = SAOL(channels, classes, **options).double().eval()
    for module in saol.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    if saol.mask_source == "attention":
        nn.init.constant_(saol.mask_constant, 0.7)
    return saol


def fixed_saol(scores, raw, **options):
    """A SAOL whose attention scores and raw spatial logits are given."""
    saol = SAOL([1], raw.shape[1], **options).to(raw.dtype)
    saol.attention, saol.logits = Fixed(scores), Fixed(raw)
    return saol


def run_fixed(scores, raw, **options):
    dummy = [torch.zeros(len(raw), 1, *raw.shape[2:], dtype=raw.dtype)]
    return fixed_saol(scores, raw, **options).eval()(dummy)


# --- literal float64 twins -------------------------------------------------------------------------------------------


def loop_conv(x, module):
    if isinstance(module, nn.Sequential):
        for part in module:
            x = loop_conv(x, part)
        return x
    if not isinstance(module, nn.Conv2d):
        return loop_norm(x, module)
    weight, (batch, _, height, width) = module.weight.detach().numpy(), x.shape
    outs, ins, side = weight.shape[:3]
    y, per_group = np.zeros((batch, outs, height, width)), outs // module.groups
    for b, o, i, j in np.ndindex(*y.shape):
        total = 0.0 if module.bias is None else module.bias[o].item()
        for c, di, dj in np.ndindex(ins, side, side):
            row, column = i + di - side // 2, j + dj - side // 2
            if 0 <= row < height and 0 <= column < width:
                total += weight[o, c, di, dj] * x[b, (o // per_group) * ins + c, row, column]
        y[b, o, i, j] = total
    return y


def loop_norm(x, module):
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, nn.ReLU):
        return np.maximum(x, 0)
    mean, var = module.running_mean.numpy(), module.running_var.numpy()
    weight, bias, y = module.weight.detach().numpy(), module.bias.detach().numpy(), np.zeros_like(x)
    for b, c, i, j in np.ndindex(*x.shape):
        y[b, c, i, j] = (x[b, c, i, j] - mean[c]) / math.sqrt(var[c] + module.eps) * weight[c] + bias[c]
    return y


def line_weights(cells, size, how):
    """Weight of every input cell in every output cell along one axis."""
    weights, scale = np.zeros((size, cells)), cells / size
    for i, j in np.ndindex(size, cells):
        if how == "adaptive":
            weights[i, j] = math.floor(i * scale) <= j < math.ceil((i + 1) * scale)
        else:  # a triangle as wide as an output cell, at least as wide as an input cell
            weights[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def loop_resize(x, size, how):
    rows, columns = line_weights(x.shape[2], size[0], how), line_weights(x.shape[3], size[1], how)
    y = np.zeros((*x.shape[:2], *size))
    for b, c, i, j in np.ndindex(*y.shape):
        y[b, c, i, j] = sum(rows[i, p] * columns[j, q] * x[b, c, p, q] for p, q in np.ndindex(*x.shape[2:]))
    return y


def loop_softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def loop_join(scores, raw, class_softmax):
    """A, Y and y_saol, one number at a time."""
    batch, classes, height, width = raw.shape
    positions = list(np.ndindex(height, width))
    attention, spatial, joined = np.zeros((batch, 1, height, width)), np.zeros(raw.shape), np.zeros((batch, classes))
    for b in range(batch):
        for (i, j), a in zip(positions, loop_softmax([scores[b, 0, i, j] for i, j in positions]), strict=True):
            attention[b, 0, i, j] = a
            spatial[b, :, i, j] = loop_softmax(raw[b, :, i, j])
        source = spatial if class_softmax == "position" else raw
        sums = [sum(attention[b, 0, i, j] * source[b, k, i, j] for i, j in positions) for k in range(classes)]
        joined[b] = sums if class_softmax == "position" else loop_softmax(sums)
    return attention, spatial, joined


def loop_saol(saol, maps, size, resize, class_softmax):
    """SAOL's whole forward pass from its weights: A, Y, y_saol, and the mask branch's logits if there is one."""
    maps = [loop_conv(m.numpy(), prepare) for m, prepare in zip(maps, saol.prepare, strict=True)]
    maps = [loop_resize(m, size, resize) for m in maps]
    scores = loop_conv(maps[-1], saol.attention)
    joint = np.concatenate([loop_conv(m, branch) for m, branch in zip(maps, saol.branches, strict=True)], axis=1)
    raw = loop_conv(loop_conv(joint, saol.between), saol.logits)
    mask = loop_conv(maps[-1], saol.mask) if hasattr(saol, "mask") else scores + saol.mask_constant.item()
    return *loop_join(scores, raw, class_softmax), mask


# --- equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"separable": True}, {"output_size": (4, 2)}, {"logit_width": 5, "attention_width": 2}]
    + [{name: other} for name, other in ALTERNATIVES if other != "none" or name != "mask_source"],
    ids=str,
)
def test_forward_pass_is_the_literal_one_for_every_option(options):
    saol, maps = make_saol(**options), some_maps()
    size = options.get("output_size", (3, 4))
    outputs = saol(maps, mask=True)
    twin = loop_saol(saol, maps, size, options.get("resize", "bilinear"), options.get("class_softmax", "position"))
    near(outputs.attention, twin[0])
    near(outputs.spatial_log_probs.exp(), twin[1])
    near(outputs.saol_log_probs.exp(), twin[2])
    near(outputs.mask_logits, twin[3])
    assert outputs.gap_logits is None and outputs.aux_logits is None


@given(st.integers(0, 99), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.1, 3.0, 30.0]))
@pytest.mark.parametrize("how", OPTIONS["class_softmax"])
def test_joining_is_the_literal_sum(how, seed, classes, height, width, scale):
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(2, 1, height, width, generator=generator, dtype=torch.float64)
    raw = scale * torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64)
    outputs = run_fixed(scores, raw, class_softmax=how)
    attention, spatial, joined = loop_join(scores.numpy(), raw.numpy(), how)
    near(outputs.attention, attention)
    near(outputs.spatial_log_probs, np.log(spatial))
    near(outputs.saol_log_probs, np.log(joined))
    near(outputs.attention.sum(dim=(1, 2, 3)), [1.0, 1.0])
    near(outputs.saol_log_probs.exp().sum(dim=1), [1.0, 1.0])
    near(outputs.spatial_log_probs.exp().sum(dim=1), np.ones((2, height, width)))


def test_gap_fc_is_a_linear_map_of_the_mean():
    torch.manual_seed(0)
    layer, x = GAPFC(4, 3).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    twin = np.zeros((2, 3))
    for b, k in np.ndindex(2, 3):
        twin[b, k] = layer.bias[k].item()
        for c, i, j in np.ndindex(4, 3, 5):
            twin[b, k] += layer.weight[k, c].item() * x[b, c, i, j].item() / 15
    near(layer(x), twin)


@pytest.mark.parametrize("how", OPTIONS["resize"])
@pytest.mark.parametrize("size", [(3, 4), (2, 9), (7, 3), (5, 7), (1, 1)])
def test_resize_map_is_the_literal_one(how, size):
    x = some_maps()[0]
    near(resize_map(x, size, how), loop_resize(x.numpy(), size, how))


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.booleans(), st.sampled_from([None, 1, (2, 5)]))
def test_shapes_and_sums_of_the_whole_layer(seed, separable, output_size):
    torch.manual_seed(seed)
    saol = SAOL(CHANNELS, CLASSES, separable=separable, output_size=output_size)
    outputs = saol(some_maps(seed, torch.float32))
    size = {None: (3, 4), 1: (1, 1)}.get(output_size, output_size)
    assert outputs.attention.shape == outputs.mask_logits.shape == (2, 1, *size)
    assert outputs.spatial_log_probs.shape == (2, CLASSES, *size) and outputs.saol_log_probs.shape == (2, CLASSES)
    assert (outputs.attention >= 0).all()
    near(outputs.attention.sum(dim=(1, 2, 3)), torch.ones(2), 1e-5)
    near(outputs.saol_log_probs.exp().sum(dim=1), torch.ones(2), 1e-5)


def test_uniform_attention_gives_the_mean_of_y():
    saol = make_saol()
    nn.init.zeros_(saol.attention[-1].weight)
    outputs = saol(some_maps())
    near(outputs.attention, torch.full((2, 1, 3, 4), 1 / 12))
    near(outputs.saol_log_probs.exp(), outputs.spatial_log_probs.exp().mean(dim=(2, 3)))


@given(st.integers(0, 2), st.integers(0, 3), st.sampled_from(OPTIONS["class_softmax"]))
def test_one_hot_attention_selects_its_position(i, j, how):
    scores = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    scores[:, :, i, j] = 1e4
    raw = torch.randn(2, CLASSES, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i + 4 * j))
    outputs = run_fixed(scores, raw, class_softmax=how)
    near(outputs.saol_log_probs, outputs.spatial_log_probs[:, :, i, j])


def outputs_of_both(name, other, channels=CHANNELS, maps=None):
    """Outputs with the default and with `other`; weights that both have are the same."""
    ours, theirs = make_saol(channels), make_saol(channels, **{name: other})
    shared, state = theirs.state_dict(), ours.state_dict()
    theirs.load_state_dict({k: state[k] if k in state and state[k].shape == v.shape else v for k, v in shared.items()})
    maps = some_maps() if maps is None else maps
    return ours(maps, mask=True), theirs(maps, mask=True)


@pytest.mark.parametrize(("name", "other"), ALTERNATIVES)
def test_options_change_the_output_where_they_should(name, other):
    ours, theirs = outputs_of_both(name, other)
    changed = {field for field, a, b in zip(ours._fields, ours, theirs, strict=True) if not same(a, b)}
    both, logits = {"saol_log_probs", "attention"}, {"saol_log_probs", "spatial_log_probs"}
    expected = {
        "between_logits": logits,
        "between_attention": both | {"mask_logits"},
        "kernel_size": both | logits | {"mask_logits"},
        "resize": logits,  # X_L has the output's size
        "earlier_blocks": logits,
        "class_softmax": {"saol_log_probs"},
        "mask_source": {"mask_logits"},
    }
    assert changed == expected[name]
    if name == "mask_source":
        assert (theirs.mask_logits is None) == (other == "none")


def same(a, b):
    return a is b if a is None or b is None else torch.equal(a, b)


def test_options_agree_where_they_should():
    one_map = [some_maps()[-1]]
    for name, other in (("resize", "adaptive"), ("earlier_blocks", "bn_relu")):  # nothing to resize, nothing earlier
        ours, theirs = outputs_of_both(name, other, CHANNELS[-1:], one_map)
        assert all(map(same, ours, theirs)), name
    flat = torch.randn(2, CLASSES, 1, 1, dtype=torch.float64)  # one position: both softmaxes are the same
    a, b = (run_fixed(flat[:, :1], flat, class_softmax=how) for how in OPTIONS["class_softmax"])
    near(a.saol_log_probs, b.saol_log_probs)


def test_widths_between_the_convolutions():
    wide = {"attention_width": 9, "logit_width": 4}
    for classes, options, hidden, width in ((7, {}, 2, 40), (64, {}, 2, 64), (7, wide, 9, 4)):
        saol = SAOL((6, 5), classes, **options)
        assert saol.attention[0].out_channels == saol.mask[0].out_channels == hidden  # half of X_L's 5 channels
        assert [branch.out_channels for branch in saol.branches] == [width, width]


def test_masks_are_predicted_in_training_or_where_asked_for():
    saol, maps = make_saol(), some_maps()
    assert saol(maps).mask_logits is None and saol(maps, mask=True).mask_logits is not None
    saol.train()
    assert saol(maps).mask_logits is not None and saol(maps, mask=False).mask_logits is None


def test_the_mask_branch_changes_no_other_weight():
    torch.manual_seed(0)
    ours = SAOL(CHANNELS, CLASSES).state_dict()
    torch.manual_seed(0)
    theirs = SAOL(CHANNELS, CLASSES, mask_source="none").state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert {name for name in ours if name not in theirs} == {name for name in ours if name.startswith("mask.")} != set()


# --- gradients and numerics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"between_logits": "none", "between_attention": "none"}, {"separable": True},
                                     {"class_softmax": "image", "mask_source": "attention"}], ids=str)  # fmt: skip
def test_gradients_of_saol(options):
    torch.manual_seed(1)
    maps = [torch.randn(1, c, h, w, dtype=torch.float64) for c, h, w in ((1, 3, 4), (2, 2, 3))]
    saol = make_saol((1, 2), 2, seed=1, **options)
    names, values = zip(*saol.named_parameters(), strict=True)

    def forward(*tensors):
        state = dict(zip(names, tensors[2:], strict=True))
        return tuple(t for t in torch.func.functional_call(saol, state, (tensors[:2], True)) if t is not None)

    inputs = [t.detach().requires_grad_() for t in (*maps, *values)]
    along_random_directions = torch.autograd.gradcheck(forward, inputs, fast_mode=True)  # all entries take minutes
    assert along_random_directions


def test_gradients_of_joining_and_gap_fc():
    torch.manual_seed(0)
    scores, raw = (torch.randn(2, c, 2, 3, dtype=torch.float64, requires_grad=True) for c in (1, 3))
    assert torch.autograd.gradcheck(lambda s, r: aggregate(attention_log_probs(s), F.log_softmax(r, 1)), (scores, raw))
    assert torch.autograd.gradcheck(GAPFC(3, 2).double(), raw)


@pytest.mark.parametrize("how", OPTIONS["class_softmax"])
def test_huge_logits_stay_finite(how):
    sign = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).sign()
    saol = fixed_saol(1e4 * sign[:, :1], 1e4 * sign[:, 1:], class_softmax=how)
    outputs = saol([torch.zeros(2, 1, 3, 5)], mask=False)
    assert outputs.spatial_log_probs.min() < -1e4
    for value in outputs:
        assert value is None or (value.isfinite().all() and value.dtype == torch.float32)
    F.nll_loss(outputs.saol_log_probs, torch.tensor([0, 2])).backward()
    assert all(p.grad.isfinite().all() for p in (saol.attention.value, saol.logits.value))


@pytest.mark.parametrize("resize", OPTIONS["resize"])
@pytest.mark.parametrize("how", OPTIONS["class_softmax"])
def test_huge_logits_stay_finite_under_bfloat16_autocast(how, resize):
    torch.manual_seed(0)
    saol = SAOL(CHANNELS, CLASSES, between_logits="none", between_attention="none", class_softmax=how, resize=resize)
    maps = [(1e6 * m).requires_grad_() for m in some_maps(dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = saol(maps)
        loss = F.nll_loss(outputs.saol_log_probs, torch.tensor([0, 2])) + outputs.mask_logits.mean()
    assert outputs.spatial_log_probs.min() < -1e4
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in outputs if t is not None)
    loss.backward()
    assert all(t.grad.isfinite().all() for t in (*maps, *saol.parameters()))


def test_half_types_are_raised_and_float64_stays():
    for given_type, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        saol = make_saol().to(given_type)
        outputs = saol([m.to(given_type) for m in some_maps()], mask=True)
        assert {t.dtype for t in outputs if t is not None} == {expected}


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_unknown_options(name):
    with pytest.raises(ValueError, match=f"{name}='bn_gelu' is .*choose one of {OPTIONS[name][0]!r}"):
        SAOL(CHANNELS, CLASSES, **{name: "bn_gelu"})
    with pytest.raises(ValueError, match="x=3 is not known; choose one of 1, 2"):
        check_choice("x", 3, (1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_size": 0}, "output_size=0 must be None or at least 1"),
        ({"output_size": -3}, "output_size=-3 must be None or at least 1"),
        ({"output_size": (2, 0)}, "output_size=(2, 0) must be None or at least 1"),
        ({"output_size": (1, 2, 3)}, "output_size=(1, 2, 3) is a tuple; expected int | tuple[int, int] | None"),
        ({"output_size": 7.0}, "output_size=7.0 is a float; expected int | tuple[int, int] | None"),
        ({"output_size": "7"}, "output_size='7' is a str; expected int | tuple[int, int] | None"),
        ({"logit_width": 0}, "logit_width=0 must be None or at least 1"),
        ({"attention_width": -1}, "attention_width=-1 must be None or at least 1"),
        ({"separable": 1}, "separable=1 is a int; expected bool"),
        ({"kernel_size": True}, "kernel_size=True is a bool; choose one of 3, 1"),
        ({"kernel_sise": 1}, "option 'kernel_sise' is not known; did you mean kernel_size?"),
        ({"zzz": 1}, "option 'zzz' is not known; known are attention_width, between_attention"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        SAOL(CHANNELS, CLASSES, **changes)
    assert "\n" not in str(caught.value)


def test_options_may_come_as_one_object_and_single_ones_go_first():
    options = SaolOptions(separable=True, output_size=[2, 5])
    saol = SAOL(CHANNELS, CLASSES, options, kernel_size=1, mask_source="none")
    assert saol.output_size == (2, 5) and saol.mask_source == "none"
    assert saol.logits.kernel_size == (1, 1) and options.kernel_size == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.separable = False


@dataclasses.dataclass(frozen=True)
class Bounded:
    share: float = option(0.5, low=0, high=1)
    rate: float = option(0.1, above=0)
    free: float = 0.0
    text: str | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.5}, "share=1.5 must be at least 0 and at most 1"),
        ({"share": -1}, "share=-1 must be at least 0 and at most 1"),
        ({"rate": 0}, "rate=0 must be above 0"),
        ({"rate": math.inf}, "rate=inf must be above 0 and finite"),
        ({"free": math.nan}, "free=nan must be finite"),
        ({"free": "0"}, "free='0' is a str; expected float"),
        ({"text": 3}, "text=3 is a int; expected str | None"),
    ],
)
def test_every_constraint_is_checked(values, message):
    check_options(Bounded(share=1, rate=1e-9, text="x"))
    with pytest.raises(ValueError) as caught:
        check_options(Bounded(**values))
    assert str(caught.value) == message


def test_maps_and_classes_that_cannot_be():
    maps = some_maps(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"maps with \(2, 4, 3\) channels, got \(2, 4\)"):
        SAOL(CHANNELS, CLASSES)(maps[:2])
    with pytest.raises(ValueError, match=r"maps with \(2, 4, 3\) channels, got \(3, 4, 2\)"):
        SAOL(CHANNELS, CLASSES)(maps[::-1])
    for channels, classes in (([], 3), ([0], 3), ([4], 1)):
        with pytest.raises(ValueError, match=rf"at least one map and two classes, got \{channels} and {classes}"):
            SAOL(channels, classes)
