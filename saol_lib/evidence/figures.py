"""The figures: one style, colour-blind safe, every one a matplotlib `Figure`; and the tables they are drawn from."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from saol_lib.evidence.tables import FAMILIES, LAYERS, paired, readings
from saol_lib.training.runs import Run, resolve, write_whole

SIZES = {"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9}
STYLE = sns.axes_style("whitegrid") | SIZES | {"figure.dpi": 100, "svg.hashsalt": "saol_lib", "grid.color": "0.9"}
WIDTH = 8.0  # inches: 800 pixels, a README's column
COLOURS = dict(zip(FAMILIES.values(), ["black", *sns.color_palette("colorblind", 8)], strict=True))
READINGS = {"SAOL": "#0072B2", "its GAP-FC": "#D55E00", "GAP-FC": "black"}  # what CutMix-ed pairs are shown to


@plt.rc_context(STYLE)
def curves(runs: Sequence[Run]) -> Figure:
    """Accuracy (percent) by epoch: a line a family and output layer, the mean over seeds, its band their range."""
    table = readings(runs).rename(columns={"family": "trained as", "layer": "layer read"})
    grid = sns.relplot(
        table, x="epoch", y="top1", hue="trained as", style="layer read", col="regime", kind="line", palette=COLOURS,
        hue_order=[name for name in COLOURS if name in set(table["trained as"])], style_order=list(LAYERS.values()),
        errorbar=("pi", 100), marker="o", markersize=4, height=3.2, aspect=WIDTH / 8,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("epoch", "top-1 accuracy (%)")
    for tile in grid.axes.flat:
        tile.xaxis.get_major_locator().set_params(integer=True)
    plt.close(grid.figure)
    return grid.figure


@plt.rc_context(STYLE)
def deltas(runs: Sequence[Run], baseline: str = "gap_fc") -> Figure:
    """Points above the baseline of the same seed and regime: a dot a seed, a bar at their mean."""
    table = paired(runs, baseline)
    table = table[~table.arm.isin([baseline, f"{baseline}_cutmix"])].dropna(subset="delta")
    table = table.assign(row=table.family + ", " + table.layer + " read,\n" + table.regime)
    label = f"top-1 minus {FAMILIES[baseline]}'s of the same seed (percentage points)"
    return _strips(table, "delta", "row", label, 0.5, hue="family", palette=COLOURS, legend=False)


@plt.rc_context(STYLE)
def attention_grid(images: Tensor, attention: Tensor, boxes: Tensor | None = None, titles: Sequence = ()) -> Figure:
    """Images uint8 (N, 3, H, W) above the same under their attention (N, 1, Ho, Wo); boxes (N, 4) inclusive pixels."""
    figure, axes = _figure(WIDTH, 0.9 + 15 / len(images), 2, len(images))
    most = float(attention.max())
    for i, (top, bottom) in enumerate(axes.T):
        box = None if boxes is None else boxes[i]
        _draw(top, images[i], box).axes.set_title(titles[i] if len(titles) else "", size=9)
        _draw(bottom, images[i].float().mean(dim=0), box, cmap="gray")
        cover = (0.3 + 0.7 * attention[i, 0] / most).numpy()
        shown = _draw(bottom, attention[i, 0], box, images.shape[2:], vmin=0, vmax=most, alpha=cover)
    figure.colorbar(shown, ax=axes, label="attention per cell", location="bottom", shrink=0.4, aspect=30)
    return figure


@plt.rc_context(STYLE)
def panels(tiles: Mapping[str, Tensor], boxes: Mapping[str, Tensor] | None = None) -> Figure:
    """Tiles side by side, titled: images uint8 (3, H, W), maps (H, W) with a scale each; boxes: inclusive pixels."""
    figure, axes = _figure(2 * len(tiles), 2.3, 1, len(tiles))
    for tile, (title, values) in zip(axes[0], tiles.items(), strict=True):
        shown = _draw(tile, values, (boxes or {}).get(title))
        tile.set_title(title)
        if values.ndim == 2:
            figure.colorbar(shown, ax=tile, location="bottom", shrink=0.9)
    return figure


@plt.rc_context(STYLE)
def effects(table: pd.DataFrame) -> Figure:
    """Paired differences in percentage points: a row an effect, a dot a seed (the columns), a bar for the mean."""
    long = table.melt(ignore_index=False, value_name="points").reset_index(names="effect")
    label = "difference in top-1 accuracy, same seed (percentage points)"
    return _strips(long, "points", "effect", label, 0.35, color="#0072B2")


@plt.rc_context(STYLE)
def threshold_curves(panels: Mapping[str, Mapping[tuple, Sequence]], references: Mapping[str, float]) -> Figure:
    """Accuracy of boxes (percent) by threshold, a panel a title: a line kind a network, a colour a method.

    panels: {title: {(network, method): (thresholds (T,), values (T,))}}; references: level lines, at most two.
    """
    figure, axes = _figure(WIDTH, 4.4, 1, len(panels))
    networks, methods = (list(dict.fromkeys(key[i] for lines in panels.values() for key in lines)) for i in (0, 1))
    most = max([max(values) for lines in panels.values() for _, values in lines.values()] + [*references.values()])
    lines, colours = dict(zip(networks, cycle(["-", "--", "-."]), strict=False)), sns.color_palette("colorblind")
    for panel, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for (network, method), (thresholds, values) in curves.items():
            style = {"color": colours[methods.index(method)], "linestyle": lines[network]}
            panel.plot(thresholds, values, label=f"{network}: {method}", **style)
        for (name, value), dots in zip(references.items(), [(0, (1, 1)), (0, (1, 4))], strict=False):
            panel.axhline(value, color="black", linestyle=dots, linewidth=1.5, label=name)
        panel.set(title=title, xlabel="threshold, as a share of the map's maximum", xlim=(0, 1), ylim=(0, 1.05 * most))
    axes[0, 0].set_ylabel("images with IoU ≥ 0.5 (%)")
    shown = {label: line for panel in axes[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def gallery(rows: Mapping[str, Sequence[tuple]]) -> Figure:
    """A row a name, its tiles (image (3, H, W) uint8, map (H, W), true box, found box or None, title) side by side."""
    columns = max(6, *map(len, rows.values()))
    figure, axes = _figure(WIDTH, 0.5 + len(rows) * (0.35 + WIDTH / columns), len(rows), columns)
    for tile in axes.flat:
        tile.set_axis_off()
    for line, (name, tiles) in zip(axes, rows.items(), strict=True):
        for tile, (image, values, truth, found, title) in zip(line, tiles, strict=False):
            _draw(tile, image.float().mean(dim=0), None, cmap="gray")
            _draw(tile, values, truth, vmin=0, vmax=1, alpha=0.55).axes.set_title(title, size=8)
            _outline(tile, found, "#D55E00")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, rotation=90, ha="center", va="center")
    return figure


def _strips(table: pd.DataFrame, x: str, y: str, label: str, height: float, **colours) -> Figure:
    """Differences `x`, a strip `height` inches high for each `y`: a dot a row of the table, and a bar at their mean."""
    figure, axes = _figure(WIDTH, 0.9 + height * table[y].nunique())
    shared = {"x": x, "y": y, "ax": axes[0, 0]} | colours
    sns.stripplot(table, **shared, jitter=False, size=7, alpha=0.6)
    sns.pointplot(table, **shared, errorbar=None, marker="|", markersize=18, markeredgewidth=3, linestyle="none")
    axes[0, 0].axvline(0, color="0.3", linewidth=1)
    axes[0, 0].set(xlabel=label, ylabel="")
    return figure


@plt.rc_context(STYLE)
def bars(values: pd.Series, label: str, reference: float = 1.0) -> Figure:
    """One horizontal bar an entry with its number, and a line at the reference; label: the quantity and its unit."""
    figure, axes = _figure(WIDTH, 0.8 + 0.35 * len(values))
    drawn = axes[0, 0].barh(list(values.index), values.to_numpy(), color="#0072B2")
    axes[0, 0].bar_label(drawn, fmt="%.2f", padding=3)
    axes[0, 0].axvline(reference, color="0.3", linewidth=1)
    axes[0, 0].set(xlabel=label, xmargin=0.1)
    axes[0, 0].invert_yaxis()
    return figure


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure and its axes (rows, columns); closed for pyplot, so that a notebook shows it once, as a cell's value."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    plt.close(figure)
    return figure, axes


def _draw(tile: Axes, values: Tensor, box: Tensor | None, size: Sequence[int] = (), **style) -> AxesImage:
    """An image (3, H, W), or a map (H, W) stretched over `size` pixels, with its box."""
    tile.set_axis_off()
    height, width = size or values.shape[-2:]
    pixels, style = values.permute(1, 2, 0) if values.ndim == 3 else values, {"cmap": "viridis"} | style
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    _outline(tile, box, "white")
    return tile.imshow(pixels.numpy(), interpolation="none", extent=extent, **style)


def _outline(tile: Axes, box: Tensor | Sequence[int] | None, colour: str) -> None:
    """Draw a box, both ends inclusive pixels, if there is one."""
    if box is not None:
        x0, y0, x1, y1 = map(float, box)
        outline = [withStroke(linewidth=2.5, foreground="black")]
        corner, extents = (x0 - 0.5, y0 - 0.5), (x1 - x0 + 1, y1 - y0 + 1)
        tile.add_patch(Rectangle(corner, *extents, fill=False, edgecolor=colour, linewidth=1, path_effects=outline))


def save(figure: Figure, results: str | Path, name: str) -> None:
    """Write <results>/figures/<name>.svg and .png, the same bytes for the same figure."""
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        file = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(file, format=kind, metadata=metadata, bbox_inches="tight")
        write_whole(resolve(results) / "figures" / f"{name}.{kind}", file.getvalue())


@plt.rc_context(STYLE)
def pair_rows(images: Tensor, boxes: Tensor, groups: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Figure:
    """CutMix-ed images uint8 (N, 3, H, W), a row each with its name, and their maps (N, h, w) by title.

    boxes (N, 4): the patches, inclusive pixels, outlined everywhere. The maps of one group share a row's colour scale.
    """
    columns = 1 + sum(map(len, groups))
    figure, axes = _figure(WIDTH, 0.5 + 0.62 * len(images), len(images), columns)
    for i, (first, *tiles) in enumerate(axes):
        _draw(first, images[i], boxes[i])
        first.text(-0.12, 0.5, names[i], transform=first.transAxes, ha="right", va="center", size=7)
        for group in groups:
            limits = {"vmin": min(v[i].min() for v in group.values()), "vmax": max(v[i].max() for v in group.values())}
            for values in group.values():
                _draw(tiles.pop(0), values[i], boxes[i], images.shape[2:], **limits)
    for tile, title in zip(axes[0], ["mixed", *(title for group in groups for title in group)], strict=True):
        tile.set_title(title, size=8)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure


@plt.rc_context(STYLE)
def share_curves(table: pd.DataFrame) -> Figure:
    """A panel each of `panel`, a line each of `reading` (of READINGS): `value` by `area`, in 0..1 and shown in percent.

    Dots are means over ninths of the areas 5 to 95 %, their bars 95 % bootstrap intervals, bands the middle half.
    """
    ninths = (5 + 10 * ((100 * table.area - 5) // 10).clip(0, 8)) + 5
    table = table.assign(area=ninths, value=100 * table.value)
    shown = [reading for reading in READINGS if reading in set(table.reading)]
    shared = {"x": "area", "y": "value", "hue": "reading", "palette": READINGS, "hue_order": shown}
    grid = sns.relplot(table, **shared, col="panel", kind="line", errorbar=("pi", 50), height=3.3, aspect=0.82)
    dots = {
        "errorbar": ("ci", 95),
        "n_boot": 200,
        "seed": 0,
        "err_style": "bars",
        "marker": "o",
        "linestyle": "",
        "legend": False,
    }
    for (panel, part), tile in zip(table.groupby("panel", sort=False), grid.axes.flat, strict=True):
        sns.lineplot(part, **shared, **dots, ax=tile, markersize=4)
        tile.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1)
        tile.set(title=panel, xlim=(0, 100), ylim=(0, 100), aspect="equal")
    grid.set_axis_labels("area (% of the image)", "share (%)")
    sns.move_legend(grid, "lower center", ncol=3, title="", bbox_to_anchor=(0.45, 0.98))
    plt.close(grid.figure)
    return grid.figure
