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
    Localizer,
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
    height = draw(st.integers(1, 12))
    width = draw(st.integers(1, 17))
    boxes = [[0, 0, width - 1, height - 1]]
    for _ in range(2):
        x0 = draw(st.integers(0, width - 1))
        y0 = draw(st.integers(0, height - 1))
        x1 = draw(st.integers(x0, width - 1))
        y1 = draw(st.integers(y0, height - 1))
        boxes.append([x0, y0, x1, y1])
    cells = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    return (height, width), torch.tensor(boxes), cells


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def attention_maps(count, size, seed=0, dtype=torch.float64):
    scores = torch.randn(count, 1, *size, generator=seeded(seed), dtype=dtype)
    shares = scores.flatten(1).softmax(1)
    return shares.view_as(scores)


def common(cell, cells, pixel, pixels):
    """The share of a cell that a pixel covers, exactly."""
    width = Fraction(pixels, cells)
    begin = max(cell * width, pixel)
    end = min((cell + 1) * width, pixel + 1)
    return max(Fraction(0), end - begin) / width


def loop_mass(attention, box, size):
    """The mass of a map (Ho, Wo) inside a box, cell by cell and pixel by pixel."""
    height, width = size
    x0, y0, x1, y1 = box
    total = 0.0
    for i, row in enumerate(attention.tolist()):
        rows = sum(common(i, len(attention), y, height) for y in range(y0, y1 + 1))
        for j, mass in enumerate(row):
            columns = sum(common(j, len(row), x, width) for x in range(x0, x1 + 1))
            total += mass * float(rows * columns)
    return total


def loop_area(box, size):
    """The share of an image's pixels that lie in a box, pixel by pixel."""
    height, width = size
    x0, y0, x1, y1 = box
    inside = 0
    for y in range(height):
        for x in range(width):
            inside += x0 <= x <= x1 and y0 <= y <= y1
    return inside / (height * width)


@given(boxes_in_images(), st.integers(0, 99))
def test_mass_and_area_are_the_literal_sums(case, seed):
    size, boxes, cells = case
    attention = attention_maps(3, cells, seed)
    expected = []
    shares = []
    for values, box in zip(attention, boxes.tolist(), strict=True):
        expected.append(loop_mass(values[0], box, size))
        shares.append(loop_area(box, size))

    mass = mass_inside(attention, boxes, size)
    area = area_share(boxes, size)
    assert mass.tolist() == pytest.approx(expected, rel=1e-6)
    assert area.tolist() == pytest.approx(shares, rel=1e-6)
    assert mass[0].item() == pytest.approx(1), "the box is the whole image"

    uniform = torch.ones(3, 1, *cells, dtype=torch.float64)
    uniform /= uniform[0].numel()
    assert mass_inside(uniform, boxes, size).tolist() == pytest.approx(shares, rel=1e-6)


def test_small_boxes_in_large_images_keep_six_digits():
    attention = attention_maps(1, (9, 11))
    size = (224, 230)
    for box in ([199, 174, 199, 174], [229, 223, 229, 223], [20, 24, 21, 25]):
        expected = loop_mass(attention[0, 0], box, size)
        found = mass_inside(attention, torch.tensor([box]), size)
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_x_runs_along_the_width():
    attention = torch.zeros(1, 1, 2, 4)
    attention[..., 0, 3] = 1
    right_top = torch.tensor([[6, 0, 7, 1]])
    left_bottom = torch.tensor([[0, 2, 1, 3]])
    assert mass_inside(attention, right_top, (4, 8)) == 1
    assert mass_inside(attention, left_bottom, (4, 8)) == 0


def test_the_type_of_the_attention_is_kept():
    attention = attention_maps(1, (2, 2), dtype=torch.float32)
    mass = mass_inside(attention, torch.tensor([[0, 0, 1, 1]]), (4, 4))
    assert mass.dtype == torch.float32


@pytest.mark.parametrize("box", [[0, 0, 8, 3], [0, 0, 7, 4], [-1, 0, 3, 3], [0, -1, 3, 3], [5, 0, 4, 3], [0, 3, 7, 2]])
def test_boxes_outside_the_image(box):
    boxes = torch.tensor([[0, 0, 7, 3], box])
    attention = attention_maps(2, (2, 2))
    message = re.escape(f"box {box} must be inclusive x0, y0, x1, y1")
    with pytest.raises(ValueError, match=message):
        area_share(boxes, (4, 8))
    with pytest.raises(ValueError, match=message):
        mass_inside(attention, boxes, (4, 8))


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
        pooled = seen.mean((2, 3))
        found = Outputs(
            gap_logits=self.gap(pooled),
            aux_logits=images.mean((2, 3)),
            attention=seen[:, :1].sigmoid(),
        )
        return found, seen


def network(seed, *heads, size=None):
    """A small network whose classes differ and whose normalisation has seen other images."""
    model = build_model("resnet-8-8", 6, heads=heads, seed=seed, output_size=size).train()
    with torch.no_grad():
        model(pictures(8, seed))
    return model.eval()


