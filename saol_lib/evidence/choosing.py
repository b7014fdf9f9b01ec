"""How the pilot chose the regime, the rates and the precision of the study: its rules, applied to what is finished."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from saol_lib.evidence.plans import as_recorded, planned
from saol_lib.evidence.tables import LAYERS, in_words
from saol_lib.training.config import RunConfig
from saol_lib.training.files import ROOT
from saol_lib.training.profiles import open_values
from saol_lib.training.runs import resolve

ENOUGH = 1.0  # points that CutMix has to give GAP-FC, mean of all seeds
MOST = 1.0  # points: what a precision must not change, twice the smallest effect of the claims about accuracies
READ = {  # the output layer that a family's claims read
    "gap_fc": "gap",
    "gap_fc_cutmix": "gap",
    "saol": "saol",
    "saol_cutmix": "saol",
    "saol_sd": "gap",
    "saol_cutmix_sd": "saol",
}


class Scores(NamedTuple):
    """One arm's planned runs of one setting: top-1 (percent) by seed of those that are finished."""

    planned: int
    by_seed: dict[int, float]

    @property
    def complete(self) -> bool:
        return len(self.by_seed) == self.planned

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)


def regimes(profile: str = "pilot") -> pd.DataFrame | str:
    """A row a regime, in the order of the rule: both arms' means (percent), and what CutMix gains (points) by seed."""
    found = _regimes(profile)
    if not found:
        return _nothing(profile, "study")
    rows = []
    for (images, epochs), (plain, mixed) in found.items():
        rows.append((f"{images:,} × {epochs}", *_compared(plain, mixed)))
    columns = ["images × epochs", "runs", "GAP-FC", "GAP-FC with CutMix", "CutMix gains", "each seed"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[0])


def regime_chosen(profile: str = "pilot") -> str:
    """What the rule says so far, in a sentence: the first regime in which CutMix gains enough, else the longest.

    Empty where the profile chooses none.
    """
    found = _regimes(profile)
    if not found:
        return ""
    for (images, epochs), (plain, mixed) in found.items():
        name = f"{images:,} images × {epochs} epochs"
        if not (plain.complete and mixed.complete):
            return f"Not decided yet: runs of {name} are missing."
        gain = _mean(_gains(plain, mixed))
        if gain >= ENOUGH:
            return f"The regime is **{name}**: the first in which CutMix gains GAP-FC at least a point ({gain:+.2f})."
    return f"CutMix gains a point nowhere: the longest is taken, **{name}**, and no claim about CutMix can be tested."


def rates(profile: str = "pilot") -> pd.DataFrame | str:
    """A row a family of arms, a column a rate: mean top-1 (percent) of the layer that is read; * is the one chosen."""
    found = _rates(profile)
    if not found:
        return _nothing(profile, "rates")
    rows = {}
    for arm, by_rate in found.items():
        name, regime = in_words(arm)
        family = f"{name} {regime}, {LAYERS[READ[arm]]} read"
        best = best_rate(by_rate)
        cells = {rate: _cell(scores, rate == best) for rate, scores in by_rate.items()}
        if best is None:
            cells["chosen"] = "not decided yet"
        else:
            cells["chosen"] = f"{best} (an edge)" if _is_edge(best, by_rate) else f"{best}"
        rows[family] = cells
    return pd.DataFrame(rows).T.rename_axis("family")


def edges(profile: str = "pilot") -> str:
    """Which families chose a rate at an edge of those tried, in a sentence: better ones may lie beyond."""
    found = _rates(profile)
    chosen = {arm: best_rate(by_rate) for arm, by_rate in found.items()}
    if not chosen or None in chosen.values():
        return "Rates are not decided yet."

    at_edge = [best for arm, best in chosen.items() if _is_edge(best, found[arm])]
    if not at_edge:
        return "No family of arms chose a rate at an edge of those tried."
    told = [f"{count} of {len(found)} families of arms chose {rate}" for rate, count in Counter(at_edge).items()]
    return f"{', '.join(told)}, an edge of the rates tried: **better ones may lie beyond**."


def gains_by_rate(arm: str, baseline: str, profile: str = "pilot") -> str:
    """What an arm is ahead of another at each rate (points, mean of the seeds that both have), in a sentence."""
    found = _rates(profile)
    told = []
    for rate, scores in found.get(arm, {}).items():
        gains = _gains(found[baseline][rate], scores)
        if gains:
            told.append(f"{_mean(gains):+.2f} at {rate}")
    if not told:
        return ""
    names = [" ".join(in_words(name)) for name in (arm, baseline)]
    return f"{names[0]} against {names[1]}, by rate: {', '.join(told)}."


def precisions(profile: str = "pilot") -> pd.DataFrame | str:
    """A row an arm: its means (percent) in float32 and bfloat16, and what bfloat16 changes (points) by seed."""
    found = _precisions(profile)
    if not found:
        return _nothing(profile, "precision")
    rows = []
    for arm, (full, half) in found.items():
        rows.append((in_words(arm)[0], *_compared(full, half)))
    columns = ["arm", "runs", "float32", "bfloat16", "bfloat16 changes", "each seed"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[0])


