"""The figures: one style, colour-blind safe, every one a matplotlib `Figure`; and the tables they are drawn from."""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from saol_lib.evidence.tables import FAMILIES, LAYERS, REGIMES, paired, readings
from saol_lib.training.runs import Run, resolve, write_whole

STYLE = sns.axes_style("whitegrid") | {
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.dpi": 100,
    "svg.hashsalt": "saol_lib",
    "grid.color": "0.9",
}
WIDTH = 8.0  # inches: 800 pixels, a README's column
NAME_WIDTH = 36  # letters of a row's name before it breaks
COLOURS = dict(zip(FAMILIES.values(), ["black", *sns.color_palette("colorblind", 8)], strict=True))
NO_WEIGHTS = "*Weights are not in git: no network of these runs is here, and no picture of it was saved.*"
BLUE, ORANGE = "#0072B2", "#D55E00"
COVER = 0.6  # how dark a picture is where a map is weakest
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
    colours = {"hue": "family", "palette": COLOURS, "legend": False}
    return _strips(table.assign(row=names), "delta", "row", label, 0.5, **colours)


@plt.rc_context(STYLE)
def effects(table: pd.DataFrame) -> Figure:
    """Paired differences in percentage points: a row an effect, a dot a seed (the columns), a bar for the mean."""
    long = table.melt(ignore_index=False, value_name="points")
    long = long.reset_index(names="effect")
    long["effect"] = [fill(name.replace("+ ", "+\N{NO-BREAK SPACE}"), NAME_WIDTH) for name in long.effect]
    label = "difference in top-1 accuracy, same seed (percentage points)"
    return _strips(long, "points", "effect", label, 0.4, color=BLUE)


@plt.rc_context(STYLE)
def forest(table: pd.DataFrame) -> Figure:
    """Every effect with its 95 % interval, a row each of `tables.effects_table`; a tick is the smallest that counts.

    A panel each of `measure`: what boxes gain would hide what accuracies do. Effects are drawn in the direction that is
    claimed: to the right of 0 agrees.
    """
    rows = table.claim + ": " + table.test
    table = table.assign(row=[fill(row, 2 * NAME_WIDTH) for row in rows])
    parts = [part for _, part in table.groupby("measure", sort=False)]
    heights = [0.14 * _lines(part) + 0.14 * len(part) for part in parts]  # inches: for each line, and between the rows
    figure, axes = _figure(WIDTH, 0.6 + 0.7 * len(parts) + sum(heights), len(parts), height_ratios=heights)
    for tile, part in zip(axes[:, 0], parts, strict=True):
        _draw_effects(tile, part)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def _lines(table: pd.DataFrame) -> int:
    """How many lines the names of the rows take."""
    breaks = table.row.str.count("\n")
    return len(table) + int(breaks.sum())


def _draw_effects(tile: Axes, table: pd.DataFrame) -> None:
    """The rows of one measure."""
    count = len(table)
    rows = range(count)
    mean = table["mean"]
    tile.errorbar(
        mean,
        rows,
        xerr=[mean - table.low, table.high - mean],
        fmt="o",
        color=BLUE,
        capsize=3,
        label="mean and 95 % interval",
    )
    tile.plot(
        table.smallest,
        rows,
        "|",
        color=ORANGE,
        markersize=12,
        markeredgewidth=2,
        label="smallest effect that counts",
    )
    tile.axvline(0, color="0.3", linewidth=1)
    tile.set_yticks(rows, labels=table.row)
    tile.set_title(table.measure.iloc[0])
    tile.set_xlabel("points in the direction claimed")
    tile.set_ylim(count - 0.5, -0.5)


