"""What a network makes of CutMix-ed pairs (the paper's section 6, claim C14): do scores and maps follow the areas?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn

from saol_lib.cutmix import Mixed, paste
from saol_lib.data import Batches, Split
from saol_lib.localization.attention import area_share, mass_inside
from saol_lib.localization.maps import look, raw_maps
from saol_lib.options import check_choice

if TYPE_CHECKING:
    import pandas as pd  # half a second, which only the tables cost

COLUMNS = ("share", "predicted", "attention", "own_pasted", "own_base")
METHODS = ("saol", "cam", "grad_cam")
_BATCH = 500


def draw_pairs(labels: Tensor, size: tuple[int, int], generator: Generator) -> tuple[Tensor, Tensor]:
    """For each of the images (N,) of `labels` a box (N, 4), half-open, and a partner (N,) of another class to paste.

    The box covers 5 to 95 % of an image of `size` (H, W), drawn uniformly and rounded to whole pixels; the logarithm of
    its width is uniform over all widths that leave it inside, and so is its place. Partners are uniform over the
    images of other classes.
    Raises ValueError where all images are of one class.
    """
    count = len(labels)
    if count < 2 or labels.min() == labels.max():
        raise ValueError(f"{count} images of one class cannot be paired; give images of at least two classes")

    lots = torch.rand(5, count, generator=generator, dtype=torch.float64)
    *places, pick = lots.unbind()
    boxes = _place(*places, size)
    return boxes, _partners(labels, pick)


def _place(
    area: Tensor,
    stretch: Tensor,
    left: Tensor,
    top: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Half-open boxes (N, 4) from lots (N,) in 0..1: how large, how wide, and where."""
    height, width = size
    share = 0.05 + 0.9 * area
    w = (width * share**stretch).round()
    w = w.clamp(1, width)
    h = (share * height * width / w).round()
    h = h.clamp(1, height)

    free_across = width - w
    free_down = height - h
    x0 = (left * (free_across + 1)).floor()
    y0 = (top * (free_down + 1)).floor()
    boxes = torch.stack([x0, y0, x0 + w, y0 + h], dim=1)
    return boxes.long()


def _partners(labels: Tensor, pick: Tensor) -> Tensor:
    """For each image one of another class, (N,); pick (N,) in 0..1 says which.

    In the order of their classes, the images of other classes lie side by side after the own class's, going round.
    """
    count = len(labels)
    order = labels.argsort(stable=True)
    ends = torch.searchsorted(labels[order], labels, right=True)
    same = labels.bincount()[labels]
    others = count - same
    steps = (pick * others).floor()
    chosen = ends + steps.long()
    return order[chosen % count]


def mix_pairs(split: Split, num_classes: int, generator: Generator) -> Mixed:
    """Every image of a split with a patch of another class pasted in, as `draw_pairs` says; images stay uint8."""
    size = split.images.shape[2:]
    boxes, partners = draw_pairs(split.labels, size, generator)
    return paste(split.images, split.labels, num_classes, boxes, partners)


class Seen(NamedTuple):
    """What a network makes of mixed images (B, C, H, W)."""

    scores: Tensor  # (B, K)
    attention: Tensor | None  # (B, 1, Ho, Wo)
    pasted_map: Tensor  # (B, Ho, Wo) of the pasted class
    base_map: Tensor  # (B, Ho, Wo) of the other class

    def on_cpu(self) -> Seen:
        return Seen(*map(_to_cpu, self))