def precision_chosen(profile: str = "pilot") -> str:
    """What the rule of precision.yaml says so far, in a sentence. Empty where the profile chooses none."""
    found = _precisions(profile)
    if not found:
        return ""
    cells = [scores for pair in found.values() for scores in pair]
    if not all(scores.complete for scores in cells):
        return "Not decided yet: runs in one of the precisions are missing."

    bound = min(_chance(cells), MOST)
    changes = [abs(_mean(_gains(full, half))) for full, half in found.values()]
    told = f"it changes an arm's mean by {max(changes):.2f} points at most, and {bound:.2f} are allowed"
    if max(changes) < bound:
        return f"bfloat16 **may be taken**: {told}."
    return f"bfloat16 **may not be taken**: {told}."


def best_rate(by_rate: dict[float, Scores]) -> float | None:
    """The rate with the highest mean, of equal ones the lowest; None while a run is missing."""
    if not all(scores.complete for scores in by_rate.values()):
        return None
    return max(sorted(by_rate), key=lambda rate: by_rate[rate].mean)


def _is_edge(rate: float, by_rate: dict[float, Scores]) -> bool:
    return rate in (min(by_rate), max(by_rate))


def _compared(first: Scores, second: Scores) -> tuple[str, ...]:
    """In words: how many runs are there, both means, what the second gains in the mean, and in each seed."""
    runs = f"{len(first.by_seed) + len(second.by_seed)} of {first.planned + second.planned}"
    means = [f"{one.mean:.1f}" if one.by_seed else "–" for one in (first, second)]
    gains = _gains(first, second)
    gain = f"{_mean(gains):+.2f}" if gains else "–"
    each = ", ".join(f"{seed}: {gain:+.1f}" for seed, gain in gains.items()) or "–"
    return runs, *means, gain, each


def _cell(scores: Scores, is_best: bool) -> str:
    if not scores.by_seed:
        return "not run yet"
    each = ", ".join(f"{value:.1f}" for _, value in sorted(scores.by_seed.items()))
    return f"{scores.mean:.2f} ({each})" + (" *" if is_best else "")


def _regimes(profile: str) -> dict[tuple[int, int], tuple[Scores, Scores]]:
    if not (_file(profile, "rates").exists() and _file(profile, "study").exists()):  # no search for a regime
        return {}
    configs, results = planned(profile, "study")
    places = dict.fromkeys((config.train_images, config.epochs) for config in configs)
    found = {}
    for place in places:
        own = [config for config in configs if (config.train_images, config.epochs) == place]
        plain = [config for config in own if config.arm == "gap_fc"]
        mixed = [config for config in own if config.arm == "gap_fc_cutmix"]
        found[place] = (_scores(plain, results), _scores(mixed, results))
    return found


def _rates(profile: str) -> dict[str, dict[float, Scores]]:
    configs, results = planned(profile, "rates")
    found = {}
    for arm in READ:
        own = [config for config in configs if config.arm == arm]
        lrs = sorted({config.lr for config in own})
        if lrs:
            found[arm] = {lr: _scores([config for config in own if config.lr == lr], results) for lr in lrs}
    return found


def _precisions(profile: str) -> dict[str, tuple[Scores, Scores]]:
    configs, results = planned(profile, "precision")
    found = {}
    for arm in dict.fromkeys(config.arm for config in configs):
        own = [config for config in configs if config.arm == arm]
        full = [config for config in own if config.autocast == "none"]
        half = [config for config in own if config.autocast == "bfloat16"]
        found[arm] = (_scores(full, results), _scores(half, results))
    return found


def _chance(cells: Sequence[Scores]) -> float:
    """How far the means of two sets of seeds may lie apart by chance: twice the standard error of their difference."""
    seeds = cells[0].planned
    variance = statistics.fmean(statistics.variance(scores.by_seed.values()) for scores in cells)
    return 2 * math.sqrt(variance * 2 / seeds)


def _scores(configs: Sequence[RunConfig], results: str) -> Scores:
    found = {}
    for config in configs:
        run = as_recorded(config, resolve(results))
        if run is not None:
            found[config.seed] = run.metrics[f"top1_{READ[config.arm]}_last"]
    return Scores(len(configs), found)


def _gains(plain: Scores, mixed: Scores) -> dict[int, float]:
    seeds = sorted(plain.by_seed.keys() & mixed.by_seed.keys())
    return {seed: mixed.by_seed[seed] - plain.by_seed[seed] for seed in seeds}


def _mean(gains: dict[int, float]) -> float:
    mean = sum(gains.values()) / len(gains)
    return round(mean, 9)  # accuracies are decimals: a point is a point


def _nothing(profile: str, name: str) -> str:
    waiting = open_values(_file(profile, name)) if _file(profile, "rates").exists() else ()
    if waiting:
        return f"*Still to be chosen before anything of it runs: {', '.join(sorted(waiting))}.*"
    return "*This is chosen in the profile `pilot`.*"


def _file(profile: str, name: str) -> Path:
    return ROOT / "notebooks" / "profiles" / profile / f"{name}.yaml"
