"""Evaluation: counted in bins, against the same worked out image by image in Python."""

import json
import math
import random

import pytest
import torch
from torch import nn

from saol_lib.layers import Outputs
from saol_lib.training import evaluation
from saol_lib.training.distributed import Interrupted
from saol_lib.training.evaluation import BINS, Bins, evaluate, summarise, tally

CLASSES = 3


class Table(nn.Module):
    """A network whose images are the numbers of rows in tables of logits."""

    def __init__(self, gap=None, saol=None, attention=None):
        super().__init__()
        self.gap, self.saol, self.attention = gap, saol, attention

    def forward(self, rows):
        gap = None if self.gap is None else self.gap[rows]
        saol = None if self.saol is None else self.saol[rows].log_softmax(dim=1)
        attention = None if self.attention is None else self.attention[rows]
        return Outputs(gap, saol, attention)


class Rows:
    """Data whose images are numbers of rows, in batches of any size."""

    size, device = (8, 8), torch.device("cpu")

    def __init__(self, labels, batch, kept=None):
        self.labels, self.batch = labels, batch
        self.kept = range(len(labels)) if kept is None else kept

    def __len__(self):
        return len(self.labels)

    def all(self, batch_size, part=(0, 1)):
        rank, count = part
        for rows in torch.tensor(list(self.kept)).split(self.batch)[rank::count]:
            yield rows, self.labels[rows]


def made(images=60, seed=0, spread=2.0):
    """Logits in float64 of both layers, and labels that they often have."""
    generator = torch.Generator().manual_seed(seed)
    gap, saol = spread * torch.randn(2, images, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(images, generator=generator) < 0.6, gap.argmax(dim=1), saol.argmax(dim=1))
    return gap, saol, labels