class PairMeasures:
    """What a network makes of pairs that come in batches: `update` with each batch, then `result`, a table.

    model   a network that `look`, on any device: what it is given is moved there
    method  "saol" reads SAOL's scores, A and A * Y_k; "cam" and "grad_cam" read the GAP-FC layer
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        check_choice("method", method, METHODS)
        self.model = model
        self.method = method
        self._rows = []

    def update(self, images: Tensor, pasted: Tensor, base: Tensor, boxes: Tensor) -> None:
        """Mixed images (B, C, H, W) as the network takes them, both classes (B,), the patches' half-open boxes (B, 4).

        Raises ValueError for classes outside 0..K-1, boxes outside the image, scores that are no numbers.
        """
        size = tuple(images.shape[2:])
        pasted = pasted.cpu()
        base = base.cpu()
        seen = self._look(images, pasted, base).on_cpu()
        self._check_numbers(seen.scores)

        patch = boxes.cpu() - torch.tensor([0, 0, 1, 1])  # both ends inclusive
        share = area_share(patch, size)
        predicted = _first_share(seen.scores, pasted, base)
        own_pasted = _positive_inside(seen.pasted_map, patch, size, share)
        own_base = 1 - _positive_inside(seen.base_map, patch, size, share)
        held = torch.full_like(own_pasted, torch.nan)
        if seen.attention is not None:
            held = mass_inside(seen.attention, patch, size)

        row = [share, predicted, held, own_pasted, own_base]
        self._rows.append(torch.stack(row, dim=1))

    def _look(self, images: Tensor, pasted: Tensor, base: Tensor) -> Seen:
        """All that the device computes, where it lies."""
        outputs, feature = look(self.model, images, self.method)
        pasted_map = raw_maps(self.model, outputs, feature, pasted, self.method)
        base_map = raw_maps(self.model, outputs, feature, base, self.method)
        if self.method == "saol":
            return Seen(outputs.saol_log_probs, outputs.attention, pasted_map, base_map)
        return Seen(outputs.gap_logits, None, pasted_map, base_map)

    def _check_numbers(self, scores: Tensor) -> None:
        broken = scores.isnan().any(dim=1).nonzero()
        if len(broken):
            before = sum(map(len, self._rows))
            number = before + int(broken[0])
            raise ValueError(
                f"class scores of pair {number} by method={self.method!r} hold NaN; expected numbers, so this network "
                f"cannot be measured: train it anew"
            )

    def result(self) -> pd.DataFrame:
        """One row a pair, each value in 0..1, COLUMNS:

        share      of the image that the patch covers: the true share of its class
        predicted  p_pasted / (p_pasted + p_base) of the scores: SAOL's for method "saol", GAP-FC's for the others
        attention  the share of A that lies in the patch; NaN but for method "saol"
        own_pasted the share of the positive part of the pasted class's map (A * Y_k, CAM, Grad-CAM) inside the patch
        own_base   that of the other class's map outside the patch; a map without any positive part scores the area's
        """
        import pandas as pd

        if not self._rows:
            raise ValueError("no pair was measured; call update with at least one batch")
        rows = torch.cat(self._rows).double()
        return pd.DataFrame(rows.numpy(), columns=COLUMNS)


def _to_cpu(part: Tensor | None) -> Tensor | None:
    if part is None:
        return None
    return part.detach().cpu()


def _first_share(scores: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """p_first / (p_first + p_second) of scores (B, K), for two classes (B,) of each row."""
    classes = torch.stack([first, second], dim=1)
    both = scores.gather(1, classes)
    return both.softmax(dim=1)[:, 0]


def _positive_inside(maps: Tensor, patch: Tensor, size: tuple[int, int], share: Tensor) -> Tensor:
    """The share (B,) of each map's positive part that lies in its patch; the area's where a map has none."""
    positive = maps.clamp(min=0)
    positive = positive[:, None]
    total = positive.sum(dim=(1, 2, 3))
    inside = mass_inside(positive, patch, size)
    shares = inside / total.clamp(min=1e-30)
    return torch.where(total > 0, shares, share)


def measure_pairs(model: nn.Module, mixed: Mixed, labels: Tensor, pixels: Batches, method: str) -> pd.DataFrame:
    """`PairMeasures` of all pairs of `mix_pairs` in one call.

    labels (N,): of the images that were mixed. pixels: their `Batches` or `Stream`, which normalises for the network.
    """
    measures = PairMeasures(model, method)
    pairs = torch.arange(len(labels))
    for part in pairs.split(_BATCH):
        pictures = mixed.images[part].to(pixels.device)
        images = pixels.normalise(pictures)
        sources = mixed.partners[part]
        pasted = labels[sources]
        measures.update(images, pasted, labels[part], mixed.boxes[part])
    return measures.result()


def summarise_pairs(table: pd.DataFrame) -> dict[str, float]:
    """The table of `PairMeasures` as flat metrics in percent: how well scores and attention follow the area.

    share_error: mean distance of the predicted from the true share, guess_error that of a constant half;
    share_slope, share_correlation (and the same of attention): 100 is a share that follows exactly;
    attention_split, attention_both: does A see both objects, see `attention_split` (ours); half_of_pairs: what
    attention_both has to be above if A sees both in most pairs;
    own_mass: mean of own_pasted and own_base, own_area: of the regions' shares, what a blind map would score.
    """
    share = table["share"]
    error = table["predicted"] - share
    guess_error = 0.5 - share
    found = {
        "share_error": error.abs().mean(),
        "guess_error": guess_error.abs().mean(),
    }
    for name, column in (("share", "predicted"), ("attention", "attention")):
        values = table[column]
        if values.notna().all():
            found[f"{name}_slope"] = values.cov(share) / share.var()
            found[f"{name}_correlation"] = values.corr(share)
    if table["attention"].notna().all():
        split = attention_split(table)
        both = split >= 0.5
        found["attention_split"] = split.mean()
        found["attention_both"] = both.mean()
        found["half_of_pairs"] = 0.5
    own = table[["own_pasted", "own_base"]].mean()
    found["own_mass"] = own.mean()
    found["own_area"] = 0.5
    return {name: 100 * float(value) for name, value in found.items()}


def attention_split(table: pd.DataFrame) -> pd.Series:
    """Does A see both objects of a pair (ours)? For every row 0..1.

    The patch holds a share a of the attention and s of the image, the rest 1 - a and 1 - s. Each is divided by the
    share that uniform attention would give it, and the smaller of the two counts: min(a / s, (1 - a) / (1 - s)). It is
    1 where the attention is dealt out as the area is, 0 where one of the two objects gets none. A patch that is the
    whole image leaves nothing to split: NaN.
    """
    patch = table["attention"] / table["share"]
    rest_share = 1 - table["share"]
    rest = (1 - table["attention"]) / rest_share.where(rest_share > 0)
    split = patch.where(patch < rest, rest)
    return split.clip(0, 1)


def curve_points(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `PairMeasures` as points to draw: panel, area and value (0..1), and its other columns."""
    import pandas as pd

    table = table.assign(rest=1 - table["share"])
    others = [name for name in table.columns if name not in (*COLUMNS, "rest")]
    curves = [  # panel, area, value
        ("share of the pasted class\namong both scores", "share", "predicted"),
        ("attention A\ninside the patch", "share", "attention"),
        ("positive map mass in\nthe class's own region", "share", "own_pasted"),
        ("positive map mass in\nthe class's own region", "rest", "own_base"),
    ]
    parts = []
    for panel, area, value in curves:
        part = table[others].assign(panel=panel, area=table[area], value=table[value])
        parts.append(part)
    return pd.concat(parts, ignore_index=True).dropna(subset="value")