@plt.rc_context(STYLE)
def slopes(runs: Sequence[Run], steps: Sequence[tuple[str, str]]) -> Figure:
    """Accuracy (percent) from step to step: a thin line a seed, a thick one the mean of the seeds that have every step.

    A step is (arm, "SAOL" or "GAP-FC" read).
    """
    table = paired(runs)
    table = table[table.variant == ""]
    by_step = table.pivot(index="seed", columns=["arm", "layer"], values="top1")
    by_step = by_step.reindex(columns=pd.MultiIndex.from_tuples(steps)).dropna(how="all")
    places = range(len(steps))

    figure, tile = _one_tile(3.6)
    for place, values in enumerate(by_step.to_numpy()):
        name = None if place else "one seed"
        tile.plot(places, values, "o-", color="0.6", linewidth=1, markersize=3, label=name)
    whole = by_step.dropna()
    if len(whole):
        name = f"mean of the {len(whole)} with every step"
        tile.plot(places, whole.mean(), "o-", color=BLUE, linewidth=2.5, label=name)

    names = [_step_name(*step) for step in steps]
    tile.set_xticks(places, labels=names)
    tile.set(ylabel="top-1 accuracy (%)", xmargin=0.08)
    if tile.lines:
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _step_name(arm: str, layer: str) -> str:
    family = FAMILIES[arm.replace("_cutmix", "")]
    mixed = "\nwith CutMix" if "cutmix" in arm else ""
    return f"{family}\n{layer} read{mixed}"


@plt.rc_context(STYLE)
def cost_against_accuracy(runs: Sequence[Run], costs: Mapping[str, float]) -> Figure:
    """Mean accuracy (percent), bars the seeds' range: a row a family of arms, the cheapest to train first.

    costs: {run's id: millions of multiply-adds of training on one image}; times of different machines say nothing. A
    marker a layer that is read and a filling a regime, one below the other.
    """
    table = paired(runs)
    table = table.assign(cost=table.id.map(costs))
    by_family = table.groupby("family", sort=False).cost.mean().sort_values(kind="stable")
    names = list(by_family.index)
    kinds = [(regime, layer) for regime in REGIMES for layer in LAYERS.values()]

    figure, tile = _one_tile(1.3 + 0.5 * len(names))
    for place, (regime, layer) in enumerate(kinds):
        part = table[(table.regime == regime) & (table.layer == layer)]
        if part.empty:
            continue
        top1 = part.groupby("family", sort=False).top1
        mean = top1.mean()
        rows = [names.index(family) + 0.2 * (place - 1.5) for family in mean.index]
        tile.errorbar(
            mean,
            rows,
            xerr=[mean - top1.min(), top1.max() - mean],
            fmt="o" if layer == "SAOL" else "s",
            label=f"{layer} read, {regime}",
            color=BLUE if layer == "SAOL" else "black",
            capsize=2,
            markerfacecolor=None if regime == REGIMES[1] else "white",
        )
    tile.set_yticks(range(len(names)), labels=names)
    tile.set_ylim(len(names) - 0.5, -0.5)
    tile.set_xlabel("top-1 accuracy (%)")

    beside = tile.secondary_yaxis("right")
    beside.set_yticks(range(len(names)), labels=[f"{cost:.0f} M" for cost in by_family])
    beside.set_ylabel("multiply-adds of training,\nper image")
    beside.tick_params(length=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def reliability(table: pd.DataFrame) -> Figure:
    """Accuracy by confidence (percent), a line an arm and layer of `beyond.reliability_table`, a panel a layer.

    On the dashed line confidence is what it says; above it a network is too modest, below it too sure.
    """
    grid = sns.relplot(
        table,
        kind="line",
        x="confidence",
        y="accuracy",
        col="layer",
        hue="trained as",
        style="regime",
        style_order=list(REGIMES[::-1]),
        palette=COLOURS,
        marker="o",
        markersize=5,
        height=3.4,
        aspect=0.85,
    )
    grid.set_titles("{col_name} read")
    grid.set_axis_labels("confidence (%)", "accuracy (%)")
    for tile in grid.axes.flat:
        tile.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1)
        tile.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 100, 20))  # a 100 would run into the next panel's 0
    plt.close(grid.figure)
    return grid.figure


