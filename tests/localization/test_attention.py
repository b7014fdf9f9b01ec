"""How far attention is spread, whether it splits, and the maps of our own: against what can be worked out by hand."""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from saol_lib.layers import Outputs, attention_entropy, largest_cell
from saol_lib.localization import attention_split, localize, raw_maps, score_maps, summarise_pairs
from saol_lib.localization.maps import pooled_classifier
from saol_lib.localization.pairs import COLUMNS
from saol_lib.networks import build_model

POINT = torch.zeros(4, 5, dtype=torch.float64).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(1.0).double())
UNIFORM = torch.full((4, 5), 1 / 20, dtype=torch.float64)
TWO = torch.zeros(4, 5, dtype=torch.float64)
TWO[0, 0] = 0.25
TWO[3, 4] = 0.75
MAPS = torch.stack([POINT, UNIFORM, TWO])[:, None]


def pictures(count=6, dtype=torch.float32, seed=1):
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_entropy_and_largest_cell_by_hand():
    two = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert attention_entropy(MAPS).tolist() == pytest.approx([0, math.log(20), two], abs=1e-12)
    assert largest_cell(MAPS).tolist() == pytest.approx([1, 1 / 20, 0.75], abs=1e-12)
    scaled = MAPS * torch.tensor([0.5, 7.0, 3.0]).view(3, 1, 1, 1)  # ABN's maps do not sum to 1
    assert torch.allclose(attention_entropy(scaled), attention_entropy(MAPS), rtol=0, atol=1e-12)
    assert torch.allclose(largest_cell(scaled), largest_cell(MAPS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [("gap", "saol"), ("abn",)])
def test_the_spread_of_a_network_is_that_of_its_maps(heads):
    model = build_model("resnet-8-8", 6, heads=heads, seed=3).double().eval()
    images = pictures(dtype=torch.float64)
    attention = model(images).attention.detach()
    labels = torch.zeros(6, dtype=torch.long)
    boxes = torch.tensor([[0, 0, 5, 5]] * 6)
    method = "abn" if heads == ("abn",) else "attention"
    measured = localize(model, [(images, labels)], boxes, method, thresholds=[0.5]).metrics
    assert measured["entropy"] == pytest.approx(float(attention_entropy(attention).mean()), abs=1e-12)
    assert measured["largest_cell"] == pytest.approx(100 * float(largest_cell(attention).mean()), abs=1e-12)
    assert 0 < measured["entropy"] <= math.log(attention[0].numel())


def pair_table(rows):
    return pd.DataFrame([[share, 0.5, held, 0.5, 0.5] for share, held in rows], columns=COLUMNS)


def test_the_split_is_one_where_attention_follows_the_area_and_zero_where_one_object_gets_none():
    table = pair_table([(0.3, 0.3), (0.3, 0.0), (0.3, 1.0), (0.3, 0.15), (0.2, 0.6), (0.75, 0.5)])
    assert attention_split(table).tolist() == pytest.approx([1, 0, 0, 0.5, 0.5, 2 / 3], abs=1e-12)
    found = summarise_pairs(table)
    assert found["attention_split"] == pytest.approx(100 * (1 + 0.5 + 0.5 + 2 / 3) / 6)
    assert found["attention_both"] == pytest.approx(100 * 4 / 6)
    whole = attention_split(pair_table([(1.0, 1.0), (0.5, 0.5)]))
    assert math.isnan(whole[0]) and whole[1] == 1


def test_the_logarithm_shows_what_a_point_hides():
    """A has underflowed to 0 but for one cell: A * Y_k is that cell, its logarithm is finite everywhere."""
    attention = POINT.float()[None, None]
    votes = torch.full((1, 6, 4, 5), -2.0)
    outputs = Outputs(saol_log_probs=votes[:, :, 0, 0], attention=attention, spatial_log_probs=votes)
    feature = torch.zeros(1, 3, 4, 5)
    model = build_model("resnet-8-8", 6)
    logs = raw_maps(model, outputs, feature, torch.tensor([0]), "saol_log")
    assert logs.isfinite().all() and logs.argmax() == attention.argmax() and logs.max() == -2


def test_the_product_in_the_log_domain_is_the_logarithm_of_the_product():
    model = build_model("resnet-8-8", 6, heads=("saol",), seed=2).double().eval()
    classes = torch.tensor([0, 5, 3, 3, 1, 2])
    with torch.no_grad():
        outputs, feature = model.look(pictures(dtype=torch.float64))
    product = raw_maps(model, outputs, feature, classes, "saol")
    logs = raw_maps(model, outputs, feature, classes, "saol_log")
    assert torch.allclose(logs, product.log(), rtol=0, atol=1e-12)


class Body(nn.Module):
    """A network of one's own, from images to X_L and the logits of a head that is not one linear layer."""

    saol = None
    gap = None

    def __init__(self, *head):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(self.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)

    def look(self, images, mask=None):
        feature = self.conv(images).relu()
        return Outputs(gap_logits=self.body[2:](feature)), feature


LINEAR = nn.Linear(8, 6)
DEEP = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6)]
NORMED = [nn.LayerNorm(8), nn.Linear(8, 6)]


@pytest.mark.parametrize("head", [DEEP, NORMED], ids=["two layers", "a norm"])
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_of_any_head_is_captums(head, frozen):
    torch.manual_seed(0)
    model = Body(*head).double().eval().requires_grad_(not frozen)
    images, classes = pictures(dtype=torch.float64), torch.tensor([0, 5, 3, 3, 1, 2])
    found = score_maps(model, images, classes, "grad_cam")
    assert not found.requires_grad

    model.requires_grad_(True)
    captum = LayerGradCam(model.body, model.body[1]).attribute(images, target=classes, relu_attributions=True)
    large = F.interpolate(captum.detach().float(), (16, 24), mode="bicubic")[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    assert torch.allclose(found, ((large - low) / (high - low)).nan_to_num(0), rtol=0, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(score_maps(model, images.clone(), classes, "grad_cam"), found)
    with pytest.raises(ValueError, match="one linear layer right after the pooling; this network has none, so take"):
        score_maps(model, images, classes, "cam")


def test_the_classifier_is_the_linear_layer_on_the_pooled_map():
    feature = torch.zeros(1, 8, 4, 4)
    plain = Body(nn.Dropout(0.1), LINEAR)
    assert pooled_classifier(plain, feature) is LINEAR
    assert pooled_classifier(Body(*DEEP), feature) is None
    assert pooled_classifier(Body(*NORMED), feature) is None
    assert pooled_classifier(Body(nn.Linear(8, 8), nn.Linear(8, 6)), feature) is None
    assert pooled_classifier(Body(), feature) is None


@pytest.mark.parametrize("backbone", ["densenet-bc-22-12", "pyramidnet-20-24", "resnet18"])
def test_cams_mean_and_the_bias_are_the_logit(backbone):
    """What makes it CAM: the mean of a class's map, with the bias, is the class's logit."""
    model = build_model(backbone, 6, heads=("gap",), seed=2).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    classes = torch.tensor([4, 1])
    with torch.no_grad():
        outputs, feature = model.look(images)
        maps = raw_maps(model, outputs, feature, classes, "cam")
        bias = pooled_classifier(model, feature).bias[classes]
    logits = outputs.gap_logits[torch.arange(2), classes]
    assert torch.allclose(maps.mean(dim=(1, 2)) + bias, logits, rtol=0, atol=1e-12)
