"""What notebook 05 measures and shows: do scores and maps of a network follow the areas of CutMix-ed pairs?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from saol_lib.cutmix import Mixed
from saol_lib.data import Batches, Split, load, select
from saol_lib.evidence import figures
from saol_lib.evidence.located import with_weights
from saol_lib.localization import curve_points, measure_pairs, mix_pairs, raw_maps, summarise_pairs
from saol_lib.streams import stream
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run, load_runs, resolve, run_id, save_run

MEASURE = "cutmix_pairs"
COLUMNS = {
    "share_error": "share: error",
    "guess_error": "of one half",
    "share_slope": "share: slope",
    "attention_slope": "A: slope",
    "attention_split": "A: split",
    "attention_both": "A: on both",
    "own_mass": "maps: own region",
}
BLIND = {"share_slope": 0, "attention_slope": 0, "own_mass": 50}  # what a network scores that does not look


class Pairs(NamedTuple):
    """CutMix-ed pairs of the evaluation images, the same for every network."""

    mixed: Mixed
    labels: Tensor  # (N,) of the images that were mixed
    pixels: Batches
    classes: tuple[str, ...]

    @property
    def share(self) -> Tensor:
        """The true share (N,) of the pasted class: the patch's area."""
        return self.mixed.share

    def title(self, index: int) -> str:
        """The pasted class, its share and the base's class of a pair, in words."""
        pasted = self.labels[self.mixed.partners[index]]
        base = self.labels[index]
        return f"{self.classes[pasted]}, {self.share[index]:.0%}, in {self.classes[base]}"


def draw_all_pairs(config: RunConfig) -> Pairs:
    """Every evaluation image of a configuration with a patch of another class, from one seeded stream."""
    dataset = load(config.dataset, config.data_dir, **config.data_options)
    _, split = select(dataset, config.eval_split, config.train_images, config.held_out)
    if not isinstance(split, Split):
        raise ValueError(f"dataset={config.dataset!r} is read from files; CutMix-ed pairs need one held in memory")
    _, pixels = batches(config, dataset, torch.device("cpu"))
    mixed = mix_pairs(split, len(dataset.classes), stream(0, "cutmix pairs"))
    return Pairs(mixed, split.labels, pixels, dataset.classes)


def networks_here(runs: Sequence[Run], results: str | Path) -> list[tuple[Run, nn.Module]]:
    """The runs whose weights are here, with their networks."""
    return [(run, load_model(run, results)) for run in with_weights(runs, results)]


def reading(config: dict, method: str) -> str:
    """An output layer and its map in words, as `figures.READINGS` names them."""
    if "saol" not in ARMS[config["arm"]].heads:
        return "GAP-FC"
    name = "SAOL" if method == "saol" else "its GAP-FC"
    by_attention = "ss1" in ARMS[config["arm"]].terms and config.get("mask_source") == "attention"
    return f"{name}, mask by the attention" if by_attention else name