@plt.rc_context(STYLE)
def bars(ratios: pd.Series, label: str) -> Figure:
    """One horizontal bar an entry, a line at 1, and the numbers in a column of their own; label: what 1 stands for."""
    figure, tile = _one_tile(0.8 + 0.35 * len(ratios))
    names = [fill(name, NAME_WIDTH) for name in ratios.index]
    tile.barh(names, ratios.to_numpy(), color=BLUE)
    tile.axvline(1, color="0.3", linewidth=1)
    tile.set_xlabel(label)
    tile.grid(visible=False, axis="y")
    tile.invert_yaxis()

    beside = tile.secondary_yaxis("right")
    beside.set_yticks(range(len(ratios)), labels=[f"{ratio:.2f} ×" for ratio in ratios])
    beside.tick_params(length=0)
    return figure


def _strips(table: pd.DataFrame, x: str, y: str, label: str, height: float, **colours) -> Figure:
    """Differences `x`, a strip `height` inches high for each `y`: a dot a row of the table, and a bar at their mean."""
    strips = table[y].nunique()
    figure, tile = _one_tile(0.9 + height * strips)
    shared = {"x": x, "y": y, "ax": tile} | colours
    sns.stripplot(table, **shared, jitter=False, size=7, alpha=0.6)
    sns.pointplot(
        table,
        **shared,
        errorbar=None,
        marker="|",
        markersize=18,
        markeredgewidth=3,
        linestyle="none",
    )
    tile.axvline(0, color="0.3", linewidth=1)
    tile.set(xlabel=label, ylabel="")
    return figure


# --- maps over images -------------------------------------------------------------------------------------------------


@plt.rc_context(STYLE)
def attention_grid(
    images: Tensor,
    attention: Tensor,
    boxes: Tensor | None = None,
    titles: Sequence[str] = (),
) -> Figure:
    """Images uint8 (N, 3, H, W) above the same under their attention (N, 1, Ho, Wo); boxes (N, 4) inclusive pixels."""
    count = len(images)
    figure, axes = _figure(WIDTH, 0.9 + 15 / count, 2, count)
    size = images.shape[2:]
    most = float(attention.max())
    for i, (top, bottom) in enumerate(axes.T):
        box = None if boxes is None else boxes[i]
        title = titles[i] if len(titles) else ""
        _draw(top, images[i], box)
        top.set_title(title, size=9)

        grey = images[i].float().mean(dim=0)
        values = attention[i, 0]
        cover = 0.3 + 0.7 * values / most
        _draw(bottom, grey, box, cmap="gray")
        shown = _draw(bottom, values, box, size, vmin=0, vmax=most, alpha=cover.numpy())

    figure.colorbar(
        shown,
        ax=axes,
        label="attention per cell (all cells of a picture: 1)",
        location="bottom",
        shrink=0.4,
        aspect=30,
    )
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
    height = 0.3 + WIDTH / columns
    figure, axes = _figure(WIDTH, len(rows) * height, len(rows), columns)
    for tile in axes.flat:
        tile.set_axis_off()

    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for tile, picture in zip(line, pictures, strict=False):
            image, values, truth, found, title = picture
            _draw_lit(tile, image, values, truth)
            _outline(tile, found, ORANGE)
            tile.set_title(title, size=9)
        _name_row(line[0], name)
    return figure


def _name_row(first: Axes, name: str) -> None:
    """Write a row's name upwards, left of its first tile."""
    first.text(
        -0.1,
        0.5,
        name,
        transform=first.transAxes,
        rotation=90,
        ha="center",
        va="center",
    )


