"""What a network makes of CutMix-ed pairs (the paper's section 6, claim C14): do scores and maps follow the areas?"""

import pandas as pd
import torch
from torch import Generator, Tensor

from saol_lib.attach import SAOLNet
from saol_lib.cutmix import Mixed, paste
from saol_lib.data import Batches, Split
from saol_lib.localization.maps import mass_inside, raw_maps

COLUMNS = ("share", "predicted", "attention", "own_pasted", "own_base")


def draw_pairs(labels: Tensor, size: tuple[int, int], generator: Generator) -> tuple[Tensor, Tensor]:
    """For each of the images (N,) of `labels` a box (N, 4), half-open, and a partner (N,) of another class to paste.

    The box covers 5 to 95 % of an image of `size` (H, W), drawn uniformly and rounded to whole pixels; the logarithm of
    its width is uniform over all widths that leave it inside, and so is its place. Partners are uniform over the
    images of other classes.
    Raises ValueError where all images are of one class.
    """
    (height, width), count = size, len(labels)
    if count < 2 or labels.min() == labels.max():
        raise ValueError(f"{count} images of one class cannot be paired; give images of at least two classes")
    area, stretch, left, top, pick = torch.rand(5, count, generator=generator, dtype=torch.float64)
    area = 0.05 + 0.9 * area
    w = (width * area**stretch).round().clamp(1, width)
    h = (area * height * width / w).round().clamp(1, height)
    x0, y0 = (left * (width - w + 1)).floor(), (top * (height - h + 1)).floor()
    order = labels.argsort(stable=True)  # the images of a class lie together: pick one after them, going round
    ends, sizes = torch.searchsorted(labels[order], labels, right=True), labels.bincount()[labels]
    partners = order[(ends + (pick * (count - sizes)).floor().long()) % count]
    return torch.stack([x0, y0, x0 + w, y0 + h], dim=1).long(), partners


def mix_pairs(split: Split, num_classes: int, generator: Generator) -> Mixed:
    """Every image of a split with a patch of another class pasted in, as `draw_pairs` says; images stay uint8."""
    return paste(split.images, split.labels, num_classes, *draw_pairs(split.labels, split.images.shape[2:], generator))


@torch.inference_mode()
def measure_pairs(model: SAOLNet, mixed: Mixed, labels: Tensor, pixels: Batches, method: str) -> pd.DataFrame:
    """One row a pair of `mix_pairs`, each value in 0..1, COLUMNS:

    share      of the image that the patch covers: the true share of its class
    predicted  p_pasted / (p_pasted + p_base) of the scores: SAOL's for method "saol", GAP-FC's for "cam", "grad_cam"
    attention  the share of A that lies in the patch; NaN but for method "saol"
    own_pasted the share of the positive part of the pasted class's map (A * Y_k, CAM, Grad-CAM) inside the patch
    own_base   that of the other class's map outside the patch; a map without any positive part scores the area's share
    """
    rows = []
    for part in torch.arange(len(labels)).split(500):
        outputs, feature = model.eval().look(pixels.normalise(mixed.images[part]))
        scores = outputs.saol_log_probs if method == "saol" else outputs.gap_logits
        classes, size = (labels[mixed.partners[part]], labels[part]), mixed.images.shape[2:]
        patch = mixed.boxes[part] - torch.tensor([0, 0, 1, 1])
        both = torch.stack([scores.gather(1, k[:, None])[:, 0] for k in classes], dim=1).softmax(dim=1)
        maps = [raw_maps(model, outputs, feature, k, method)[:, None].clamp(min=0) for k in classes]
        inside = [_inside(values, patch, size, mixed.share[part]) for values in maps]
        held = (
            mass_inside(outputs.attention, patch, size) if method == "saol" else torch.full_like(inside[0], torch.nan)
        )
        rows.append(torch.stack([mixed.share[part], both[:, 0], held, inside[0], 1 - inside[1]], dim=1))
    return pd.DataFrame(torch.cat(rows).double().numpy(), columns=COLUMNS)


def _inside(maps: Tensor, patch: Tensor, size: tuple[int, int], share: Tensor) -> Tensor:
    """The share (B,) of each map's mass in its patch; the area's where a map is all zero."""
    total = maps.sum(dim=(1, 2, 3))
    return torch.where(total > 0, mass_inside(maps, patch, size) / total.clamp(min=1e-30), share)


def summarise_pairs(table: pd.DataFrame) -> dict[str, float]:
    """The table of `measure_pairs` as flat metrics in percent: how well scores and attention follow the area.

    share_error: mean distance of the predicted from the true share, guess_error that of a constant half;
    share_slope, share_correlation (and the same of attention): 100 is a share that follows exactly;
    own_mass: mean of own_pasted and own_base, own_area: of the regions' shares, what a blind map would score.
    """
    share = table.share
    found = {"share_error": (table.predicted - share).abs().mean(), "guess_error": (0.5 - share).abs().mean()}
    for name, values in (("share", table.predicted), ("attention", table.attention)):
        if values.notna().all():
            found |= {f"{name}_slope": values.cov(share) / share.var(), f"{name}_correlation": values.corr(share)}
    found |= {"own_mass": table[["own_pasted", "own_base"]].mean().mean(), "own_area": 0.5}
    return {name: 100 * float(value) for name, value in found.items()}


def curve_points(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `measure_pairs` as points to draw: panel, area and value (0..1), and its other columns."""
    both = [("share", "own_pasted"), ("rest", "own_base")]
    panels = {
        "share of the pasted class\namong both scores": [("share", "predicted")],
        "attention A\ninside the patch": [("share", "attention")],
        "positive map mass in\nthe class's own region": both,
    }
    table, others = table.assign(rest=1 - table.share), table.columns.difference(COLUMNS)
    parts = [
        table[others].assign(panel=panel, area=table[x], value=table[y]) for panel in panels for x, y in panels[panel]
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset="value")