def pictures(count, seed=0):
    return torch.randn(count, 3, 16, 24, generator=seeded(seed))


def enlarged(maps):
    """Maps (B, Ho, Wo) at the size of the pictures."""
    return F.interpolate(maps[:, None], (16, 24), mode="bicubic")[:, 0]


@pytest.mark.parametrize("heads", [("gap",), ("gap", "saol")])
def test_grad_cam_is_captums(heads):
    model = network(0, *heads)
    images = pictures(6)
    classes = torch.arange(6)
    *_, layer = (module for name, module in model.body.named_modules() if name.startswith("features.stage3"))
    captum = LayerGradCam(Logits(model), layer)
    theirs = captum.attribute(images, classes, relu_attributions=True)[:, 0]

    outputs, feature = model.look(images)
    ours = raw_maps(model, outputs, feature, classes, "grad_cam")
    assert ours.max() > 0
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)

    maps = score_maps(model, images, classes, "grad_cam")
    assert torch.allclose(maps, stretch(enlarged(theirs)), atol=1e-4)


def test_grad_cam_of_the_last_layer_is_cam_up_to_the_relu_and_a_positive_scale():
    model = network(1, "gap")
    images = pictures(6).requires_grad_()
    classes = torch.arange(6)
    outputs, feature = model.look(images)
    scores = outputs.gap_logits.gather(1, classes[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), feature)
    weights = gradient.mean((2, 3))
    literal = torch.einsum("bc,bchw->bhw", weights, feature).relu()

    cam = raw_maps(model, outputs, feature, classes, "cam")
    cells = cam[0].numel()
    assert (cam < 0).any()
    assert torch.allclose(literal, cam.relu() / cells, atol=1e-7)
    grad_cam = raw_maps(model, outputs, feature, classes, "grad_cam")
    assert torch.allclose(grad_cam, literal, atol=1e-7)


def test_every_method_is_its_map_resized_and_stretched_alike():
    model = network(2, "gap", "saol")
    images = pictures(6)
    classes = torch.tensor([0, 5, 3, 3, 1, 2])
    found, feature = model.look(images, mask=True)
    attention = found.attention[:, 0]
    chosen = found.spatial_log_probs.exp()[torch.arange(6), classes]
    (last,) = (module for module in model.body.modules() if isinstance(module, nn.Linear))
    cam = torch.einsum("bchw,bc->bhw", feature, last.weight[classes])
    expected = {
        "saol": attention * chosen,
        "saol_log": (attention * chosen).log(),
        "attention": attention,
        "spatial": chosen,
        "mask": found.mask_logits[:, 0].sigmoid(),
        "cam": cam,
        "grad_cam": cam.relu(),
    }
    assert {*expected, "abn"} == set(METHODS)
    for method, own in expected.items():
        large = enlarged(own)
        low = large.amin((1, 2), keepdim=True)
        high = large.amax((1, 2), keepdim=True)
        stretched = (large - low) / (high - low)
        maps = score_maps(model, images, classes, method)
        assert maps.shape == (6, 16, 24)
        assert torch.allclose(maps, stretched, atol=1e-5), method
        assert maps.amin() == 0
        assert maps.amax() == 1


def test_abn_shows_its_attention_map():
    images = pictures(2)
    maps = score_maps(AttentionBranch(), images, torch.tensor([0, 1]), "abn")
    small = F.avg_pool2d(images, 4)[:, 0].sigmoid()
    assert torch.allclose(maps, stretch(enlarged(small)))


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


def pixels_of(box):
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)}


def literal_protocol(model, images, labels, boxes, method, threshold):
    """Zhou et al.: GT-known from the true class's map, top-k from the map of every predicted class."""

    def fits(k, i):
        maps = score_maps(model, images[i : i + 1], torch.tensor([k]), method)
        found = pixels_of(largest_box(maps[0], threshold))
        true = pixels_of(boxes[i].tolist())
        return 2 * len(found & true) >= len(found | true)

    outputs = model(images)
    scores = outputs.gap_logits if method in ("cam", "grad_cam") else outputs.saol_log_probs
    right = {"gt_known": 0, 1: 0, 5: 0}
    for i, label in enumerate(labels.tolist()):
        right["gt_known"] += fits(label, i)
        for top in (1, 5):
            guesses = scores[i].topk(top).indices.tolist()
            right[top] += any(guess == label and fits(guess, i) for guess in guesses)
    known, top1, top5 = (100 * count / len(labels) for count in right.values())
    return known, 100 - top1, 100 - top5


def labels_and_boxes(model, images):
    """Labels of which most are the network's guess and the rest the class it thinks least of; any boxes."""
    count = len(images)
    generator = seeded(0)
    outputs = model(images)
    scores = outputs.gap_logits + outputs.saol_log_probs
    is_guess = torch.rand(count, generator=generator) < 0.7
    labels = torch.where(is_guess, scores.argmax(1), scores.argmin(1))
    first = torch.randint(0, 8, (count, 2), generator=generator)
    last = torch.tensor([23, 15]) - torch.randint(0, 7, (count, 2), generator=generator)
    return labels, torch.cat([first, last], dim=1)


