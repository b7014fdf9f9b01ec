"""What notebook 03 measures and shows: boxes from the maps of trained networks, and how far attention is spread."""

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
from saol_lib.localization import Localization, Localizer, largest_box, raw_maps, score_maps, trivial_rows
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run, load_runs, resolve, run_id, save_run

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
    "abn": "M",
}
OWN = ("saol", "cam", "abn")  # the one map of each network that the figure of thresholds shows
COLUMNS = {"max_box_acc": "MaxBoxAcc", "gt_known": "GT-known", "box_size": "box size"}
STAGES = ("fine-tuned", "continued", "enlarged")
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
        for images, labels in islice(self.pixels.all(_BATCH), -(-self.count // _BATCH)):
            index = self.kept[done : done + len(labels)]
            yield images[: len(index)], labels[: len(index)], index
            done += len(index)

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
    folder = resolve(results) / "checkpoints"
    return [run for run in runs if any((folder / run.id).glob("*.safetensors"))]


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

    Each is written to `measures/` too, with the run's configuration, so that later comparisons can pair them by seed;
    the boxes that look at nothing are written for the networks with a GAP-FC layer alone, whose classes they are given.
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
        metrics = {}
        for method in methods_of(run):
            one = seen.localize(model, method, thresholds=levels)
            found[run.id, method] = one
            metrics[method] = one.metrics
        if ARMS[run.config["arm"]].heads == ("gap",):
            boxes = seen.split.boxes[seen.kept]
            metrics |= trivial_rows(boxes, seen.split.source_size, found[run.id, "cam"].ranks)
        _save_measures(run, metrics, results)
    return found


def _networks(finished: Mapping[str, Sequence[Run]], results: str | Path) -> list[Run]:
    runs = [run for stage in STAGES for run in finished.get(stage, ())]
    return with_weights(runs, results)


def _config(run: Run, data_dir: str | None) -> RunConfig:
    return RunConfig.of(**run.config, data_dir=data_dir)


def _save_measures(run: Run, metrics: Mapping[str, dict], results: str | Path) -> None:
    for method, numbers in metrics.items():
        config = run.config | {"measure": "localization", "method": method}
        save_run(resolve(results), run._replace(config=config, metrics=numbers, epochs=[]), folder="measures")


# --- tables -----------------------------------------------------------------------------------------------------------


def boxes_table(finished: Mapping[str, Sequence[Run]], results: str | Path) -> pd.DataFrame:
    """Everything in `measures/` that belongs to these runs: stage, network, method, seed, and the metrics.

    A row a network and map; stages in their order, in each the boxes that look at nothing first. Raises
    FileNotFoundError where nothing was measured.
    """
    stage_of = {run.id: stage for stage, runs in finished.items() for run in runs}
    rows = []
    for measure in load_runs(results, folder="measures"):
        config = {name: value for name, value in measure.config.items() if name not in ("measure", "method")}
        stage = stage_of.get(run_id(config))
        if stage and measure.config.get("measure") == "localization":
            method = measure.config["method"]
            network = "none" if method in BLIND else network_name(config)
            place = {"stage": stage, "network": network, "method": method, "seed": config["seed"]}
            rows.append(place | measure.metrics)
    if not rows:
        raise FileNotFoundError(f"{results} has neither weights nor measures of these networks; run notebook 02 first")

    table = pd.DataFrame(rows)
    ranks = {name: rank for rank, name in enumerate((*MAPS, *STAGES))}
    key = {"stage": table.stage.map(ranks), "blind": ~table.method.isin(BLIND), "network": table.network}
    order = pd.DataFrame(key | {"method": table.method.map(ranks), "seed": table.seed})
    return table.loc[order.sort_values(list(order)).index].reset_index(drop=True)


def box_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`boxes_table` as shown, percent: a row a network and map; MaxBoxAccV2 of each stage, then more of the fine-tuned.

    Means over the seeds, with their standard deviation where there are several.
    """
    stages = list(dict.fromkeys(table.stage))
    rows = []
    for (network, method), part in table.groupby(["network", "method"], sort=False):
        row = {"network": network, "map": MAPS[method]}
        for stage in stages:
            row[f"V2, {stage}"] = _mean_of(part[part.stage == stage], "max_box_acc_v2")
        for name, title in COLUMNS.items():
            row[title] = _mean_of(part[part.stage == stages[0]], name)
        rows.append(row)
    return pd.DataFrame(rows).set_index(["network", "map"])


def _mean_of(part: pd.DataFrame, name: str) -> str:
    values = part[name].dropna() if name in part else part.seed[:0]
    if values.empty:
        return "–"
    several = len(values) > 1 and values.nunique() > 1
    return f"{values.mean():.1f} ± {values.std():.1f}" if several else f"{values.mean():.1f}"


def spread_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """How attention lies and spreads, means over the seeds: a row a network and stage.

    `in the box` and `the box covers` in percent, `denser` their ratio; entropy in nats; `largest cell` in percent.
    """
    there = table[table.method.isin(["attention", "abn"])]
    names = {"mass_inside": "in the box", "area_share": "the box covers", "largest_cell": "largest cell"}
    means = there.groupby(["stage", "network"], sort=False)[[*names, "entropy"]].mean()
    means = means.assign(denser=means.mass_inside / means.area_share)
    return means.rename(columns=names)[["in the box", "the box covers", "denser", "entropy", "largest cell"]].round(2)


def box_faults(table: pd.DataFrame, seeds: int) -> list[str]:
    """What cannot be: measures that are missing, numbers out of their order; a sentence each."""
    faults = []
    counts = table.groupby(["stage", "network", "method"]).seed.nunique()
    for place, count in counts[counts != seeds].items():
        faults.append(f"{', '.join(place)}: measured for {count} of {seeds} seeds")

    loose, middle, strict = (table[f"box_acc_{iou}"] for iou in (30, 50, 70))
    ordered = (loose >= middle) & (middle >= strict)
    ordered &= table.top1_loc_error >= table.top5_loc_error
    ordered &= table.top5_loc_error >= 100 - table.gt_known - 1e-9  # a known class never hurts
    for row in table[~ordered].itertuples():
        faults.append(f"{row.stage}, {row.network}, {row.method}: a stricter measure is the more accurate one")
    return faults


def cam_is_grad_cam(finished: Mapping[str, Sequence[Run]], results: str | Path, data_dir: str | None = None) -> bool:
    """Whether Grad-CAM is CAM up to ReLU and scale on the first images, for every GAP-FC layer that is here."""
    agree = True
    for run in _networks(finished, results):
        if "cam" in methods_of(run):
            images, labels, _ = next(scene(_config(run, data_dir), 20).batches())
            model = load_model(run, results)
            with torch.inference_mode():
                outputs, feature = model.look(images.to(next(model.parameters()).device))
                cam = raw_maps(model, outputs, feature, labels, "cam")
                grad_cam = raw_maps(model, outputs, feature, labels, "grad_cam")
            agree &= torch.allclose(grad_cam, cam.relu() / cam[0].numel(), rtol=1e-3, atol=1e-4)
    return agree


def box_result(table: pd.DataFrame) -> tuple[str, str]:
    """Two sentences: which maps beat the boxes that look at nothing, and what doubling and the mask's reading change.

    Of every network its own map counts: A * Y, CAM of a GAP-FC network, M of an ABN.
    """
    means = table.groupby(["stage", "network", "method"], sort=False).max_box_acc_v2.mean()
    tuned = means["fine-tuned"]
    bar = max(tuned.get(("none", name), 0.0) for name in BLIND)
    has_saol = {network for network, method in tuned.index if method == "saol"}
    told = []
    for (network, method), value in tuned.items():
        is_own = method in OWN and (method == "saol") == (network in has_saol)
        if is_own:
            told.append(f"{MAPS[method]} of {network} {value:.1f} ({'above' if value > bar else 'not above'})")
    first = f"MaxBoxAccV2 against {bar:.1f} of the best box that looks at nothing: {'; '.join(told)}."

    changes = []
    for network in sorted(has_saol):
        before, after = (means.get((stage, network, "saol")) for stage in ("continued", "enlarged"))
        if before is not None and after is not None:
            changes.append(f"{network} {after - before:+.1f}")
    second = "Doubling was not measured."
    if changes:
        second = f"Points of MaxBoxAccV2 of A · Y by doubling the output: {'; '.join(changes)}."

    spread = spread_numbers(table[table.stage == "fine-tuned"])
    lies = [f"{network} {row.denser:.1f}" for (_, network), row in spread.iterrows()]
    return (
        first,
        f"{second} Share of the attention in the true box, over the box's share of the image: {'; '.join(lies)}.",
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def curves_figure(
    finished: Mapping[str, Sequence[Run]], found: Mapping[tuple[str, str], Localization], table: pd.DataFrame
) -> Figure | None:
    """Boxes by threshold, a line a fine-tuned network by its own map, means over seeds; None without weights."""
    curves = {}
    for run in finished["fine-tuned"]:
        for method in OWN:
            if (run.id, method) in found and not (method == "cam" and "saol" in methods_of(run)):
                accuracy = found[run.id, method].accuracy
                name = f"{network_name(run.config)}: {MAPS[method]}"
                curves.setdefault(name, []).append((accuracy.thresholds, accuracy.curve))
    if not curves:
        return None
    lines = {}
    for name, some in curves.items():
        lines[name] = some[0][0], np.mean([curve for _, curve in some], axis=0)
    levels = {name: table[table.method == name].max_box_acc.mean() for name in BLIND}
    return figures.threshold_curves(lines, levels)


def gallery_run(finished: Mapping[str, Sequence[Run]], results: str | Path) -> Run | None:
    """The network of the gallery: the last SAOL of the last stage of which weights are here."""
    runs = [run for run in _networks(finished, results) if "saol" in methods_of(run)]
    return runs[-1] if runs else None


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
    rows = {}
    for name, places in picks(best.ious, best.ranks, labels, classes).items():
        rows[name] = [_tile(model, seen, int(index[i]), threshold, float(best.ious[i])) for i in places]
    return figures.gallery(rows)


def picks(ious: Tensor, ranks: Tensor, labels: Tensor, classes: int) -> dict[str, list[int]]:
    """Of each of the first classes the images with the lowest, the median and the highest IoU, of those got right."""
    rows = {"lowest IoU": [], "median": [], "highest": []}
    for label in labels.unique()[:classes].tolist():
        right = ((labels == label) & (ranks == 0)).nonzero()[:, 0]
        if len(right):
            order = right[ious[right].argsort(stable=True)].tolist()
            rows["lowest IoU"].append(order[0])
            rows["median"].append(order[len(order) // 2])
            rows["highest"].append(order[-1])
    return rows


def _tile(model: torch.nn.Module, seen: Scene, index: int, threshold: float, iou: float) -> tuple:
    """A picture, its map, its first true box, the box found and a title."""
    which = torch.tensor([index])
    picture = seen.split.pictures(which)
    label = seen.split.labels[which]
    values = score_maps(model, seen.pixels.normalise(picture), label, size=seen.split.source_size)[0].cpu()
    truth = seen.split.boxes[index].reshape(-1, 4)[0]
    title = f"{seen.classes[int(label)][:16]}, {iou:.2f}"
    return picture[0], values, truth, largest_box(values, threshold), title
