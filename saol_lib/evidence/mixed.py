"""What notebook 05 measures and shows: do scores and maps of a network follow the areas of CutMix-ed pairs?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from saol_lib.cutmix import Mixed
from saol_lib.data import Batches, Split, load, select
from saol_lib.evidence import figures
from saol_lib.evidence.ablations import OPTIONS
from saol_lib.evidence.located import with_weights
from saol_lib.evidence.measures import load_measures, save_measure
from saol_lib.evidence.plans import finished, planned
from saol_lib.evidence.tables import NOT_RUN
from saol_lib.localization import curve_points, measure_pairs, mix_pairs, raw_maps, summarise_pairs
from saol_lib.streams import stream
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import batches, load_model
from saol_lib.training.runs import Run, check_data, data_are_given, load_runs

MEASURE = "cutmix_pairs"
METHODS = {"saol": "saol", "gap": "cam"}  # an output layer, and how it is measured
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


# --- networks ---------------------------------------------------------------------------------------------------------


class Networks(NamedTuple):
    """The runs that a notebook asks for, and the networks of those whose weights are here."""

    runs: list[Run]
    here: list[tuple[Run, nn.Module]]
    results: str | Path  # where their measures lie
    config: RunConfig | None  # whose evaluation images are mixed; None where no network is here
    words: str  # what is here and what is missing, in a sentence


def one_network(run: Run, model: nn.Module, config: RunConfig, results: str | Path) -> Networks:
    """A network that somebody has; config: of the images that are mixed."""
    return Networks([run], [(run, model)], results, config, "One network that comes with the repository.")


def networks_of(runs: Sequence[Run], config: RunConfig, results: str | Path) -> Networks:
    """Those of finished runs; config: one of theirs, with the folder of the data."""
    here = _networks_here(runs, results)
    words = f"{len(runs)} networks are finished, and {_weights_in_words(runs, here)}"
    return Networks(list(runs), here, results, config if here else None, words)


def study_networks(study: str, backbone: str, arms: Sequence[str], data_dir: str | None = None) -> Networks:
    """Those networks of a study that claim C14 is about, and the arms beside them; nothing is trained.

    study: the profile whose study.yaml plans the runs. Of its runs those of `arms` on `backbone` are taken that have
    every option by default but `mask_source`. data_dir: the folder of their data, without which nothing is measured.
    Before the study has run: what results/<study> has of these arms, the demonstration. ValueError where there is no
    study of this name.
    """
    configs, results = planned(study)
    if not results:
        raise ValueError(f"study={study!r}: notebooks/profiles/{study} has no study.yaml; give a profile that has one")
    wanted = [config for config in configs if is_measured(config.identity(), backbone, arms)]
    runs = [run for run in finished(study) if is_measured(run.config, backbone, arms)]
    if not runs:
        return _demonstration(study, results, backbone, arms)

    words = f"{len(runs)} of the {len(wanted)} networks of the study that are measured here are finished"
    config = RunConfig.of(**runs[0].config, data_dir=data_dir)
    if not data_are_given(config):
        words = f"{words}; DATA is not given, so what was measured before is shown."
        return Networks(runs, [], results, None, words)

    here = _networks_here(runs, results)
    words = f"{words}, and {_weights_in_words(runs, here)}"
    return Networks(runs, here, results, config if here else None, words)


def is_measured(config: Mapping, backbone: str, arms: Sequence[str]) -> bool:
    """Whether a run of a study with this configuration is one of `study_networks`."""
    for name in OPTIONS:
        default = getattr(RunConfig, name)
        if name != "mask_source" and config.get(name, default) != default:
            return False
    return config["backbone"] == backbone and config["arm"] in arms


def _demonstration(study: str, results: str, backbone: str, arms: Sequence[str]) -> Networks:
    """What was trained before the study, in the folder of the profile; its weights are not asked for."""
    earlier = f"results/{study}"
    runs = [run for run in load_runs(earlier) if is_measured(run.config, backbone, arms)]
    words = f"The study has not been run yet: none of the networks that are measured here is in {results}."
    if runs:
        words = f"{words[:-1]}; what follows is the demonstration in {earlier}."
    return Networks(runs, [], earlier, None, words)


def _networks_here(runs: Sequence[Run], results: str | Path) -> list[tuple[Run, nn.Module]]:
    return [(run, load_model(run, results)) for run in with_weights(runs, results)]


def _weights_in_words(runs: Sequence[Run], here: Sequence) -> str:
    if len(here) == len(runs):
        return "all of their weights are here."
    count = len(here) or "none"
    return f"weights of {count} are here (they are not in git); of the rest what was measured before is shown."


# --- pairs ------------------------------------------------------------------------------------------------------------


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
        return f"{self.classes[pasted]} over {self.share[index]:.0%} of {self.classes[base]}"

    def __str__(self) -> str:
        least, most = self.share.min(), self.share.max()
        return f"{len(self.share)} pairs; the patch covers {least:.0%} to {most:.0%}"


def draw_all_pairs(networks: Networks) -> Pairs | None:
    """Every evaluation image with a patch of another class, from one seeded stream; None where no network is here.

    Raises OtherData where a network was trained on other data than those that its configuration's folder holds.
    """
    config = networks.config
    if config is None:
        return None
    dataset = load(config.dataset, config.data_dir, **config.data_options)
    for run, _ in networks.here:
        check_data(run.id, run.provenance.get("data"), dataset.fingerprint)

    _, split = select(dataset, config.eval_split, config.train_images, config.held_out)
    if not isinstance(split, Split):
        raise ValueError(f"dataset={config.dataset!r} is read from files; CutMix-ed pairs need one held in memory")
    _, pixels = batches(config, dataset, torch.device("cpu"))
    mixed = mix_pairs(split, len(dataset.classes), stream(0, "cutmix pairs"))
    return Pairs(mixed, split.labels, pixels, dataset.classes)


# --- measures ---------------------------------------------------------------------------------------------------------


def reading(config: Mapping, method: str) -> str:
    """An output layer and its map in words, as `figures.READINGS` names them."""
    arm = ARMS[config["arm"]]
    if "saol" not in arm.heads:
        return "GAP-FC"
    name = "SAOL" if method == "saol" else "its GAP-FC"
    by_attention = config.get("mask_source") == "attention"
    if "ss1" in arm.terms and by_attention:
        return f"{name}, mask by the attention"
    return name


def measure_networks(networks: Networks, pairs: Pairs | None) -> None:
    """Measure the pairs by every output layer of every network that is here.

    The summaries, which claim C14 reads, go to `measures/` of the networks' folder, with the points of `share_figure`.
    """
    for run, model in networks.here:
        for method in _methods(run):
            table = measure_pairs(model, pairs.mixed, pairs.labels, pairs.pixels, method)
            metrics = summarise_pairs(table)
            how = {"pairs": len(table)}
            save_measure(run, networks.results, MEASURE, method, metrics, how, curve=_by_ninth(table))


def _by_ninth(table: pd.DataFrame) -> list[dict]:
    """`PairMeasures` in ninths of the areas 5 to 95 %: mean and quartiles of the shares of each panel, percent."""
    points = curve_points(table)
    ninth = (100 * points.area - 5) // 10
    points = points.assign(area=10 * ninth.clip(0, 8) + 10)
    rows = []
    for (panel, area), values in points.groupby(["panel", "area"], sort=False).value:
        low, high = values.quantile([0.25, 0.75])
        shares = {"mean": values.mean(), "low": low, "high": high}
        shares = {name: round(100 * float(value), 2) for name, value in shares.items()}
        rows.append({"panel": panel, "area": int(area)} | shares)
    return rows


def _methods(run: Run) -> list[str]:
    """How the output layers of a run's network are read."""
    heads = ARMS[run.config["arm"]].heads
    return [method for head, method in METHODS.items() if head in heads]