def made_maps(images=60, seed=0):
    """Attention maps in float64, of all kinds between a point and a uniform one."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = 8 * torch.rand(images, 1, generator=generator, dtype=torch.float64)
    scores = sharpness * torch.randn(images, 12, generator=generator, dtype=torch.float64)
    return scores.softmax(dim=1).view(images, 1, 3, 4)


def softmax(row):
    shares = [math.exp(value) for value in row]
    return [share / sum(shares) for share in shares]


def by_hand(answers, labels):
    """Accuracy and expected calibration error, percent, of distributions (a list each): bins of a fifteenth."""
    right, bins = 0, [[] for _ in range(15)]
    for shares, label in zip(answers, labels, strict=True):
        sure = max(shares)
        hit = shares.index(sure) == label
        right += hit
        (place,) = [b for b in range(15) if b < 15 * sure <= b + 1]
        bins[place].append((hit, sure))

    error = 0.0
    for own in filter(None, bins):
        accuracy = sum(hit for hit, _ in own) / len(own)
        confidence = sum(sure for _, sure in own) / len(own)
        error += len(own) / len(labels) * abs(accuracy - confidence)
    return 100 * right / len(labels), 100 * error


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_worked_out_by_hand(seed):
    gap, saol, labels = made(seed=seed)
    gap_shares, saol_shares = ([softmax(row) for row in table.tolist()] for table in (gap, saol))
    means = [
        [(one + other) / 2 for one, other in zip(*rows, strict=True)]
        for rows in zip(gap_shares, saol_shares, strict=True)
    ]
    found = evaluate(Table(gap, saol), Rows(labels, 7))
    for name, answers in (("gap", gap_shares), ("saol", saol_shares), ("mean", means)):
        accuracy, error = by_hand(answers, labels.tolist())
        assert found[f"top1_{name}"] == accuracy
        assert found[f"ece_{name}"] == pytest.approx(error, abs=100 / evaluation.UNIT)  # half a unit an image

    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(gap_shares, saol_shares, strict=True))
    assert found["agreement"] == 100 * same / len(labels) < 100


def test_one_layer_alone():
    gap, saol, labels = made()
    assert set(evaluate(Table(gap=gap), Rows(labels, 7))) == {"top1_gap", "ece_gap"}
    assert set(evaluate(Table(saol=saol), Rows(labels, 7))) == {"top1_saol", "ece_saol"}


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_how_far_attention_is_spread_is_what_its_maps_say(scale):
    gap, saol, labels = made()
    maps = made_maps()
    spreads = []
    for row in maps.flatten(1).tolist():
        spreads.append(-sum(share * math.log(share) for share in row) / math.log(12))
    peaks = [max(row) for row in maps.flatten(1).tolist()]

    found = evaluate(Table(gap, saol, scale * maps), Rows(labels, 7))  # ABN's maps do not sum to 1
    assert found["attention_spread"] == pytest.approx(100 * sum(spreads) / 60, abs=100 / evaluation.UNIT)
    assert found["attention_peak"] == pytest.approx(100 * sum(peaks) / 60, abs=100 / evaluation.UNIT)


def test_a_point_a_uniform_map_and_a_map_of_one_cell():
    gap, _, labels = made(images=4)
    point = torch.zeros(4, 1, 5, 5)
    point[:, :, 2, 3] = 1.0
    for maps, spread, peak in (
        (point, 0, 100),
        (torch.full((4, 1, 5, 5), 0.04), 100, 4),
        (torch.ones(4, 1, 1, 1), 0, 100),
    ):
        found = evaluate(Table(gap, None, maps), Rows(labels, 3))
        assert (found["attention_spread"], found["attention_peak"]) == pytest.approx((spread, peak), abs=1e-4)


def test_batches_processes_and_order_do_not_change_a_bit():
    gap, saol, labels = made(seed=3)
    gap, saol = gap.float(), saol.float()
    network = Table(gap, saol, made_maps(seed=3))
    whole = tally(network, Rows(labels, 60))
    assert 0 < whole.spread < 60 and 5 < whole.peak < 60
    order = list(range(60))
    random.Random(0).shuffle(order)
    assert tally(network, Rows(labels, 1, order)) == whole

    class Beside:
        """Two processes, one after the other: the second one's sums are added by hand."""

        count = 2

        def __init__(self, rank, others=()):
            self.rank, self.others, self.told = rank, iter(others), []

        def sum(self, value):
            self.told.append(value)
            return value + next(self.others, torch.zeros_like(value))

    data = Rows(labels, 7)
    second = Beside(1)
    with pytest.raises(Interrupted):  # alone it has seen too few
        tally(network, data, second)
    assert tally(network, data, Beside(0, second.told)) == whole


def test_certainty_is_in_the_last_bin_and_damaged_images_do_not_count():
    sure = torch.eye(CLASSES).log().repeat(4, 1)  # one class has everything
    labels = torch.arange(CLASSES).repeat(4)
    found = tally(Table(gap=sure), Rows(labels, 5)).layers["gap"]
    empty = [0] * (BINS - 1)
    assert found == Bins([*empty, 12], [*empty, 12], [*map(float, empty), 12.0]) and found.error == 0

    kept = [0, 1, 2, 5]
    found = tally(Table(gap=sure), Rows(labels, 3, kept)).layers["gap"]
    assert sum(found.images) == sum(found.right) == 4


def test_a_run_keeps_the_bins_of_its_last_epoch():
    gap, saol, labels = made()
    counts = tally(Table(gap, saol, made_maps()), Rows(labels, 9))
    kept = json.loads(json.dumps(counts.reliability()))
    again = {name: Bins(**table) for name, table in kept.items()}
    assert again == counts.layers

    first, last = {"top1_gap": 50.0, "ece_gap": 1.0}, counts.scores() | {"reliability": kept, "loss_sl": 1.0}
    metrics = summarise([{"epoch": 1}, first, last])
    assert metrics["top1_gap_best"] == max(50.0, counts.scores()["top1_gap"])
    assert {name for name in metrics if name.endswith("_last")} == {f"{name}_last" for name in counts.scores()}
    assert {name for name in metrics if name.endswith("_best")} == {"top1_gap_best", "top1_saol_best", "top1_mean_best"}
