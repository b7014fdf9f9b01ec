"""Faults that were met once: each of these tests failed before it was mended."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from saol_lib.data import Batches, Split, mean_and_std
from saol_lib.localization import (
    METHODS,
    PairMeasures,
    best_centred_box,
    box_accuracy,
    box_iou,
    fixed_box_accuracy,
    localize,
    mass_inside,
    measure_pairs,
    mix_pairs,
    score_maps,
)
from saol_lib.networks import build_model

BOXES = torch.tensor([[1, 2, 9, 12]] * 6)
LABELS = torch.tensor([0, 5, 3, 3, 1, 2])


def pictures(count=6, dtype=torch.float32):
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=dtype)


def network(*heads):
    return build_model("resnet-8-8", 6, heads=heads or ("gap", "saol"), seed=3).eval()


def broken(part, method):
    """A network one of whose parts gives NaN."""
    model = network(*(("abn",) if method == "abn" else ("gap", "saol")))
    with torch.no_grad():
        for parameter in model.get_submodule(part).parameters():
            parameter.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("part", "method"),
    [("saol.logits", "saol"), ("saol.logits", "spatial"), ("body", "attention"), ("body", "cam"), ("gap", "abn")],
)
def test_scores_that_are_not_numbers_are_refused_and_never_ranked_first(part, method):
    with pytest.raises(ValueError, match=f"image 0 by method='{method}' hold NaN; expected numbers"):
        localize(broken(part, method), [(pictures(), LABELS)], BOXES, method, thresholds=[0.5])


def test_a_map_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="map of image 0 by method='mask' hold NaN"):
        localize(broken("saol.mask", "mask"), [(pictures(), LABELS)], BOXES, "mask", thresholds=[0.5])


def test_the_message_counts_the_images_of_all_batches():
    images = pictures()
    images[4] = torch.nan
    batches = [(images[:3], LABELS[:3]), (images[3:], LABELS[3:])]
    with pytest.raises(ValueError, match="image 4 by method='saol' hold NaN"):
        localize(network(), batches, BOXES, thresholds=[0.5])


@pytest.mark.parametrize("method", ["saol", "saol_log", "spatial", "cam", "grad_cam"])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_a_class_that_the_network_does_not_have_is_refused(method, wrong):
    classes = torch.tensor([0, 1, wrong, 2, 3, 4])
    with pytest.raises(ValueError, match=f"class {wrong} is not one of the network's 6; expected 0 to 5"):
        score_maps(network(), pictures(), classes, method)


@pytest.mark.parametrize("method", ["attention", "mask", "saol"])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_a_label_that_the_network_does_not_have_is_refused(method, wrong):
    labels = LABELS.where(LABELS != 5, torch.tensor(wrong))
    with pytest.raises(ValueError, match=f"class {wrong} is not one of the network's 6; expected 0 to 5"):
        localize(network(), [(pictures(), labels)], BOXES, method, thresholds=[0.5])


@pytest.mark.parametrize(
    "classes", [torch.zeros(6), torch.zeros(6, dtype=torch.bool), torch.zeros(5, dtype=torch.long)]
)
def test_classes_that_are_no_list_of_classes(classes):
    with pytest.raises(ValueError, match=re.escape("expected whole numbers (6,), one for each image")):
        score_maps(network(), pictures(), classes)


def modes(model):
    return [module.training for module in model.modules()]


def test_every_module_keeps_its_mode():
    model = network().train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = modes(model)
    data = Split(torch.randint(256, (12, 3, 16, 24), dtype=torch.uint8), torch.arange(12) % 5)
    pixels = Batches(data, torch.device("cpu"), *mean_and_std(data.images))
    mixed = mix_pairs(data, 6, torch.Generator().manual_seed(0))
    statistics = [buffer.clone() for buffer in model.buffers()]

    score_maps(model, pictures(), LABELS)
    assert modes(model) == before
    localize(model, [(pictures(), LABELS)], BOXES, thresholds=[0.5])
    assert modes(model) == before
    measure_pairs(model, mixed, data.labels, pixels, "saol")
    assert modes(model) == before
    with pytest.raises(ValueError, match="reads a layer that this network lacks"):
        score_maps(model, pictures(), LABELS, "abn")
    assert modes(model) == before
    assert all(torch.equal(old, new) for old, new in zip(statistics, model.buffers(), strict=True))


MAPS = torch.rand(1, 5, 6)
NOT_WHOLE = [[[0.1, 0.2, 0.5, 0.6]], [[0.0, 0.0, 2.5, 3.0]], [[0.0, 0.0, torch.nan, 1.0]], [[0.0, 0.0, torch.inf, 1.0]]]


@pytest.mark.parametrize("box", NOT_WHOLE)
def test_boxes_that_are_no_pixels_are_refused_everywhere(box):
    boxes = torch.tensor([box] * 6)
    calls = [
        lambda: box_accuracy(MAPS, [box]),
        lambda: fixed_box_accuracy((0, 0, 1, 1), [box]),
        lambda: fixed_box_accuracy(box[0], [[[0, 0, 1, 1]]]),
        lambda: best_centred_box([box], (5, 6)),
        lambda: box_iou(box, [[0, 0, 1, 1]]),
        lambda: box_iou([[0, 0, 1, 1]], np.array(box)),
        lambda: mass_inside(torch.full((1, 1, 2, 2), 0.25), boxes[0], (5, 6)),
        lambda: localize(network(), [(pictures(), LABELS)], boxes, thresholds=[0.5]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must be whole pixels x0, y0, x1, y1, both ends inclusive") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_whole_numbers_in_floating_point_are_pixels():
    assert fixed_box_accuracy((0.0, 0.0, 1.0, 1.0), torch.tensor([[0.0, 0.0, 1.0, 1.0]])) == 100
    assert box_iou(np.array([[0, 0, 255, 255]], dtype=np.uint8), [[0, 0, 255, 255]]) == 1


def test_maps_are_copied_to_the_cpu_as_a_batch(monkeypatch):
    shapes = []
    copy = torch.Tensor.cpu

    def counted(tensor):
        shapes.append(tuple(tensor.shape))
        return copy(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    localize(network(), [(pictures(), LABELS)], BOXES, thresholds=[0.5])
    assert shapes.count((6, 16, 24)) >= 1 and (16, 24) not in shapes


def on_a_gpu(model, dtype=torch.float32):
    """The network with tensors that claim to be on a GPU: shapes and devices are computed, a value cannot be read."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda", dtype=dtype)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            setattr(module, name, torch.empty(buffer.shape, device="cuda", dtype=kind))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_every_map_is_made_on_the_gpu_without_waiting_for_it(method, dtype):
    model = network(*(("abn",) if method == "abn" else ("gap", "saol")))
    with FakeTensorMode():
        on_a_gpu(model, dtype)
        images = torch.empty(6, 3, 16, 24, dtype=dtype)  # on the CPU: they follow the network
        classes = torch.empty(6, dtype=torch.long, device="cuda")
        maps = score_maps(model, images, classes, method)
        assert maps.device.type == "cuda" and maps.shape == (6, 16, 24)
        assert score_maps(model, images, classes, method, size=(4, 6)).shape == (6, 4, 6)


