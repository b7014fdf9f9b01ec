"""Attention mass inside a box against a loop over pixels; score maps and protocols against their definitions."""

import re
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saol_lib.layers import Outputs
from saol_lib.localization import (
    METHODS,
    area_share,
    box_accuracy,
    largest_box,
    localize,
    mass_inside,
    raw_maps,
    score_maps,
    stretch,
    trivial_rows,
)
from saol_lib.networks.build import build_model


@st.composite
def boxes_in_images(draw):
    """An image that is rarely square, three inclusive boxes (one of them full), and a map that need not divide it."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 17))
    boxes = [[0, 0, width - 1, height - 1]]
    for _ in range(2):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append([x0, y0, draw(st.integers(x0, width - 1)), draw(st.integers(y0, height - 1))])
    return (height, width), torch.tensor(boxes), (draw(st.integers(1, 6)), draw(st.integers(1, 7)))


def attention_maps(count, size, seed=0, dtype=torch.float64):
    scores = torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return scores.flatten(1).softmax(1).view_as(scores)


def common(cell, cells, pixel, pixels):
    """The share of a cell that a pixel covers, exactly."""
    width = Fraction(pixels, cells)
    return max(Fraction(0), min((cell + 1) * width, pixel + 1) - max(cell * width, pixel)) / width


def loop_mass(attention, box, size):
    x0, y0, x1, y1 = box
    total = 0.0
    for i, row in enumerate(attention.tolist()):
        for j, mass in enumerate(row):
            rows = sum(common(i, len(attention), y, size[0]) for y in range(y0, y1 + 1))
            columns = sum(common(j, len(row), x, size[1]) for x in range(x0, x1 + 1))
            total += mass * float(rows * columns)
    return total


@given(boxes_in_images(), st.integers(0, 99))
def test_mass_and_area_are_the_literal_sums(case, seed):
    size, boxes, cells = case
    attention = attention_maps(3, cells, seed)
    expected = [loop_mass(a[0], box, size) for a, box in zip(attention, boxes.tolist(), strict=True)]
    assert mass_inside(attention, boxes, size).tolist() == pytest.approx(expected, rel=1e-6)
    inside = [sum(x0 <= x <= x1 and y0 <= y <= y1 for y in range(size[0]) for x in range(size[1]))
              for x0, y0, x1, y1 in boxes.tolist()]  # fmt: skip
    shares = [count / (size[0] * size[1]) for count in inside]
    assert area_share(boxes, size).tolist() == pytest.approx(shares, rel=1e-6)
    uniform = torch.full((3, 1, *cells), 1 / (cells[0] * cells[1]), dtype=torch.float64)
    assert mass_inside(uniform, boxes, size).tolist() == pytest.approx(shares, rel=1e-6)
    assert mass_inside(attention, boxes, size)[0].item() == pytest.approx(1)


def test_small_boxes_in_large_images_keep_six_digits():
    attention, size = attention_maps(1, (9, 11)), (224, 230)
    for box in ([199, 174, 199, 174], [229, 223, 229, 223], [20, 24, 21, 25]):
        expected = pytest.approx(loop_mass(attention[0, 0], box, size), rel=1e-6)
        assert mass_inside(attention, torch.tensor([box]), size).item() == expected


def test_x_runs_along_the_width():
    attention = torch.zeros(1, 1, 2, 4)
    attention[..., 0, 3] = 1
    right_top, left_bottom = torch.tensor([[6, 0, 7, 1]]), torch.tensor([[0, 2, 1, 3]])
    assert mass_inside(attention, right_top, (4, 8)) == 1 and mass_inside(attention, left_bottom, (4, 8)) == 0


def test_the_type_of_the_attention_is_kept():
    assert mass_inside(attention_maps(1, (2, 2), dtype=torch.float32), torch.tensor([[0, 0, 1, 1]]), (4, 4)).dtype == (
        torch.float32
    )


@pytest.mark.parametrize("box", [[0, 0, 8, 3], [0, 0, 7, 4], [-1, 0, 3, 3], [0, -1, 3, 3], [5, 0, 4, 3], [0, 3, 7, 2]])
def test_boxes_outside_the_image(box):
    boxes, message = torch.tensor([[0, 0, 7, 3], box]), re.escape(f"box {box} must be inclusive x0, y0, x1, y1")
    for call in (lambda: area_share(boxes, (4, 8)), lambda: mass_inside(attention_maps(2, (2, 2)), boxes, (4, 8))):
        with pytest.raises(ValueError, match=message):
            call()


class Logits(nn.Module):
    """One output of a network alone, as captum wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).gap_logits


class AttentionBranch(nn.Module):
    """What an Attention Branch Network returns, made of nothing but its images."""

    saol = None

    def __init__(self):
        super().__init__()
        self.gap = nn.Linear(3, 4)

    def look(self, images, mask=None):
        seen = F.avg_pool2d(images, 4)
        found = Outputs(gap_logits=self.gap(seen.mean((2, 3))), aux_logits=images.mean((2, 3)))
        return found._replace(attention=seen[:, :1].sigmoid()), seen