@pytest.mark.parametrize("method", ["saol", "attention", "cam", "grad_cam"])
def test_localize_follows_the_protocols(method):
    model = network(3, "gap", "saol", size=(8, 12))
    images = pictures(40, seed=1)
    labels, boxes = labels_and_boxes(model, images)
    batches = list(zip(images.split(9), labels.split(9), strict=True))
    thresholds = (0.1, 0.3, 0.5)
    found = localize(model, batches, boxes, method, 0.3, thresholds=thresholds)

    known, top1_error, top5_error = literal_protocol(model, images, labels, boxes, method, 0.3)
    assert found.metrics["gt_known"] == pytest.approx(known)
    assert found.metrics["top1_loc_error"] == pytest.approx(top1_error)
    assert found.metrics["top5_loc_error"] == pytest.approx(top5_error)
    assert 0 < known < 100, "a case that tells them apart"
    assert known + top1_error > 100 > top5_error

    maps = score_maps(model, images, labels, method)
    own = torch.tensor([largest_box(values, 0.3) for values in maps])
    ratios = area_share(own, (16, 24)) / area_share(boxes, (16, 24))
    assert found.metrics["box_size"] == pytest.approx(100 * float(ratios.median()), rel=1e-5)

    accuracy = box_accuracy(maps, boxes, thresholds)
    assert found.accuracy[:4] == accuracy[:4]
    assert found.metrics["max_box_acc"] == accuracy.max_box_acc
    by_iou = [found.metrics[f"box_acc_{n}"] for n in (30, 50, 70)]
    assert by_iou == list(accuracy.per_iou.values())

    if method == "attention":
        mass = mass_inside(model(images).attention, boxes, (16, 24)).mean()
        area = area_share(boxes, (16, 24)).mean()
        assert found.metrics["mass_inside"] == pytest.approx(100 * mass.item(), rel=1e-5)
        assert found.metrics["area_share"] == pytest.approx(100 * area.item())
        of_others = [mass_inside(model(images).attention.roll(k, 0), boxes, (16, 24)) for k in range(len(images))]
        every_map_in_every_box = torch.stack(of_others).mean().item()
        assert found.metrics["mean_map_inside"] == pytest.approx(100 * every_map_in_every_box, rel=1e-5)
    else:
        assert found.inside is None
        assert not {"mass_inside", "area_share", "mean_map_inside"} & set(found.metrics)


def test_maps_of_several_sizes_have_no_mean():
    model = build_model("resnet-8", 5, heads=("saol",), seed=2)
    localizer = Localizer(model, "attention", size=(16, 24))
    boxes = torch.tensor([[0, 0, 9, 9], [2, 2, 7, 7]])
    for size in ((16, 24), (32, 48)):
        localizer.update(torch.rand(2, 3, *size), torch.tensor([0, 1]), boxes)
    metrics = localizer.result().metrics
    assert "mass_inside" in metrics and "mean_map_inside" not in metrics


def test_trivial_rows_on_a_case_made_by_hand():
    boxes = torch.tensor([[0, 0, 9, 9], [2, 2, 7, 7], [2, 2, 7, 6], [0, 0, 1, 1]])
    ranks = torch.tensor([0, 0, 5, 1])
    rows = trivial_rows(boxes, (10, 10), ranks)
    assert rows["whole image"] == {
        "max_box_acc": 25,
        "max_box_acc_v2": pytest.approx(125 / 3),
        "box_acc_30": 75,
        "box_acc_50": 25,
        "box_acc_70": 25,
        "gt_known": 25,
        "top1_loc_error": 75,
        "top5_loc_error": 75,
    }
    assert rows["best centred box"] == {
        "max_box_acc": 75,
        "max_box_acc_v2": pytest.approx(200 / 3),
        "box_acc_30": 75,
        "box_acc_50": 75,
        "box_acc_70": 50,
        "gt_known": 75,
        "top1_loc_error": 50,
        "top5_loc_error": 50,
    }


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_outside_the_range(threshold):
    with pytest.raises(ValueError, match=re.escape(f"threshold={threshold} must lie in [0, 1)")):
        largest_box(torch.rand(3, 3), threshold)


def test_the_largest_area_joins_across_corners():
    rows = [
        [9.0, 0, 0, 0, 5],
        [0, 9, 0, 0, 5],
        [0, 0, 9, 0, 0],
        [0, 1, 1, 1, 1],
    ]
    values = torch.tensor(rows)
    assert largest_box(values, 0.2) == (0, 0, 2, 2)
    assert largest_box(values, 0) == (0, 0, 4, 3)
    assert largest_box(torch.zeros(3, 3), 0.2) is None