def pair_table(networks: Networks) -> pd.DataFrame:
    """What was measured on these networks, now or before: reading, seed, and the metrics, in percent."""
    rows = [place | measure.metrics for place, measure in _measures_of(networks)]
    if not rows:
        return pd.DataFrame(columns=["reading", "seed"])

    order = {name: place for place, name in enumerate(figures.READINGS)}
    table = pd.DataFrame(rows)
    table = table.sort_values(["reading", "seed"], key=lambda column: column.replace(order))
    return table.reset_index(drop=True)


def _measures_of(networks: Networks) -> Iterator[tuple[dict, Run]]:
    """What was measured on these networks, now or before: reading and seed, and the measure."""
    wanted = {run.id for run in networks.runs}
    for name, method, measure in load_measures(networks.results, MEASURE):
        if name in wanted:
            yield {"reading": reading(measure.config, method), "seed": measure.config["seed"]}, measure


# --- what the notebook shows ------------------------------------------------------------------------------------------


def pair_numbers(table: pd.DataFrame) -> pd.DataFrame | str:
    """`pair_table` as shown, percent: means over the seeds, and every seed's error of the share."""
    if table.empty:
        return NOT_RUN
    rows = []
    for name, part in _readings(table):
        row = {"reading": name}
        for column, title in COLUMNS.items():
            row[title] = part[column].mean() if column in part else float("nan")
        part = part.sort_values("seed")
        each = [f"{value:.1f}" for value in part.share_error]
        row["error, each seed"] = ", ".join(each)
        rows.append(row)
    shown = pd.DataFrame(rows).set_index("reading")
    shown = shown.round(1).astype(object)
    return shown.where(shown.notna(), "–")