@plt.rc_context(STYLE)
def pair_rows(
    images: Tensor,
    boxes: Tensor,
    groups: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
) -> Figure:
    """CutMix-ed images uint8 (N, 3, H, W), a row each under its name, and over them their maps (N, h, w) by title.

    boxes (N, 4): the patches, inclusive pixels, outlined everywhere. Each picture in its colours, dark where a map is
    weak. The maps of one group share a scale in each row, from 0 to their largest value.
    """
    titles = [""]  # the row's name stands over the mixed image
    for group in groups:
        titles += group
    height = 0.45 + WIDTH / len(titles)
    figure, axes = _figure(WIDTH, len(images) * height, len(images), len(titles))
    for i, (first, *tiles) in enumerate(axes):
        _draw(first, images[i], boxes[i])
        for group in groups:
            maps = [values[i] for values in group.values()]
            most = float(max(values.max() for values in maps))
            for tile, values in zip(tiles, maps, strict=False):
                _draw_lit(tile, images[i], values, boxes[i], most)
            tiles = tiles[len(group) :]

        for tile, title in zip(axes[i], titles, strict=True):
            tile.set_title(title, size=9)
        first.set_title(names[i], size=9, loc="left")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    return figure


def _draw_lit(
    tile: Axes,
    image: Tensor,
    values: Tensor,
    box: Tensor | None,
    most: float | None = None,
) -> None:
    """An image in its colours under a dark cover, which a map (H, W) takes away: all of it where it reaches `most`."""
    if most is None:
        most = float(values.max())
    strength = values.float().clamp(min=0) / max(most, 1e-30)
    cover = COVER * (1 - strength.clamp(max=1))
    black = torch.zeros_like(cover)

    _draw(tile, image, box)
    size = image.shape[1:]
    _draw(tile, black, None, size, cmap="gray", vmin=0, vmax=1, alpha=cover.numpy())


# --- curves over thresholds and areas ---------------------------------------------------------------------------------


@plt.rc_context(STYLE)
def threshold_curves(lines: Mapping[str, tuple[Sequence, Sequence]], references: Mapping[str, float]) -> Figure:
    """Accuracy of boxes (percent) by threshold, a line a name: (thresholds (T,), values (T,)).

    references: level lines, at most two: what looks at nothing.
    """
    figure, tile = _one_tile(3.6 + 0.11 * len(lines))
    kinds = cycle(["-", "--", "-."])
    highest = max(references.values(), default=0.0)
    for name, colour, kind in zip(lines, _colours(), kinds, strict=False):
        thresholds, values = lines[name]
        highest = max(highest, *values)
        tile.plot(thresholds, values, label=name, color=colour, linestyle=kind)

    close = (0, (1, 1))
    wide = (0, (1, 4))
    for name, dots in zip(references, (close, wide), strict=False):
        tile.axhline(references[name], color="black", linestyle=dots, linewidth=1.5, label=name)

    tile.set_xlabel("threshold, as a share of the map's maximum")
    tile.set_ylabel("images with IoU ≥ 0.5 (%)")
    tile.set(xlim=(0, 1), ylim=(0, 1.05 * highest))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.rc_context(STYLE)
def share_curves(table: pd.DataFrame) -> Figure:
    """Shares by area, percent: a column each of `panel`, a row each of `reading` (of READINGS).

    table: a row a panel, reading, seed and area, with the mean over pairs of about that area and their quartiles `low`
    and `high`. Dots are means over seeds, their bars the seeds' range, the band lies between the mean quartiles. Thin
    grey lines are the means of the other rows.
    """
    fullest = table.groupby("reading").panel.nunique().idxmax()  # a GAP-FC network has no attention's panel
    panels = list(table[table.reading == fullest].panel.unique())
    there = set(table.reading)
    names = [name for name in READINGS if name in there]

    figure, axes = _figure(WIDTH, 0.4 + 2.2 * len(names), len(names), len(panels))
    for line, name in zip(axes, names, strict=True):
        drawn = []
        for tile, panel in zip(line, panels, strict=True):
            column = table[table.panel == panel]
            if (column.reading == name).any():
                _draw_shares(tile, column, name)
                drawn.append(tile)
            else:
                tile.set_axis_off()
        drawn[0].set_ylabel(f"{name}\nshare (%)")

    for column, panel in zip(axes.T, panels, strict=True):
        with_lines = [tile for tile in column if tile.lines]
        with_lines[0].set_title(panel)
        with_lines[-1].set_xlabel("area (% of the image)")
    return figure


