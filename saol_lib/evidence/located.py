"""What notebook 03 measures and shows: boxes from the maps of trained networks, and how far attention is spread."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from saol_lib.data import Batches, Files, Split, Stream, load, select
from saol_lib.evidence import figures
from saol_lib.evidence.finetuned import network_name
from saol_lib.evidence.measures import load_measures, save_measure
from saol_lib.localization import Localization, Localizer, largest_box, score_maps, trivial_rows
from saol_lib.localization.accuracy import BoxAccuracy
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run, resolve

READS = {  # an output layer, and the maps that are made of it
    "saol": ("saol", "saol_log", "attention", "spatial"),
    "gap": ("cam", "grad_cam"),
    "abn": ("abn",),
}
BLIND = ("whole image", "best centred box")
MAPS = {
    "whole image": "whole image",
    "best centred box": "best centred box",
    "saol": "A · Y",
    "saol_log": "log A + log Y (ours)",
    "attention": "A alone (ours)",
    "spatial": "Y alone (ours)",
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "abn": "attention map",
}
OWN = ("saol", "cam", "abn")  # the one map of each network that the figure of thresholds shows
COLUMNS = {"max_box_acc": "MaxBoxAcc", "gt_known": "GT-known", "box_size": "box size"}
STAGES = ("fine-tuned", "continued", "enlarged")
MEASURE = "localization"
POINTS = 100  # of a curve that is kept
_BATCH = 50


class Scene(NamedTuple):
    """The images that boxes are measured on: those of the first `count` that can be read."""

    split: Split | Files
    pixels: Batches | Stream
    classes: tuple[str, ...]
    count: int

    @property
    def kept(self) -> Tensor:
        """Which images of the split (N,) `batches` has given; all of them once it has come to its end."""
        kept = self.pixels.kept
        return kept[kept < self.count]

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images as the network takes them, their labels, and which images of the split they are."""
        done = 0
        most = math.ceil(self.count / _BATCH)
        for images, labels in islice(self.pixels.all(_BATCH), most):
            index = self.kept[done : done + len(labels)]
            count = len(index)
            yield images[:count], labels[:count], index
            done += count

    def localize(self, model: torch.nn.Module, method: str, **settings) -> Localization:
        """Boxes of a method on these images, each beside its own true ones. settings: those of `Localizer`."""
        localizer = Localizer(model, method, size=self.split.source_size, **settings)
        for images, labels, index in self.batches():
            localizer.update(images, labels, self.split.boxes[index])
        return localizer.result()


def scene(config: RunConfig, images: int | None = None) -> Scene:
    """The first `images` evaluation images of a configuration (None: all); ValueError where they have no boxes."""
    dataset = load(config.dataset, config.data_dir, **config.data_options)
    _, split = select(dataset, config.eval_split, config.train_images, config.held_out)
    if split.boxes is None:
        raise ValueError(f"dataset={config.dataset!r} has no boxes to localise against here; choose another one")
    _, pixels = batches(config, dataset, torch.device("cpu"))
    count = len(split.labels)
    if images is not None:
        count = min(count, images)
    return Scene(split, pixels, dataset.classes, count)


def with_weights(runs: Sequence[Run], results: str | Path) -> list[Run]:
    """The runs whose weights lie beside them, in `checkpoints`; weights are not in git."""
    checkpoints = resolve(results) / "checkpoints"
    here = []
    for run in runs:
        weights = checkpoints / run.id
        if any(weights.glob("*.safetensors")):
            here.append(run)
    return here


def methods_of(run: Run) -> list[str]:
    """The maps that a run's network can give."""
    heads = ARMS[run.config["arm"]].heads
    methods = []
    for head, own in READS.items():
        if head in heads:
            methods += own
    return methods