@pytest.mark.parametrize("method", ["saol", "cam", "grad_cam"])
def test_pairs_are_measured_where_the_network_is(method):
    model = network()
    with FakeTensorMode():
        measures = PairMeasures(on_a_gpu(model), method)
        images = torch.empty(6, 3, 16, 24)  # on the CPU: they follow the network
        classes = torch.empty(6, dtype=torch.long, device="cuda")
        scores, attention, *maps = measures._look(images, classes, classes)
        assert [part.device.type for part in (scores, *maps)] == ["cuda"] * 3
        assert (attention is None) == (method != "saol")


PAIR_BOXES = torch.tensor([[0, 0, 8, 8]] * 6)


def test_scores_of_pairs_that_are_not_numbers_are_refused():
    measures = PairMeasures(broken("gap", "abn"), "cam")
    with pytest.raises(ValueError, match="class scores of pair 0 by method='cam' hold NaN"):
        measures.update(pictures(), LABELS, LABELS.roll(1), PAIR_BOXES)


@pytest.mark.parametrize("box", [[0, 0, 25, 8], [-1, 0, 8, 8], [4, 4, 4, 8]])
def test_a_patch_outside_the_picture_is_refused(box):
    boxes = PAIR_BOXES.clone()
    boxes[3] = torch.tensor(box)
    with pytest.raises(ValueError, match="inside an image 24 wide, 16 high"):
        PairMeasures(network(), "saol").update(pictures(), LABELS, LABELS.roll(1), boxes)


def test_a_method_that_pairs_do_not_know_is_refused():
    with pytest.raises(ValueError, match="method='attention' is not known; choose one of 'saol', 'cam', 'grad_cam'"):
        PairMeasures(network(), "attention")