def _draw_shares(tile: Axes, table: pd.DataFrame, name: str) -> None:
    """One reading's mean and middle half by area, over the other readings' means."""
    for _, other in table[table.reading != name].groupby("reading"):
        tile.plot(other.groupby("area")["mean"].mean(), color="0.6", linewidth=1)

    seeds = table[table.reading == name].groupby("area")
    colour = READINGS[name]
    mean = seeds["mean"].mean()
    spread = [mean - seeds["mean"].min(), seeds["mean"].max() - mean]
    tile.fill_between(mean.index, seeds.low.mean(), seeds.high.mean(), color=colour, alpha=0.2, linewidth=0)
    tile.errorbar(mean.index, mean, yerr=spread, color=colour, marker="o", markersize=4)
    tile.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1)
    tile.set(xlim=(0, 100), ylim=(0, 100), xlabel="", ylabel="")


# --- parts ------------------------------------------------------------------------------------------------------------


def save(figure: Figure, results: str | Path, name: str, of: str | None = None) -> None:
    """Write <results>/figures/<name>.svg and .png, the same bytes for the same figure.

    of: the experiment that it shows, where a folder has several; its files are <name>_<of>.
    """
    folder = resolve(results) / "figures"
    changing = {"svg": "Date", "png": "Software"}  # what a file would have of the day and of the machine
    for kind, field in changing.items():
        file = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(file, format=kind, metadata={field: None}, bbox_inches="tight")
        write_whole(folder / f"{_file_name(name, of)}.{kind}", file.getvalue())


def _file_name(name: str, of: str | None) -> str:
    return f"{name}_{of}" if of else name


def kept(figure: Figure | None, results: str | Path, name: str, of: str | None = None) -> Figure | Image | str:
    """`save` a figure that was drawn. Without one: what was saved under this name before; else NO_WEIGHTS."""
    if figure is not None:
        save(figure, results, name, of)
        return figure
    saved = resolve(results) / "figures" / f"{_file_name(name, of)}.png"
    if saved.exists():
        return Image(data=saved.read_bytes())
    return NO_WEIGHTS


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **ratios) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns); closed for pyplot, so that a notebook shows it once, as a cell's value."""
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        layout="constrained",
        **ratios,
    )
    plt.close(figure)
    return figure, axes


def _one_tile(height: float) -> tuple[Figure, Axes]:
    """A figure of the full width with one pair of axes."""
    figure, axes = _figure(WIDTH, height)
    return figure, axes[0, 0]


def _colours() -> Iterator[tuple[float, ...]]:
    """Colours for lines without end, from the beginning again after the last."""
    return cycle(sns.color_palette("colorblind"))


def _draw(
    tile: Axes,
    values: Tensor,
    box: Tensor | None,
    size: Sequence[int] = (),
    cmap: str = "viridis",
    **style,
) -> AxesImage:
    """An image (3, H, W), or a map (H, W) stretched over `size` pixels, with its box."""
    height, width = size or values.shape[-2:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    pixels = values
    if values.ndim == 3:
        pixels = values.permute(1, 2, 0)

    tile.set_axis_off()
    _outline(tile, box, "white")
    return tile.imshow(
        pixels.numpy(),
        interpolation="none",
        extent=extent,
        cmap=cmap,
        **style,
    )


def _outline(tile: Axes, box: Tensor | Sequence[int] | None, colour: str) -> None:
    """Draw a box (4,) or several (M, 4), both ends inclusive pixels, if there are any; rows of -1 count for nothing."""
    if box is None:
        return
    boxes = torch.as_tensor(box).reshape(-1, 4)
    for x0, y0, x1, y1 in boxes.tolist():
        if x0 < 0:
            continue
        outline = Rectangle(
            (x0 - 0.5, y0 - 0.5),
            width=x1 - x0 + 1,
            height=y1 - y0 + 1,
            fill=False,
            edgecolor=colour,
            linewidth=1,
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )
        tile.add_patch(outline)