def network(seed, *heads, size=None):
    """A small network whose classes differ and whose normalisation has seen other images."""
    model = build_model("resnet-8-8", 6, heads=heads, seed=seed, output_size=size).train()
    with torch.no_grad():
        model(torch.randn(8, 3, 16, 24, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


def pictures(count, seed=0):
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [("gap",), ("gap", "saol")])
def test_grad_cam_is_captums(heads):
    model, images, classes = network(0, *heads), pictures(6), torch.arange(6)
    layer = [module for name, module in model.body.named_modules() if name.startswith("features.stage3")][-1]
    theirs = LayerGradCam(Logits(model), layer).attribute(images, classes, relu_attributions=True)
    ours = raw_maps(model, *model.look(images), classes, "grad_cam")
    assert ours.max() > 0 and torch.allclose(ours, theirs[:, 0], rtol=1e-4, atol=1e-7)
    full = F.interpolate(theirs, (16, 24), mode="bicubic")[:, 0]
    assert torch.allclose(score_maps(model, images, classes, "grad_cam"), stretch(full), atol=1e-4)


def test_grad_cam_of_the_last_layer_is_cam_up_to_the_relu_and_a_positive_scale():
    model, images, classes = network(1, "gap"), pictures(6), torch.arange(6)
    images.requires_grad_()
    outputs, feature = model.look(images)
    (gradient,) = torch.autograd.grad(outputs.gap_logits.gather(1, classes[:, None]).sum(), feature)
    literal = torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), feature).relu()
    cam = raw_maps(model, outputs, feature, classes, "cam")
    scale = 1 / (feature.shape[2] * feature.shape[3])
    assert (cam < 0).any() and torch.allclose(literal, scale * cam.relu(), atol=1e-7)
    assert torch.allclose(raw_maps(model, outputs, feature, classes, "grad_cam"), literal, atol=1e-7)


def test_every_method_is_its_map_resized_and_stretched_alike():
    model, images, classes = network(2, "gap", "saol"), pictures(6), torch.tensor([0, 5, 3, 3, 1, 2])
    found, feature = model.look(images, mask=True)
    chosen = found.spatial_log_probs.exp()[torch.arange(6), classes]
    (last,) = (module for module in model.body.modules() if isinstance(module, nn.Linear))
    cam = torch.einsum("bchw,bc->bhw", feature, last.weight[classes])
    expected = {"saol": found.attention[:, 0] * chosen, "attention": found.attention[:, 0], "spatial": chosen,
                "saol_log": (found.attention[:, 0] * chosen).log(),
                "mask": found.mask_logits[:, 0].sigmoid(), "cam": cam, "grad_cam": cam.relu()}  # fmt: skip
    assert {*expected, "abn"} == set(METHODS)
    for method, own in expected.items():
        large = F.interpolate(own[:, None], (16, 24), mode="bicubic")[:, 0]
        low, high = (large.flatten(1).aminmax(dim=1)[i][:, None, None] for i in (0, 1))
        maps = score_maps(model, images, classes, method)
        assert maps.shape == (6, 16, 24) and torch.allclose(maps, (large - low) / (high - low), atol=1e-5), method
        assert maps.amin() == 0 and maps.amax() == 1


def test_abn_shows_its_attention_map():
    images = pictures(2)
    maps = score_maps(AttentionBranch(), images, torch.tensor([0, 1]), "abn")
    small = F.avg_pool2d(images, 4)[:, :1].sigmoid()
    assert torch.allclose(maps, stretch(F.interpolate(small, (16, 24), mode="bicubic")[:, 0]))


@pytest.mark.parametrize(
    ("model", "methods", "sentence"),
    [
        (network(0, "gap"), ("saol", "attention", "spatial", "mask", "abn"), "reads a layer that this network lacks"),
        (network(0, "saol"), ("abn",), "reads a layer that this network lacks; give an ABN for 'abn'"),
        (network(0, "saol"), ("cam", "grad_cam"), "CAM needs a GAP-FC layer"),
        (AttentionBranch(), ("saol", "attention", "spatial", "mask"), "reads a layer that this network lacks"),
        (network(0, "saol"), ("gradcam",), "method='gradcam' is not known; choose one of 'saol'"),
    ],
    ids=lambda value: "",
)
def test_a_method_that_a_network_cannot_serve(model, methods, sentence):
    for method in methods:
        with pytest.raises(ValueError, match=sentence):
            score_maps(model, pictures(1), torch.tensor([0]), method)


