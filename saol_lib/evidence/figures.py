"""The figures: one style, colour-blind safe, every one a matplotlib `Figure`; and the tables they are drawn from."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from saol_lib.evidence.tables import FAMILIES, LAYERS, REGIMES, paired, readings
from saol_lib.training.runs import Run, resolve, write_whole

SIZES = {"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9}
STYLE = sns.axes_style("whitegrid") | SIZES | {"figure.dpi": 100, "svg.hashsalt": "saol_lib", "grid.color": "0.9"}
WIDTH = 8.0  # inches: 800 pixels, a README's column
COLOURS = dict(zip(FAMILIES.values(), ["black", *sns.color_palette("colorblind", 8)], strict=True))
BLUE, ORANGE = "#0072B2", "#D55E00"
COVER = 0.7  # how dark a picture is where a map is weakest
READINGS = {  # what CutMix-ed pairs are shown to
    "SAOL": BLUE,
    "SAOL, mask by the attention": "#009E73",
    "its GAP-FC": ORANGE,
    "its GAP-FC, mask by the attention": "#CC79A7",
    "GAP-FC": "black",
}


@plt.rc_context(STYLE)
def curves(runs: Sequence[Run]) -> Figure:
    """Accuracy (percent) by epoch: a line a family and output layer, the mean over seeds, its band their range."""
    table = readings(runs).rename(columns={"family": "trained as", "layer": "layer read"})
    there = set(table["trained as"])
    grid = sns.relplot(
        table,
        kind="line",
        x="epoch",
        y="top1",
        col="regime",
        hue="trained as",
        hue_order=[name for name in COLOURS if name in there],
        palette=COLOURS,
        style="layer read",
        style_order=list(LAYERS.values()),
        errorbar=("pi", 100),
        marker="o",
        markersize=4,
        height=3.2,
        aspect=WIDTH / 8,
    )
    grid.set_titles("{col_name}")
    grid.set_axis_labels("epoch", "top-1 accuracy (%)")
    for tile in grid.axes.flat:
        tile.xaxis.get_major_locator().set_params(integer=True)
    plt.close(grid.figure)
    return grid.figure


@plt.rc_context(STYLE)
def deltas(runs: Sequence[Run], baseline: str = "gap_fc") -> Figure:
    """Points above the baseline of the same seed and regime: a dot a seed, a bar at their mean."""
    table = paired(runs, baseline)
    others = ~table.arm.isin([baseline, f"{baseline}_cutmix"])
    table = table[others].dropna(subset="delta")
    names = table.family + ", " + table.layer + " read,\n" + table.regime
    label = f"top-1 minus {FAMILIES[baseline]}'s of the same seed (percentage points)"
    return _strips(table.assign(row=names), "delta", "row", label, 0.5, hue="family", palette=COLOURS, legend=False)


@plt.rc_context(STYLE)
def effects(table: pd.DataFrame) -> Figure:
    """Paired differences in percentage points: a row an effect, a dot a seed (the columns), a bar for the mean."""
    long = table.melt(ignore_index=False, value_name="points").reset_index(names="effect")
    label = "difference in top-1 accuracy, same seed (percentage points)"
    return _strips(long, "points", "effect", label, 0.35, color=BLUE)


@plt.rc_context(STYLE)
def forest(table: pd.DataFrame) -> Figure:
    """Every effect with its 95 % interval, a row each of `tables.effects_table`; a tick is the smallest that counts.

    Effects are drawn in the direction that is claimed: to the right of 0 agrees.
    """
    figure, axes = _figure(WIDTH, 0.9 + 0.28 * len(table))
    tile = axes[0, 0]
    rows = range(len(table))
    reach = [table["mean"] - table.low, table.high - table["mean"]]
    tile.errorbar(table["mean"], rows, xerr=reach, fmt="o", color=BLUE, capsize=3, label="mean and 95 % interval")
    tile.plot(
        table.smallest, rows, "|", color=ORANGE, markersize=12, markeredgewidth=2, label="smallest effect that counts"
    )
    tile.axvline(0, color="0.3", linewidth=1)
    tile.set_yticks(rows, labels=table.claim + ": " + table.test)
    tile.set(xlabel="difference in the direction claimed (percentage points)", ylim=(len(table) - 0.5, -0.5))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def slopes(runs: Sequence[Run], steps: Sequence[tuple[str, str]]) -> Figure:
    """Accuracy (percent) of each seed, a line a seed, from step to step; a step is (arm, "SAOL" or "GAP-FC" read)."""
    table = paired(runs)
    table = table[table.variant == ""].set_index(["arm", "layer", "seed"]).top1
    figure, axes = _figure(WIDTH, 3.6)
    tile = axes[0, 0]
    seeds = sorted(table.index.unique("seed"))
    for seed, colour in zip(seeds, cycle(sns.color_palette("colorblind")), strict=False):
        values = [table.get((arm, layer, seed), math.nan) for arm, layer in steps]
        tile.plot(range(len(steps)), values, "o-", color=colour, label=f"seed {seed}")
    tile.set_xticks(range(len(steps)), labels=[_step_name(*step) for step in steps])
    tile.set(ylabel="top-1 accuracy (%)", xmargin=0.08)
    figure.legend(loc="outside right center")
    return figure


def _step_name(arm: str, layer: str) -> str:
    family = FAMILIES[arm.replace("_cutmix", "")]
    mixed = "\nwith CutMix" if "cutmix" in arm else ""
    return f"{family}\n{layer} read{mixed}"


@plt.rc_context(STYLE)
def cost_against_accuracy(runs: Sequence[Run]) -> Figure:
    """Mean accuracy (percent) against mean training time (minutes), a dot an arm and layer; bars: the seeds' range."""
    table = paired(runs).dropna(subset="seconds")
    figure, axes = _figure(WIDTH, 4.2)
    tile = axes[0, 0]
    for (family, variant, regime, layer), part in table.groupby(["family", "variant", "regime", "layer"], sort=False):
        mean = part.top1.mean()
        reach = [[mean - part.top1.min()], [part.top1.max() - mean]]
        mark = "o" if layer == "SAOL" else "s"
        name = ", ".join([family, *filter(None, [variant]), f"{layer} read", regime])
        style = {"color": COLOURS[family], "capsize": 3, "markerfacecolor": COLOURS[family]}
        if regime == REGIMES[0]:
            style["markerfacecolor"] = "white"
        tile.errorbar(part.seconds.mean() / 60, mean, yerr=reach, fmt=mark, label=name, **style)
    tile.set(xlabel="training time of a run (minutes)", ylabel="top-1 accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def bars(values: pd.Series, label: str, reference: float = 1.0) -> Figure:
    """One horizontal bar an entry with its number, and a line at the reference; label: the quantity and its unit."""
    figure, axes = _figure(WIDTH, 0.8 + 0.35 * len(values))
    tile = axes[0, 0]
    drawn = tile.barh(list(values.index), values.to_numpy(), color=BLUE)
    tile.bar_label(drawn, fmt="%.2f", padding=3)
    tile.axvline(reference, color="0.3", linewidth=1)
    tile.set(xlabel=label, xmargin=0.1)
    tile.invert_yaxis()
    return figure


def _strips(table: pd.DataFrame, x: str, y: str, label: str, height: float, **colours) -> Figure:
    """Differences `x`, a strip `height` inches high for each `y`: a dot a row of the table, and a bar at their mean."""
    figure, axes = _figure(WIDTH, 0.9 + height * table[y].nunique())
    tile = axes[0, 0]
    shared = {"x": x, "y": y, "ax": tile} | colours
    sns.stripplot(table, **shared, jitter=False, size=7, alpha=0.6)
    sns.pointplot(table, **shared, errorbar=None, marker="|", markersize=18, markeredgewidth=3, linestyle="none")
    tile.axvline(0, color="0.3", linewidth=1)
    tile.set(xlabel=label, ylabel="")
    return figure


# --- maps over images -------------------------------------------------------------------------------------------------


@plt.rc_context(STYLE)
def attention_grid(images: Tensor, attention: Tensor, boxes: Tensor | None = None, titles: Sequence = ()) -> Figure:
    """Images uint8 (N, 3, H, W) above the same under their attention (N, 1, Ho, Wo); boxes (N, 4) inclusive pixels."""
    figure, axes = _figure(WIDTH, 0.9 + 15 / len(images), 2, len(images))
    most = float(attention.max())
    for i, (top, bottom) in enumerate(axes.T):
        box = None if boxes is None else boxes[i]
        _draw(top, images[i], box)
        top.set_title(titles[i] if len(titles) else "", size=9)

        _draw(bottom, images[i].float().mean(dim=0), box, cmap="gray")
        cover = 0.3 + 0.7 * attention[i, 0] / most
        style = {"vmin": 0, "vmax": most, "alpha": cover.numpy()}
        shown = _draw(bottom, attention[i, 0], box, images.shape[2:], **style)
    figure.colorbar(shown, ax=axes, label="attention per cell", location="bottom", shrink=0.4, aspect=30)
    return figure


@plt.rc_context(STYLE)
def panels(tiles: Mapping[str, Tensor], boxes: Mapping[str, Tensor] | None = None) -> Figure:
    """Tiles side by side, titled: images uint8 (3, H, W), maps (H, W) with a scale each; boxes: inclusive pixels."""
    boxes = boxes or {}
    figure, axes = _figure(2 * len(tiles), 2.3, 1, len(tiles))
    for tile, (title, values) in zip(axes[0], tiles.items(), strict=True):
        shown = _draw(tile, values, boxes.get(title))
        tile.set_title(title)
        if values.ndim == 2:
            figure.colorbar(shown, ax=tile, location="bottom", shrink=0.9)
    return figure


@plt.rc_context(STYLE)
def gallery(rows: Mapping[str, Sequence[tuple]]) -> Figure:
    """A row a name, its tiles (image (3, H, W) uint8, map (H, W), true box, found box or None, title) side by side.

    Each picture in its colours, dark where its map is weak; white is the true box, orange the one found.
    """
    columns = max(4, *map(len, rows.values()))
    figure, axes = _figure(WIDTH, len(rows) * (0.3 + WIDTH / columns), len(rows), columns)
    for tile in axes.flat:
        tile.set_axis_off()
    for line, (name, tiles) in zip(axes, rows.items(), strict=True):
        for tile, (image, values, truth, found, title) in zip(line, tiles, strict=False):
            _draw_lit(tile, image, values, truth)
            _outline(tile, found, ORANGE)
            tile.set_title(title, size=9)
        line[0].text(-0.1, 0.5, name, transform=line[0].transAxes, rotation=90, ha="center", va="center")
    return figure


@plt.rc_context(STYLE)
def pair_rows(images: Tensor, boxes: Tensor, groups: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Figure:
    """CutMix-ed images uint8 (N, 3, H, W), a row each under its name, and over them their maps (N, h, w) by title.

    boxes (N, 4): the patches, inclusive pixels, outlined everywhere. Each picture in its colours, dark where a map is
    weak. The maps of one group share a scale in each row, from 0 to their largest value.
    """
    titles = [""]  # the row's name stands over the mixed image
    for group in groups:
        titles += group
    figure, axes = _figure(WIDTH, len(images) * (0.45 + WIDTH / len(titles)), len(images), len(titles))
    for i, (first, *tiles) in enumerate(axes):
        _draw(first, images[i], boxes[i])
        for group in groups:
            maps = [values[i] for values in group.values()]
            most = max(float(values.max()) for values in maps)
            for tile, values in zip(tiles, maps, strict=False):
                _draw_lit(tile, images[i], values, boxes[i], most)
            tiles = tiles[len(group) :]

        for tile, title in zip(axes[i], titles, strict=True):
            tile.set_title(title, size=9)
        first.set_title(names[i], size=9, loc="left")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    return figure


def _draw_lit(tile: Axes, image: Tensor, values: Tensor, box: Tensor | None, most: float | None = None) -> None:
    """An image in its colours under a dark cover, which a map (H, W) takes away: all of it where it reaches `most`."""
    most = float(values.max()) if most is None else most
    strength = values.float().clamp(min=0) / max(most, 1e-30)
    _draw(tile, image, box)
    cover = COVER * (1 - strength.clamp(max=1))
    _draw(tile, torch.zeros_like(cover), None, image.shape[1:], cmap="gray", vmin=0, vmax=1, alpha=cover.numpy())


# --- curves over thresholds and areas ---------------------------------------------------------------------------------


@plt.rc_context(STYLE)
def threshold_curves(lines: Mapping[str, tuple[Sequence, Sequence]], references: Mapping[str, float]) -> Figure:
    """Accuracy of boxes (percent) by threshold, a line a name: (thresholds (T,), values (T,)).

    references: level lines, at most two: what looks at nothing.
    """
    figure, axes = _figure(WIDTH, 3.6 + 0.11 * len(lines))
    tile = axes[0, 0]
    kinds = cycle(["-", "--", "-."])
    for (name, (thresholds, values)), colour in zip(
        lines.items(), cycle(sns.color_palette("colorblind")), strict=False
    ):
        tile.plot(thresholds, values, label=name, color=colour, linestyle=next(kinds))
    for (name, value), dots in zip(references.items(), [(0, (1, 1)), (0, (1, 4))], strict=False):
        tile.axhline(value, color="black", linestyle=dots, linewidth=1.5, label=name)

    heights = [max(values) for _, values in lines.values()]
    top = 1.05 * max([*heights, *references.values()])
    tile.set(xlabel="threshold, as a share of the map's maximum", ylabel="images with IoU ≥ 0.5 (%)")
    tile.set(xlim=(0, 1), ylim=(0, top))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def share_curves(table: pd.DataFrame) -> Figure:
    """A panel each of `panel`, a line each of `reading` (of READINGS): `value` by `area`, in 0..1 and shown in percent.

    Dots are means over ninths of the areas 5 to 95 %, their bars 95 % bootstrap intervals, bands the middle half.
    """
    ninth = ((100 * table.area - 5) // 10).clip(0, 8)
    table = table.assign(area=10 * ninth + 10, value=100 * table.value)
    there = set(table.reading)
    shared = {"x": "area", "y": "value", "hue": "reading", "palette": READINGS}
    shared["hue_order"] = [reading for reading in READINGS if reading in there]
    grid = sns.relplot(table, **shared, col="panel", kind="line", errorbar=("pi", 50), height=3.3, aspect=0.82)

    dots = {"marker": "o", "markersize": 4, "linestyle": "", "legend": False}
    dots |= {"errorbar": ("ci", 95), "err_style": "bars", "n_boot": 200, "seed": 0}
    for (panel, part), tile in zip(table.groupby("panel", sort=False), grid.axes.flat, strict=True):
        sns.lineplot(part, **shared, **dots, ax=tile)
        tile.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1)
        tile.set(title=panel, xlim=(0, 100), ylim=(0, 100), aspect="equal")
    grid.set_axis_labels("area (% of the image)", "share (%)")
    sns.move_legend(grid, "lower center", ncol=3, title="", bbox_to_anchor=(0.45, 0.98))
    plt.close(grid.figure)
    return grid.figure


# --- parts ------------------------------------------------------------------------------------------------------------


def save(figure: Figure, results: str | Path, name: str) -> None:
    """Write <results>/figures/<name>.svg and .png, the same bytes for the same figure."""
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        file = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(file, format=kind, metadata=metadata, bbox_inches="tight")
        write_whole(resolve(results) / "figures" / f"{name}.{kind}", file.getvalue())


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure and its axes (rows, columns); closed for pyplot, so that a notebook shows it once, as a cell's value."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    plt.close(figure)
    return figure, axes


def _draw(tile: Axes, values: Tensor, box: Tensor | None, size: Sequence[int] = (), **style) -> AxesImage:
    """An image (3, H, W), or a map (H, W) stretched over `size` pixels, with its box."""
    height, width = size or values.shape[-2:]
    pixels = values.permute(1, 2, 0) if values.ndim == 3 else values
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    style = {"cmap": "viridis"} | style
    tile.set_axis_off()
    _outline(tile, box, "white")
    return tile.imshow(pixels.numpy(), interpolation="none", extent=extent, **style)


def _outline(tile: Axes, box: Tensor | Sequence[int] | None, colour: str) -> None:
    """Draw a box (4,) or several (M, 4), both ends inclusive pixels, if there are any; rows of -1 count for nothing."""
    if box is None:
        return
    effects = [withStroke(linewidth=2.5, foreground="black")]
    for x0, y0, x1, y1 in torch.as_tensor(box).reshape(-1, 4).tolist():
        if x0 < 0:
            continue
        corner, extents = (x0 - 0.5, y0 - 0.5), (x1 - x0 + 1, y1 - y0 + 1)
        tile.add_patch(Rectangle(corner, *extents, fill=False, edgecolor=colour, linewidth=1, path_effects=effects))
