"""Evaluation: how often each output layer is right, how sure it is, whether both agree; how far attention is spread."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saol_lib.data import Batches, Stream
from saol_lib.layers import Outputs, at_least_float32, attention_entropy, largest_cell
from saol_lib.training.distributed import Interrupted, Processes

LAYERS = ("gap", "saol", "mean")  # the output layers; `mean`: the average of their distributions, where both are there
BINS = 15  # of confidence, equally wide
UNIT = 2**24  # shares are added as whole units of 1 / UNIT: neither order nor processes change their sum
SCORES = ("top1_", "ece_", "agreement", "attention_")  # how the names of `Tally.scores` begin


class Bins(NamedTuple):
    """The answers of one layer by their confidence c: bin b of BINS holds b < BINS * c <= b + 1."""

    images: list[int]
    right: list[int]
    confidence: list[float]  # added up over the images of a bin

    @property
    def error(self) -> float:
        """The expected calibration error, percent: the mean distance between accuracy and confidence of a bin."""
        gaps = []
        for right, sure in zip(self.right, self.confidence, strict=True):
            gaps.append(abs(right - sure))
        return 100 * sum(gaps) / self.total

    @property
    def accuracy(self) -> float:
        """Percent of the answers that are right."""
        return 100 * sum(self.right) / self.total

    @property
    def total(self) -> int:
        """How many images were answered."""
        return sum(self.images)


class Tally(NamedTuple):
    """What a network's answers on a data set add up to."""

    layers: dict[str, Bins]  # of those of LAYERS that the network has
    agreeing: int  # images to which both layers give one class
    spread: float = 0.0  # of the attention, added up over the images: its entropy as a share of a uniform map's
    peak: float = 0.0  # the share on its largest cell, added up; 0 without attention

    @property
    def images(self) -> int:
        """How many were counted, the same for every layer."""
        return next(bins.total for bins in self.layers.values())

    def scores(self) -> dict[str, float]:
        """In percent, of what the network has: top1_LAYER, ece_LAYER (`Bins.error`), the `agreement` of both layers.

        And of the attention attention_spread, its mean entropy (100: uniform, 0: a point), and attention_peak, its mean
        share on its largest cell (ours).
        """
        found = {f"top1_{name}": bins.accuracy for name, bins in self.layers.items()}
        for name, bins in self.layers.items():
            found[f"ece_{name}"] = bins.error
        if "mean" in self.layers:
            found["agreement"] = 100 * self.agreeing / self.images
        if self.peak:
            found["attention_spread"] = 100 * self.spread / self.images
            found["attention_peak"] = 100 * self.peak / self.images
        return found

    def reliability(self) -> dict[str, dict]:
        """The bins of every layer, as a run's file keeps them."""
        return {name: bins._asdict() for name, bins in self.layers.items()}


def evaluate(model: nn.Module, data: Batches | Stream, group: Processes | None = None) -> dict[str, float]:
    """The `Tally.scores` of a network on a data set."""
    return tally(model, data, group).scores()


@torch.inference_mode()
def tally(model: nn.Module, data: Batches | Stream, group: Processes | None = None) -> Tally:
    """Count the answers of each output layer that the network has.

    Of several processes each takes every so many-th batch. Damaged images that were skipped do not count. Raises
    Interrupted where the data end early because someone asked for it.
    """
    part = (group.rank, group.count) if group else (0, 1)
    batch_size = evaluation_batch(data.size)
    bins = torch.zeros(len(LAYERS), BINS, 3, dtype=torch.int64, device=data.device)
    agreeing = bins.new_zeros(())
    attention = bins.new_zeros(2)

    model.eval()
    for images, labels in data.all(batch_size, part=part):
        outputs = model(images)
        answers = _answers(outputs)
        for name, scores in answers.items():
            row = LAYERS.index(name)
            bins[row] += _binned(scores, labels)
        if "mean" in answers:
            gap = answers["gap"].argmax(dim=1)
            saol = answers["saol"].argmax(dim=1)
            agreeing += (gap == saol).sum()
        if outputs.attention is not None:
            attention += _spread_and_peak(outputs.attention)

    left_out = len(data) - len(data.kept)
    if group:
        bins = group.sum(bins)
        agreeing = group.sum(agreeing)
        attention = group.sum(attention)
        left_out = int(group.sum(bins.new_tensor(left_out)))

    there = {}
    for name, table in zip(LAYERS, bins.tolist(), strict=True):
        own = _as_bins(table)
        if own.total:
            there[name] = own
    counts = {own.total for own in there.values()}
    expected = len(data) - left_out
    if counts != {expected}:
        raise Interrupted(143)
    spread, peak = (units / UNIT for units in attention.tolist())
    return Tally(there, int(agreeing), spread, peak)


def evaluation_batch(size: tuple[int, int]) -> int:
    """Images in a batch of evaluation: 500 small ones of `size` (H, W), fewer of large ones."""
    height, width = size
    fitting = 500 * 64 * 64 // (height * width)
    return max(20, min(500, fitting))


def summarise(history: list[dict]) -> dict[str, float]:
    """The last epoch's scores, and the best evaluated accuracies (optimistic: chosen on the same images)."""
    last_entry = history[-1] if history else {}
    last = {}
    best = {}
    for name, value in last_entry.items():
        if name.startswith(SCORES):
            last[f"{name}_last"] = value
        if name.startswith("top1_"):
            evaluated = [entry[name] for entry in history if name in entry]
            best[f"{name}_best"] = max(evaluated)
    return last | best


def _answers(outputs: Outputs) -> dict[str, Tensor]:
    """The scores (B, K) of each of LAYERS that is there, up to a constant the logarithms of its distribution."""
    answers = {}
    if outputs.gap_logits is not None:
        answers["gap"] = outputs.gap_logits
    if outputs.saol_log_probs is not None:
        answers["saol"] = outputs.saol_log_probs
    if len(answers) == 2:
        distributions = [_distribution(scores) for scores in answers.values()]
        mean = torch.stack(distributions).mean(dim=0)
        answers["mean"] = mean.log()
    return answers


def _distribution(scores: Tensor) -> Tensor:
    """Softmax over classes (B, K), in float32 at least."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=1, dtype=dtype)


def _binned(scores: Tensor, labels: Tensor) -> Tensor:
    """Answers (B, K) to images of `labels` (B,) by confidence, (BINS, 3): how many, how many right, and UNITs."""
    confidence = _distribution(scores).amax(dim=1)
    place = (confidence * BINS).ceil().long() - 1
    place = place.clamp(0, BINS - 1)

    hits = scores.argmax(dim=1) == labels
    units = (confidence * UNIT).round().long()
    ones = torch.ones_like(units)
    told = torch.stack([ones, hits.long(), units], dim=1)

    binned = told.new_zeros(BINS, 3)
    return binned.index_add_(0, place, told)


def _spread_and_peak(attention: Tensor) -> Tensor:
    """Entropies (as shares of a uniform map's) and largest cells of maps (B, 1, Ho, Wo): (2,), added in UNITs."""
    maps = at_least_float32(attention)
    cells = maps[0].numel()
    uniform = math.log(cells) if cells > 1 else 1.0
    shares = torch.stack([attention_entropy(maps) / uniform, largest_cell(maps)])
    units = (shares * UNIT).round().long()
    return units.sum(dim=1)


def _as_bins(table: list[list[int]]) -> Bins:
    images, right, units = zip(*table, strict=True)
    confidence = [count / UNIT for count in units]
    return Bins(list(images), list(right), confidence)