def literal_protocol(model, images, labels, boxes, method, threshold):
    """Zhou et al.: GT-known from the true class's map, top-k from the map of every predicted class."""

    def fits(k, i):
        box = largest_box(score_maps(model, images[i : i + 1], torch.tensor([k]), method)[0], threshold)
        cells = [
            {(x, y) for x in range(b[0], b[2] + 1) for y in range(b[1], b[3] + 1)} for b in (box, boxes[i].tolist())
        ]
        return 2 * len(cells[0] & cells[1]) >= len(cells[0] | cells[1])

    outputs, right = model(images), {"gt_known": 0, "top1": 0, "top5": 0}
    scores = outputs.gap_logits if method in ("cam", "grad_cam") else outputs.saol_log_probs
    for i, label in enumerate(labels.tolist()):
        right["gt_known"] += fits(label, i)
        for top in (1, 5):
            guesses = scores[i].topk(top).indices.tolist()
            right[f"top{top}"] += any(guess == label and fits(guess, i) for guess in guesses)
    share = {name: 100 * count / len(labels) for name, count in right.items()}
    return share["gt_known"], 100 - share["top1"], 100 - share["top5"]


@pytest.mark.parametrize("method", ["saol", "attention", "cam", "grad_cam"])
def test_localize_follows_the_protocols(method):
    model, images = network(3, "gap", "saol", size=(8, 12)), pictures(40, seed=1)
    generator = torch.Generator().manual_seed(0)
    scores = model(images).gap_logits + model(images).saol_log_probs
    labels = torch.where(torch.rand(40, generator=generator) < 0.7, scores.argmax(1), scores.argmin(1))
    corner = torch.randint(0, 8, (40, 2), generator=generator)
    boxes = torch.cat([corner, torch.tensor([23, 15]) - torch.randint(0, 7, (40, 2), generator=generator)], dim=1)
    batches = [(images[i : i + 9], labels[i : i + 9]) for i in range(0, 40, 9)]
    found = localize(model, batches, boxes, method, 0.3, thresholds=(0.1, 0.3, 0.5))
    expected = literal_protocol(model, images, labels, boxes, method, 0.3)
    names = ("gt_known", "top1_loc_error", "top5_loc_error")
    assert [found.metrics[name] for name in names] == pytest.approx(expected)
    own = torch.tensor([largest_box(values, 0.3) for values in score_maps(model, images, labels, method)])
    ratios = area_share(own, (16, 24)) / area_share(boxes, (16, 24))
    assert found.metrics["box_size"] == pytest.approx(100 * float(ratios.median()), rel=1e-5)
    assert 0 < expected[0] < 100 and expected[0] + expected[1] > 100 > expected[2]
    accuracy = box_accuracy(score_maps(model, images, labels, method), boxes, (0.1, 0.3, 0.5))
    assert found.accuracy[:4] == accuracy[:4] and found.metrics["max_box_acc"] == accuracy.max_box_acc
    assert [found.metrics[f"box_acc_{n}"] for n in (30, 50, 70)] == [*accuracy.per_iou.values()]
    if method == "attention":
        assert found.metrics["mass_inside"] == pytest.approx(
            100 * mass_inside(model(images).attention, boxes, (16, 24)).mean().item(), rel=1e-5
        )
        assert found.metrics["area_share"] == pytest.approx(100 * area_share(boxes, (16, 24)).mean().item())
    else:
        assert found.inside is None and not {"mass_inside", "area_share"} & {*found.metrics}


def test_trivial_rows_on_a_case_made_by_hand():
    boxes, ranks = torch.tensor([[0, 0, 9, 9], [2, 2, 7, 7], [2, 2, 7, 6], [0, 0, 1, 1]]), torch.tensor([0, 0, 5, 1])
    rows = trivial_rows(boxes, (10, 10), ranks)
    names = ["max_box_acc", "box_acc_30", "box_acc_50", "box_acc_70", "gt_known", "top1_loc_error", "top5_loc_error"]
    whole, best = rows["whole image"], rows["best centred box"]
    assert [whole[name] for name in names] == [25, 75, 25, 25, 25, 75, 75]
    assert [best[name] for name in names] == [75, 75, 75, 50, 75, 50, 50]
    assert (whole["max_box_acc_v2"], best["max_box_acc_v2"]) == pytest.approx((125 / 3, 200 / 3))
    assert {*whole} == {*best} == {*names, "max_box_acc_v2"}


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_outside_the_range(threshold):
    with pytest.raises(ValueError, match=re.escape(f"threshold={threshold} must lie in [0, 1)")):
        largest_box(torch.rand(3, 3), threshold)


def test_the_largest_area_joins_across_corners():
    values = torch.tensor([[9.0, 0, 0, 0, 5], [0, 9, 0, 0, 5], [0, 0, 9, 0, 0], [0, 1, 1, 1, 1]])
    assert largest_box(values, 0.2) == (0, 0, 2, 2) and largest_box(values, 0) == (0, 0, 4, 3)
    assert largest_box(torch.zeros(3, 3), 0.2) is None