def measure_boxes(
    finished: Mapping[str, Sequence[Run]],
    results: str | Path,
    data_dir: str | None = None,
    images: int | None = None,
    thresholds: int = 1000,
    workers: int = 0,
) -> dict[tuple[str, str], Localization]:
    """Boxes by every map of every network whose weights are here, {(run's id, map): what was measured}.

    Each is written to `measures/` too, with the run's configuration, so that later comparisons can pair them by seed,
    with its curve where `curves_figure` draws that; the boxes that look at nothing are written for the networks with a
    GAP-FC layer alone, whose classes they are given.
    images, thresholds: None and 1000 are the literature's. workers: processes that decode images. Raises ValueError
    where there are no boxes.
    """
    if thresholds < 1 or (images is not None and images < 1):
        raise ValueError(f"images={images} must be None or at least 1, and thresholds={thresholds} at least 1")
    levels = np.arange(0, 1, 1 / thresholds)
    found = {}
    for run in _networks(finished, results):
        seen = scene(replace(_config(run, data_dir), workers=workers), images)
        model = load_model(run, results)
        metrics, curves = {}, {}
        for method in methods_of(run):
            one = seen.localize(model, method, thresholds=levels)
            found[run.id, method] = one
            metrics[method] = one.metrics
            if method in _own_maps(run):
                curves[method] = _curve(one.accuracy)

        boxes = seen.split.boxes[seen.kept]
        if _has_gap_alone(run):
            ranks = found[run.id, "cam"].ranks
            metrics |= trivial_rows(boxes, seen.split.source_size, ranks)
        how = {"images": len(boxes), "thresholds": thresholds}
        for method, numbers in metrics.items():
            save_measure(run, results, MEASURE, method, numbers, how, curves.get(method, ()))
    return found


def _has_gap_alone(run: Run) -> bool:
    return ARMS[run.config["arm"]].heads == ("gap",)


def _curve(accuracy: BoxAccuracy) -> list[dict]:
    """Points of the curve whose maximum is MaxBoxAcc."""
    step = math.ceil(len(accuracy.thresholds) / POINTS)
    pairs = zip(accuracy.thresholds[::step], accuracy.curve[::step], strict=True)
    return [{"threshold": round(float(level), 4), "box_acc": round(float(value), 2)} for level, value in pairs]


def _networks(finished: Mapping[str, Sequence[Run]], results: str | Path) -> list[Run]:
    """The runs of all stages, in their order, whose weights are here."""
    runs = []
    for stage in STAGES:
        runs += finished.get(stage, ())
    return with_weights(runs, results)


def _config(run: Run, data_dir: str | None) -> RunConfig:
    return RunConfig.of(**run.config, data_dir=data_dir)


# --- tables -----------------------------------------------------------------------------------------------------------


def boxes_table(finished: Mapping[str, Sequence[Run]], results: str | Path) -> pd.DataFrame:
    """Everything in `measures/` that belongs to these runs: stage, network, method, seed, the curve, and the metrics.

    A row a network and map; stages in their order, in each the boxes that look at nothing first. Raises
    FileNotFoundError where nothing was measured.
    """
    stage_of = {}
    for stage, runs in finished.items():
        for run in runs:
            stage_of[run.id] = stage

    rows = []
    for name, method, measure in load_measures(results, MEASURE):
        stage = stage_of.get(name)
        if stage:
            place = {
                "stage": stage,
                "network": _network(measure, method),
                "method": method,
                "seed": measure.config["seed"],
                "curve": measure.epochs,
            }
            rows.append(place | measure.metrics)
    if not rows:
        raise FileNotFoundError(f"{results} has neither weights nor measures of these networks; run notebook 02 first")
    return _in_order(pd.DataFrame(rows))


def _network(run: Run, method: str) -> str:
    """What a map is of: a network in words, or none."""
    return "none" if method in BLIND else network_name(run.config)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """By stage, then the boxes that look at nothing first, then by network, map and seed."""
    stages = {name: rank for rank, name in enumerate(STAGES)}
    maps = {name: rank for rank, name in enumerate(MAPS)}
    ranks = {
        "stage": table.stage.map(stages),
        "looks": ~table.method.isin(BLIND),
        "network": table.network,
        "method": table.method.map(maps),
        "seed": table.seed,
    }
    order = pd.DataFrame(ranks).sort_values(list(ranks))
    return table.loc[order.index].reset_index(drop=True)