def pair_faults(table: pd.DataFrame) -> list[str]:
    """Where SAOL does no better than a network that does not look, a sentence each."""
    faults = []
    for row in _of_saol(table).to_dict("records"):
        for name, bar in BLIND.items():
            if not row[name] > bar:
                faults.append(f"{row['reading']}, seed {row['seed']}: {name} is {row[name]:.1f}, not above {bar}")
    return faults


def pair_result(table: pd.DataFrame) -> tuple[str, str]:
    """Two sentences, whatever they say: do shares beat always one half, and does A see both objects?"""
    if table.empty:
        return "No network was measured yet.", "Nothing is known of its attention."
    shares = [_share_in_words(name, part) for name, part in _readings(table)]
    looks = [_look_in_words(name, part) for name, part in _readings(_of_saol(table))]
    first = (
        "Points by which the predicted share of the pasted class is off, for one pair, against always one half: "
        f"{'; '.join(shares)}."
    )
    if not looks:
        return first, "No SAOL is among them, and so no attention."
    second = (
        "How A follows the patch's area (slope), and in how many pairs both objects get at least half of what their "
        f"area is due: {'; '.join(looks)}."
    )
    return first, second


def _share_in_words(name: str, part: pd.DataFrame) -> str:
    better = (part.share_error < part.guess_error).sum()
    error, guess = part.share_error.mean(), part.guess_error.mean()
    return f"{name} {error:.1f} against {guess:.1f} (better in {better} of {len(part)} seeds)"


def _look_in_words(name: str, part: pd.DataFrame) -> str:
    told = f"{name} {part.attention_slope.mean() / 100:.2f}"
    both = part.get("attention_both", pd.Series(dtype=float)).dropna()
    share = f"{both.mean():.0f} %" if len(both) else "not measured"
    return f"{told} and {share}"


def _readings(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each reading, in the table's order."""
    return iter(table.groupby("reading", sort=False))


def _of_saol(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.reading.astype(str).str.startswith("SAOL")]


def chosen_pairs(share: Tensor, areas: Sequence[float] = (0.15, 0.5, 0.85)) -> Tensor:
    """By rule, not by eye: of 200 pairs drawn from a seeded stream those whose patch is nearest to each area."""
    order = torch.randperm(len(share), generator=stream(0, "pairs shown"))
    drawn = order[:200]
    wanted = torch.tensor(areas)[:, None]
    distance = (share[drawn] - wanted).abs()
    return drawn[distance.argmin(dim=1)]


def pairs_figure(networks: Networks, pairs: Pairs | None) -> Figure | None:
    """`chosen_pairs` under the first SAOL that is here: A, A * Y of both classes, CAM of both; None without one."""
    models = [model for run, model in networks.here if "saol" in ARMS[run.config["arm"]].heads]
    if not models:
        return None
    model = models[0]
    device = next(model.parameters()).device
    chosen = chosen_pairs(pairs.share)
    images = pairs.mixed.images[chosen]
    base = pairs.labels[chosen]
    partners = pairs.mixed.partners[chosen]
    pasted = pairs.labels[partners]
    with torch.inference_mode():
        pixels = pairs.pixels.normalise(images)
        outputs, feature = model.look(pixels.to(device))

    def map_of(classes: Tensor, method: str) -> Tensor:
        return raw_maps(model, outputs, feature, classes, method).cpu()

    groups = [{"A": map_of(base, "attention")}]
    for title, method in (("A·Y", "saol"), ("CAM", "cam")):
        if method == "cam" and outputs.gap_logits is None:
            continue
        group = {f"{title} pasted": map_of(pasted, method), f"{title} base": map_of(base, method)}
        groups.append(group)
    patches = pairs.mixed.boxes[chosen] - torch.tensor([0, 0, 1, 1])  # both ends inclusive
    titles = [pairs.title(index) for index in chosen.tolist()]
    return figures.pair_rows(images, patches, groups, titles)


def share_figure(networks: Networks) -> Figure | None:
    """What was measured on these networks, now or before, as curves; None where no measure has any."""
    rows = []
    for place, measure in _measures_of(networks):
        rows += [place | point for point in measure.epochs]
    return figures.share_curves(pd.DataFrame(rows)) if rows else None
