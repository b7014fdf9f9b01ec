"""What runs tell beyond the paper: calibration, both layers averaged, spread of attention, a taught GAP-FC's CAM."""

from collections.abc import Sequence

import pandas as pd

from saol_lib.evidence.statistics import compare
from saol_lib.evidence.tables import LAYERS, NOT_RUN, VARIANTS, in_words
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import Run

SHOWN = ("gap_fc", "saol", "saol_sd", "gap_fc_cutmix", "saol_cutmix", "saol_cutmix_ss_sd")  # in the reliability figure
FEWEST = 20  # images in a bin of the figure, over all seeds: fewer say nothing
CAM = {"measure": "localization", "method": "cam", "enlarge": False, "start": None}
OPTIONS = ("cutmix_schedule", *(name for name in VARIANTS if name not in ("lr", "separable")))
NAMES = ["trained as", "", "layer read"]


def calibration(runs: Sequence[Run]) -> pd.DataFrame | str:
    """A row an arm, variant and layer, percent: expected calibration error (spread between seeds), agreement."""
    rows = []
    for key, part in _by_arm(runs):
        both = _metric(part, "agreement_last")
        agreement = f"{pd.Series(both).mean():.1f}" if both else "–"
        for layer, label in LAYERS.items():
            errors = _metric(part, f"ece_{layer}_last")
            if errors:
                rows.append((*key, label, _told(errors), agreement, len(errors)))
    columns = [*NAMES, "calibration error", "layers agree", "seeds"]
    return _table(rows, columns, NAMES)


def both_layers(runs: Sequence[Run]) -> pd.DataFrame | str:
    """A row an arm with two layers: top-1 (percent) of each and of their mean, and the mean's lead (points) by seed."""
    rows = []
    for key, part in _by_arm(runs):
        means = _metric(part, "top1_mean_last")
        if not means:
            continue
        gap = _metric(part, "top1_gap_last")
        saol = _metric(part, "top1_saol_last")
        lead = [mean - max(pair) for mean, *pair in zip(means, gap, saol, strict=True)]
        each = ", ".join(f"{value:+.1f}" for value in lead)
        rows.append((*key, _told(gap), _told(saol), _told(means), f"{pd.Series(lead).mean():+.2f}", each))
    columns = [*NAMES[:2], "GAP-FC", "SAOL", "both averaged", "above the better one", "each seed"]
    return _table(rows, columns, NAMES[:2])


def attention_by_arm(runs: Sequence[Run]) -> pd.DataFrame | str:
    """A row an arm with attention, percent: its entropy (100: uniform, 0: a point), its share on the largest cell."""
    rows = []
    for key, part in _by_arm(runs):
        spreads = _metric(part, "attention_spread_last")
        peaks = _metric(part, "attention_peak_last")
        if spreads:
            rows.append((*key, _told(spreads), _told(peaks), len(spreads)))
    columns = [*NAMES[:2], "entropy of A, % of uniform", "on its largest cell, %", "seeds"]
    return _table(rows, columns, NAMES[:2])


def cam_of_taught(measures: Sequence[Run]) -> pd.DataFrame | str:
    """MaxBoxAccV2 (percent) of GAP-FC's own CAM: taught by SAOL, minus trained alone with CutMix, by seed."""
    cams = [run for run in measures if _is_cam(run)]
    alone = {run.config["seed"]: run for run in cams if run.config["arm"] == "gap_fc_cutmix"}
    with_sd = [run for run in cams if run.config["arm"] in ("saol_cutmix_sd", "saol_cutmix_ss_sd")]
    rows = []
    for key, part in _by_arm(with_sd):
        pairs = [(run, alone[run.config["seed"]]) for run in part if run.config["seed"] in alone]
        if not pairs:
            continue
        taught, others = zip(*pairs, strict=True)
        found = compare(taught, others, "max_box_acc_v2", varies=("lr", "mask_source"))
        interval = f"{found.low:+.1f} to {found.high:+.1f}" if found.n > 1 else "–"
        rows.append((*key, f"{found.mean:+.2f}", interval, found.n))
    columns = [*NAMES[:2], "taught − alone (points)", "95 % interval", "pairs"]
    return _table(rows, columns, NAMES[:2])


def _is_cam(measure: Run) -> bool:
    """Whether a measure is one of GAP-FC's CAM on a network as it was first trained."""
    return all(measure.config.get(name) == value for name, value in CAM.items())


def _table(rows: Sequence[tuple], columns: Sequence[str], index: Sequence[str]) -> pd.DataFrame | str:
    if not rows:
        return NOT_RUN
    return pd.DataFrame(rows, columns=columns).set_index(index)


def reliability_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row an arm of SHOWN, layer and bin: confidence and accuracy (percent), the bins of all seeds together."""
    columns = ["trained as", "regime", "layer", "confidence", "accuracy"]
    rows = []
    for arm in SHOWN:
        kept = [_bins(run) for run in runs if run.config["arm"] == arm and not variant(run)]
        for layer, label in LAYERS.items():
            tables = [pd.DataFrame(bins[layer]) for bins in kept if layer in bins]
            if not tables:
                continue
            total = sum(tables)
            total = total[total.images >= FEWEST]
            confidence = 100 * total.confidence / total.images
            accuracy = 100 * total.right / total.images
            for sure, right in zip(confidence, accuracy, strict=True):
                rows.append((*in_words(arm), label, sure, right))
    return pd.DataFrame(rows, columns=columns)


def _bins(run: Run) -> dict:
    """The last epoch's bins of each layer; none in a run's file of before they were kept."""
    return run.epochs[-1].get("reliability", {}) if run.epochs else {}


def _by_arm(runs: Sequence[Run]) -> list[tuple[tuple[str, str], list[Run]]]:
    """The runs of each arm and variant, in words, by seed."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        family, regime = in_words(run.config["arm"])
        told = variant(run)
        name = f"{family} ({told})" if told else family
        groups.setdefault((name, regime), []).append(run)
    return sorted(groups.items())


def variant(run: Run) -> str:
    """What a run has otherwise than by default, in words; without a SAOL only how its images are mixed."""
    has_saol = "saol" in ARMS[run.config["arm"]].heads
    told = []
    for name in OPTIONS if has_saol else ("cutmix_schedule",):
        default = getattr(RunConfig, name)
        value = run.config.get(name, default)
        if value != default:
            told.append(f"{name} {value}")
    return ", ".join(told)


def _metric(runs: Sequence[Run], name: str) -> list[float]:
    """What the runs that know this metric have of it: files of before it was counted do not."""
    return [run.metrics[name] for run in runs if name in run.metrics]


def _told(values: Sequence[float]) -> str:
    """Mean and standard deviation between seeds."""
    numbers = pd.Series(values)
    return f"{numbers.mean():.1f} ± {numbers.std():.1f}" if len(numbers) > 1 else f"{numbers.mean():.1f}"
