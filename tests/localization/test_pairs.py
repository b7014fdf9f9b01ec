"""CutMix-ed pairs and what is measured on them, against loops over pixels."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saol_lib import build_model
from saol_lib.data import Batches, Split, mean_and_std
from saol_lib.localization import curve_points, draw_pairs, measure_pairs, mix_pairs, summarise_pairs
from saol_lib.localization.pairs import COLUMNS

SIZE = (32, 24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def split(count=12):
    images = torch.randint(256, (count, 3, *SIZE), generator=generator(), dtype=torch.uint8)
    return Split(images, torch.arange(count) * 7 % 5)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_boxes_lie_inside_and_partners_are_of_another_class(labels, height, width, seed):
    labels = torch.tensor(labels)
    if labels.min() == labels.max():
        with pytest.raises(ValueError, match="of one class cannot be paired"):
            draw_pairs(labels, (height, width), generator(seed))
        return
    boxes, partners = draw_pairs(labels, (height, width), generator(seed))
    assert (labels[partners] != labels).all()
    for x0, y0, x1, y1 in boxes.tolist():
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    again = draw_pairs(labels, (height, width), generator(seed))
    assert torch.equal(boxes, again[0]) and torch.equal(partners, again[1])


def test_areas_are_uniform_and_every_other_image_is_as_likely():
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 2]).repeat(6000)
    boxes, partners = draw_pairs(labels, (100, 100), generator())
    share = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 10_000).double()
    counts = torch.histc(share, 9, 0.05, 0.95) / len(labels)
    assert counts.sum() > 0.99 and (counts - 1 / 9).abs().max() < 0.01
    wide = (boxes[:, 2] - boxes[:, 0]) > (boxes[:, 3] - boxes[:, 1])
    assert abs(wide.double().mean() - 0.5) < 0.02
    assert abs(boxes[:, :2].double().mean() - (100 - boxes[:, 2:]).double().mean()) < 1
    shares = (labels[partners[labels == 1]]).bincount(minlength=3) / (labels == 1).sum()
    assert shares.tolist() == pytest.approx([2 / 5, 0, 3 / 5], abs=0.02)
    hits = partners.bincount(minlength=len(labels))
    assert hits.max() < 12 and hits.double().var() == pytest.approx(1, abs=0.1)  # Poisson's


def literal(model, mixed, labels, pixels, method):
    """The rows of `measure_pairs`, pixel by pixel, from maps made as large as the image."""
    rows = []
    for i, label in enumerate(labels.tolist()):
        with torch.inference_mode():
            outputs, feature = model.eval().look(pixels.normalise(mixed.images[i : i + 1]))
        x0, y0, x1, y1 = mixed.boxes[i].tolist()
        patch = torch.zeros(SIZE)
        patch[y0:y1, x0:x1] = 1
        pasted = int(labels[mixed.partners[i]])
        scores = (outputs.saol_log_probs if method == "saol" else outputs.gap_logits)[0].double().exp()
        inside = []
        for k in (pasted, label):
            if method == "saol":
                values = outputs.attention[0, 0] * outputs.spatial_log_probs[0, k].exp()
            else:
                weight = next(m for m in model.modules() if isinstance(m, torch.nn.Linear)).weight.detach()
                values = sum(weight[k, c] * feature[0, c] for c in range(feature.shape[1])).clamp(min=0)
            cells = values.shape
            large = values.repeat_interleave(SIZE[0] // cells[0], 0).repeat_interleave(SIZE[1] // cells[1], 1)
            inside.append(float((large * patch).sum() / large.sum()) if large.sum() else float(patch.mean()))
        attention = float("nan")
        if method == "saol":
            large = outputs.attention[0, 0].repeat_interleave(4, 0).repeat_interleave(4, 1) / 16
            attention = float((large * patch).sum())
        predicted = float(scores[pasted] / (scores[pasted] + scores[label]))
        rows.append([float(patch.mean()), predicted, attention, inside[0], 1 - inside[1]])
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(("method", "heads"), [("saol", ("gap", "saol")), ("cam", ("gap", "saol")), ("cam", ("gap",))])
def test_what_is_measured_is_the_literal_sum(method, heads):
    data, model = split(), build_model("resnet-8", 5, heads=heads, seed=1)
    pixels = Batches(data, torch.device("cpu"), *mean_and_std(data.images))
    mixed = mix_pairs(data, 5, generator(3))
    found = measure_pairs(model, mixed, data.labels, pixels, method)
    pd.testing.assert_frame_equal(found, literal(model, mixed, data.labels, pixels, method), atol=1e-5, rtol=0)
    assert found.attention.notna().all() == (method == "saol")


def test_grad_cam_is_the_positive_part_of_cam_so_both_score_the_same():
    data, model = split(), build_model("resnet-8", 5, heads=("gap",), seed=2)
    pixels = Batches(data, torch.device("cpu"), *mean_and_std(data.images))
    mixed = mix_pairs(data, 5, generator(3))
    cam, grad_cam = (measure_pairs(model, mixed, data.labels, pixels, method) for method in ("cam", "grad_cam"))
    pd.testing.assert_frame_equal(cam, grad_cam, atol=1e-6, rtol=0)


def test_the_metrics_are_the_textbook_ones():
    share, predicted = [0.2, 0.4, 0.9], [0.1, 0.5, 0.7]
    table = pd.DataFrame(
        dict(zip(COLUMNS, (share, predicted, [0.3, 0.3, 0.6], [0.6, 0.5, 1.0], [0.9, 0.5, 0.4]), strict=True))
    )
    found = summarise_pairs(table)
    mean, centre = sum(share) / 3, sum(predicted) / 3
    up = sum((s - mean) * (p - centre) for s, p in zip(share, predicted, strict=True))
    down = sum((s - mean) ** 2 for s in share)
    across = sum((p - centre) ** 2 for p in predicted)
    assert found["share_error"] == pytest.approx(100 * (0.1 + 0.1 + 0.2) / 3)
    assert found["guess_error"] == pytest.approx(100 * (0.3 + 0.1 + 0.4) / 3)
    assert found["share_slope"] == pytest.approx(100 * up / down)
    assert found["share_correlation"] == pytest.approx(100 * up / (down * across) ** 0.5)
    assert found["own_mass"] == pytest.approx(100 * (2.1 + 1.8) / 6) and found["own_area"] == 50
    assert found["attention_slope"] > 0 and found["half_of_pairs"] == 50
    assert not [
        name for name in summarise_pairs(table.assign(attention=float("nan"))) if "attention" in name or "pairs" in name
    ]


def test_the_points_of_the_curves_are_the_table():
    table = pd.DataFrame([[0.2, 0.3, float("nan"), 0.4, 0.9]], columns=COLUMNS).assign(reading="CAM")
    points = curve_points(table)
    assert [panel.split("\n")[0] for panel in points.panel] == [
        "share of the pasted class",
        *["positive map mass in"] * 2,
    ]
    assert points[["area", "value"]].to_numpy().tolist() == [[0.2, 0.3], [0.2, 0.4], [0.8, 0.9]]
    assert set(points.reading) == {"CAM"}
    assert "attention A\ninside the patch" in set(curve_points(table.assign(attention=0.1)).panel)