def box_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`boxes_table` as shown, percent: a row a network and map; MaxBoxAccV2 of each stage, then more of the fine-tuned.

    Means over the seeds, with their standard deviation where there are several.
    """
    stages = list(dict.fromkeys(table.stage))
    rows = []
    for (network, method), part in table.groupby(["network", "method"], sort=False):
        row = {"network": network, "map": MAPS[method]}
        of_stage = {stage: part[part.stage == stage] for stage in stages}
        for stage, own in of_stage.items():
            row[f"V2, {stage}"] = _mean_of(own, "max_box_acc_v2")
        first = of_stage[stages[0]]
        for name, title in COLUMNS.items():
            row[title] = _mean_of(first, name)
        rows.append(row)
    return pd.DataFrame(rows).set_index(["network", "map"])


def _mean_of(part: pd.DataFrame, name: str) -> str:
    """The mean of a column, with the standard deviation where its values differ."""
    if name not in part:
        return "–"
    values = part[name].dropna()
    if values.empty:
        return "–"
    mean = f"{values.mean():.1f}"
    if values.nunique() == 1:
        return mean
    return f"{mean} ± {values.std():.1f}"


def spread_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """How attention lies and spreads, means over the seeds: a row a network and stage.

    `in the box`, `of the mean map` (the mean of all images' attention in the box) and `the box covers` in percent;
    `denser` the first over the last; entropy in nats; `largest cell` in percent.
    """
    there = table[table.method.isin(["attention", "abn"])]
    columns = ["mass_inside", "mean_map_inside", "area_share", "entropy", "largest_cell"]
    means = there.groupby(["stage", "network"], sort=False)[columns].mean()
    shown = {
        "in the box": means.mass_inside,
        "of the mean map": means.mean_map_inside,
        "the box covers": means.area_share,
        "denser": means.mass_inside / means.area_share,
        "entropy": means.entropy,
        "largest cell": means.largest_cell,
    }
    return pd.DataFrame(shown).round(2)


def box_faults(table: pd.DataFrame, finished: Mapping[str, Sequence[Run]]) -> list[str]:
    """What cannot be: finished networks that were not measured, numbers out of their order; a sentence each."""
    faults = []
    there = set(table[["stage", "network", "method", "seed"]].itertuples(index=False, name=None))
    for place, seeds in _wanted(finished).items():
        missing = [seed for seed in seeds if (*place, seed) not in there]
        if missing:
            faults.append(f"{', '.join(place)}: not measured for {len(missing)} of {len(seeds)} seeds")

    known_error = 100 - table.gt_known
    ordered = table.box_acc_30 >= table.box_acc_50
    ordered &= table.box_acc_50 >= table.box_acc_70
    ordered &= table.top1_loc_error >= table.top5_loc_error
    ordered &= table.top5_loc_error >= known_error - 1e-9  # a known class never hurts
    for row in table[~ordered].itertuples():
        faults.append(f"{row.stage}, {row.network}, {row.method}: a stricter measure is the more accurate one")
    return faults


def _wanted(finished: Mapping[str, Sequence[Run]]) -> dict[tuple[str, str, str], set[int]]:
    """The seeds by stage, network and method that `measure_boxes` gives with all weights.

    The boxes that look at nothing are no network's: those of one are enough.
    """
    wanted: dict[tuple[str, str, str], set[int]] = {}
    for stage in STAGES:
        for run in finished.get(stage, ()):
            methods = methods_of(run)
            if _has_gap_alone(run):
                methods += BLIND
            for method in methods:
                place = stage, _network(run, method), method
                wanted.setdefault(place, set()).add(run.config["seed"])
    return wanted


def box_result(table: pd.DataFrame) -> tuple[str, str]:
    """Two sentences: which maps beat the boxes that look at nothing, and what doubling and the mask's reading change.

    Of every network its own map counts: A * Y, CAM of a GAP-FC network, the attention map of an ABN.
    """
    means = table.groupby(["stage", "network", "method"], sort=False).max_box_acc_v2.mean()
    tuned = means["fine-tuned"]
    has_saol = {network for network, method in tuned.index if method == "saol"}
    first = _against_blind(tuned, has_saol)
    second = _by_doubling(table)

    spread = spread_numbers(table[table.stage == "fine-tuned"])
    lies = [f"{network} {row.denser:.1f}" for (_, network), row in spread.iterrows()]
    third = f"Share of the attention in the true box, over the box's share of the image: {'; '.join(lies)}."
    return first, f"{second} {third}"


def _against_blind(tuned: pd.Series, has_saol: set[str]) -> str:
    """MaxBoxAccV2 (network, method) of each network's own map, against the boxes that look at nothing."""
    blind = [tuned["none", name] for name in BLIND if ("none", name) in tuned]
    bar = max(blind, default=None)
    told = []
    for (network, method), value in tuned.items():
        reads_saol = method == "saol"
        if method not in OWN or reads_saol != (network in has_saol):
            continue
        verdict = ""
        if bar is not None:
            verdict = " (above)" if value > bar else " (not above)"
        told.append(f"{MAPS[method]} of {network} {value:.1f}{verdict}")
    if bar is None:
        return f"MaxBoxAccV2, without the boxes that look at nothing, which need a GAP-FC network: {'; '.join(told)}."
    return f"MaxBoxAccV2 against {bar:.1f} of the best box that looks at nothing: {'; '.join(told)}."


def _by_doubling(table: pd.DataFrame) -> str:
    """What the doubled output changes in MaxBoxAccV2 of A * Y, over the seeds that have both."""
    own = table[table.method == "saol"].set_index(["network", "seed", "stage"]).max_box_acc_v2.unstack()
    changes = []
    if {"continued", "enlarged"} <= set(own):
        difference = (own["enlarged"] - own["continued"]).dropna()
        for network, values in difference.groupby("network"):
            changes.append(f"{network} {values.mean():+.1f}")
    if not changes:
        return "Doubling was not measured."
    return f"Points of MaxBoxAccV2 of A · Y by doubling the output: {'; '.join(changes)}."


# --- figures ----------------------------------------------------------------------------------------------------------


def curves_figure(table: pd.DataFrame) -> Figure | None:
    """Boxes by threshold, a line a fine-tuned network by its own map, means over the seeds that `table` has.

    Level lines: the boxes that look at nothing, where they were measured. None where no curve was kept.
    """
    tuned = table[(table.stage == "fine-tuned") & table.curve.map(bool)]
    lines = {}
    for (network, method), part in tuned.groupby(["network", "method"], sort=False):
        points = pd.concat([pd.DataFrame(curve) for curve in part.curve])
        mean = points.groupby("threshold").box_acc.mean()
        name = f"{network}: {MAPS[method]}"
        if tuned.seed.nunique() > part.seed.nunique():
            name += f" ({part.seed.nunique()} seeds)"
        lines[name] = mean.index.to_numpy(), mean.to_numpy()
    if not lines:
        return None
    levels = {}
    for name in BLIND:
        rows = table[table.method == name]
        if len(rows):  # they are measured with a network that has a GAP-FC layer alone, which not every study has
            levels[name] = rows.max_box_acc.mean()
    return figures.threshold_curves(lines, levels)


def _own_maps(run: Run) -> list[str]:
    """Those of OWN that a run's network gives: of one with a SAOL its A * Y, not the CAM of its GAP-FC."""
    methods = methods_of(run)
    if "saol" in methods:
        return ["saol"]
    return [method for method in methods if method in OWN]


def gallery_run(finished: Mapping[str, Sequence[Run]], results: str | Path) -> Run | None:
    """The network of the gallery: the last SAOL of the last stage of which weights are here."""
    runs = [run for run in _networks(finished, results) if "saol" in methods_of(run)]
    if not runs:
        return None
    return runs[-1]


def gallery_figure(
    run: Run,
    results: str | Path,
    found: Localization,
    data_dir: str | None = None,
    images: int | None = None,
    classes: int = 4,
) -> Figure:
    """Maps A * Y of a network with their boxes at its best threshold, chosen by rule.

    Of each of the first classes the correctly classified images with the lowest, the median and the highest IoU.
    """
    seen = scene(_config(run, data_dir), images)
    model = load_model(run, results)
    threshold = found.accuracy.best_threshold
    best = seen.localize(model, "saol", threshold=threshold, thresholds=[threshold])
    index = seen.kept
    labels = seen.split.labels[index]
    chosen = picks(best.ious, best.ranks, labels, classes)
    rows = {}
    for name, places in chosen.items():
        rows[name] = []
        for place in places:
            image = int(index[place])
            iou = float(best.ious[place])
            tile = _tile(model, seen, image, threshold, iou)
            rows[name].append(tile)
    return figures.gallery(rows)


def picks(ious: Tensor, ranks: Tensor, labels: Tensor, classes: int) -> dict[str, list[int]]:
    """Of each of the first classes the images with the lowest, the median and the highest IoU, of those got right."""
    rows = {"lowest IoU": [], "median": [], "highest": []}
    for label in labels.unique()[:classes].tolist():
        is_right = (labels == label) & (ranks == 0)
        right = is_right.nonzero()[:, 0]
        if len(right):
            by_iou = ious[right].argsort(stable=True)
            order = right[by_iou].tolist()
            rows["lowest IoU"].append(order[0])
            rows["median"].append(order[len(order) // 2])
            rows["highest"].append(order[-1])
    return rows


def _tile(model: torch.nn.Module, seen: Scene, index: int, threshold: float, iou: float) -> tuple:
    """A picture, its map, its first true box, the box found and a title."""
    which = torch.tensor([index])
    picture = seen.split.pictures(which)
    pixels = seen.pixels.normalise(picture)
    label = seen.split.labels[which]
    maps = score_maps(model, pixels, label, size=seen.split.source_size)
    values = maps[0].cpu()
    truth = seen.split.boxes[index].reshape(-1, 4)[0]
    found = largest_box(values, threshold)
    name = seen.classes[int(label)]
    title = f"{name[:16]}, IoU {iou:.2f}"
    return picture[0], values, truth, found, title