def measure_networks(networks: Sequence[tuple[Run, nn.Module]], pairs: Pairs, results: str | Path) -> pd.DataFrame:
    """Every pair by every output layer of every network, a row each with reading and seed; summaries to `measures/`."""
    tables = []
    for run, model in networks:
        heads = ARMS[run.config["arm"]].heads
        methods = [method for head, method in (("saol", "saol"), ("gap", "cam")) if head in heads]
        for method in methods:
            table = measure_pairs(model, pairs.mixed, pairs.labels, pairs.pixels, method)
            config = run.config | {"measure": MEASURE, "method": method}
            measured = run._replace(config=config, metrics=summarise_pairs(table), epochs=[])
            save_run(resolve(results), measured, folder="measures")
            tables.append(table.assign(reading=reading(run.config, method), seed=run.config["seed"]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def pair_table(runs: Sequence[Run], results: str | Path) -> pd.DataFrame:
    """What was measured on these runs' networks, here or before: reading, seed, and the metrics, in percent.

    Raises FileNotFoundError where nothing was.
    """
    wanted = {run.id for run in runs}
    rows = []
    for measure in load_runs(results, folder="measures"):
        config = {name: value for name, value in measure.config.items() if name not in ("measure", "method")}
        if measure.config.get("measure") == MEASURE and run_id(config) in wanted:
            name = reading(config, measure.config["method"])
            rows.append({"reading": name, "seed": config["seed"]} | measure.metrics)
    if not rows:
        raise FileNotFoundError(f"{results} has neither weights nor measures of these networks; train them first")
    order = {name: place for place, name in enumerate(figures.READINGS)}
    table = pd.DataFrame(rows)
    return table.sort_values(["reading", "seed"], key=lambda column: column.replace(order)).reset_index(drop=True)


def pair_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`pair_table` as shown, percent: means over the seeds, and every seed's error of the share."""
    rows = []
    for name, part in table.groupby("reading", sort=False):
        row = {"reading": name}
        for column, title in COLUMNS.items():
            row[title] = part[column].mean() if column in part else float("nan")
        row["error, each seed"] = ", ".join(f"{value:.1f}" for value in part.sort_values("seed").share_error)
        rows.append(row)
    shown = pd.DataFrame(rows).set_index("reading").round(1).astype(object)
    return shown.where(shown.notna(), "–")


def pair_faults(table: pd.DataFrame) -> list[str]:
    """Where SAOL does no better than a network that does not look, a sentence each."""
    faults = []
    for row in table[table.reading.str.startswith("SAOL")].to_dict("records"):
        for name, bar in BLIND.items():
            if not row[name] > bar:
                faults.append(f"{row['reading']}, seed {row['seed']}: {name} is {row[name]:.1f}, not above {bar}")
    return faults


def pair_result(table: pd.DataFrame) -> tuple[str, str]:
    """Two sentences, whatever they say: do shares beat always one half, and does A see both objects?"""
    told = []
    for name, part in table.groupby("reading", sort=False):
        error, guess = part.share_error.mean(), part.guess_error.mean()
        better = int((part.share_error < part.guess_error).sum())
        verdict = "better than" if error < guess else "no better than"
        seeds = f"{better} of {len(part)} seeds"
        told.append(f"{name} {error:.0f} points off, {verdict} always one half ({guess:.0f}; {seeds} better)")
    first = f"The predicted share of the pasted class, for one pair: {'; '.join(told)}."

    looks = []
    for name, part in table[table.reading.str.startswith("SAOL")].groupby("reading", sort=False):
        both = ""
        if "attention_both" in part:
            share = part.attention_both.mean()
            both = f", and gives both objects at least half of what their area is due in {share:.0f} % of pairs"
        looks.append(
            f"{name}'s attention follows the patch's area with slope {part.attention_slope.mean() / 100:.2f}{both}"
        )
    return first, f"{'; '.join(looks)}."


def chosen_pairs(share: Tensor, areas: Sequence[float] = (0.15, 0.5, 0.85)) -> Tensor:
    """By rule, not by eye: of 200 pairs drawn from a seeded stream those whose patch is nearest to each area."""
    drawn = torch.randperm(len(share), generator=stream(0, "pairs shown"))[:200]
    distance = (share[drawn] - torch.tensor(areas)[:, None]).abs()
    return drawn[distance.argmin(dim=1)]


def pairs_figure(networks: Sequence[tuple[Run, nn.Module]], pairs: Pairs, chosen: Tensor) -> Figure | None:
    """`chosen` pairs under the first SAOL that is here: A, A * Y of both classes, CAM of both; None without one."""
    models = [model for run, model in networks if "saol" in ARMS[run.config["arm"]].heads]
    if not models:
        return None
    model = models[0]
    device = next(model.parameters()).device
    images = pairs.mixed.images[chosen]
    pasted = pairs.labels[pairs.mixed.partners[chosen]]
    base = pairs.labels[chosen]
    with torch.inference_mode():
        outputs, feature = model.look(pairs.pixels.normalise(images).to(device))

    def map_of(classes: Tensor, method: str) -> Tensor:
        return raw_maps(model, outputs, feature, classes, method).cpu()

    groups = [{"A": map_of(base, "attention")}]
    for title, method in (("A·Y", "saol"), ("CAM", "cam")):
        if method == "saol" or outputs.gap_logits is not None:
            groups.append({f"{title} pasted": map_of(pasted, method), f"{title} base": map_of(base, method)})
    patches = pairs.mixed.boxes[chosen] - torch.tensor([0, 0, 1, 1])  # both ends inclusive
    titles = [pairs.title(index) for index in chosen.tolist()]
    return figures.pair_rows(images, patches, groups, titles)


def share_figure(table: pd.DataFrame) -> Figure | None:
    """The table of `measure_networks` as curves; None where nothing was measured here."""
    return None if table.empty else figures.share_curves(curve_points(table))
