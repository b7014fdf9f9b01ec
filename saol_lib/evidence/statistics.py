"""Paired comparisons of runs, and the statistics of the verdicts (the rule is at the top of results/claims.yaml)."""

import json
import math
from collections.abc import Collection, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from saol_lib.training.runs import Run, setting

LEVEL = 0.05  # of a family of claims; the two-sided intervals are of 95 %
MOST_FLIPS = 16  # up to so many pairs the sign-flip p is exact; beyond, it is not computed
MOST_SEEDS = 1000


class Comparison(NamedTuple):
    """Per-seed differences a - b in percentage points, and what they say about their mean.

    low, high: the two-sided 95 % t interval, NaN for one pair. p_value: the one-sided paired t test of a mean above 0,
    1 for one pair. sign_flip: the exact p of the same question by flipping signs, beside it as a check (NaN beyond 16
    pairs). spread: the differences' standard deviation. differences: one for each of `seeds`.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    spread: float = math.nan
    sign_flip: float = math.nan
    differences: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


def compare(runs_a, runs_b, metric, metric_b=None, *, varies: Collection[str] = (), mixed_sources=False) -> Comparison:
    """Compare `metric` of runs a with `metric_b` (None: the same) of runs b, paired by seed.

    varies: config fields, besides arm and seed, in which a and b may differ. mixed_sources: allow runs from different
    sources of saol_lib or different data, and measures that were taken otherwise. ValueError: failed, unpaired or
    otherwise different runs, a metric that is unknown or not a finite number.
    """
    origin = () if mixed_sources else ("sources", "data", "measured")
    _check_finished([*runs_a, *runs_b])
    _check_alike(runs_a, runs_b, {"arm", *varies}, origin)

    a = _by_seed(runs_a, metric)
    b = _by_seed(runs_b, metric_b or metric)
    if a.keys() != b.keys():
        raise ValueError(f"seeds {sorted(a.keys() ^ b.keys())} are on one side only; train the missing runs first")
    if "start" not in varies:
        _check_starts(runs_a, runs_b)

    seeds = sorted(a)
    return describe([a[seed] - b[seed] for seed in seeds], seeds)


def describe(differences: Sequence[float], seeds: Sequence[int] = ()) -> Comparison:
    """The `Comparison` that these paired differences give."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else math.nan
    low, high = interval(mean, spread, n)
    return Comparison(
        mean,
        float(low),
        float(high),
        float(p_above(mean, spread, n)),
        n,
        spread,
        sign_flip(values),
        tuple(values.tolist()),
        tuple(seeds) or tuple(range(n)),
    )


def turned(comparison: Comparison) -> Comparison:
    """The comparison b - a."""
    return describe([-value for value in comparison.differences], comparison.seeds)


def shifted(comparison: Comparison, bar: float) -> Comparison:
    """The comparison's distance above a bar: its p values are those of a mean above that."""
    if not bar:
        return comparison
    return describe([value - bar for value in comparison.differences], comparison.seeds)


# --- one test: numbers, or arrays of them for many tests at once ------------------------------------------------------


def interval(mean, spread, n: int):
    """The ends of the two-sided 95 % t interval of the mean of n differences; NaN for n = 1."""
    from scipy.special import stdtrit  # slow to load, and needed where something is compared only

    half = stdtrit(max(n - 1, 1), 1 - LEVEL / 2) * spread / math.sqrt(n)
    return mean - half, mean + half


def p_above(mean, spread, n, threshold: float = 0.0):
    """The one-sided paired t test that the mean of n differences is above a threshold; 1 for n = 1.

    Where all differences are equal t says nothing: then their signs decide, and p is never 0.
    """
    from scipy.special import stdtr

    mean, spread, n = np.asarray(mean, dtype=float), np.asarray(spread, dtype=float), np.asarray(n)
    above = mean - threshold
    constant = spread < 1e-9
    error = np.where(constant, 1.0, spread) / np.sqrt(n)
    by_signs = np.where(above > 0, 0.5**n, 1.0)
    by_t = stdtr(np.maximum(n - 1, 1), -above / error)
    return np.where(n < 2, 1.0, np.where(constant, by_signs, by_t))


def sign_flip(differences: np.ndarray) -> float:
    """The share of all 2^n sign patterns of differences (n,) whose sum is at least the one observed."""
    n = len(differences)
    if n > MOST_FLIPS:
        return math.nan
    patterns = np.arange(2**n)[:, None] >> np.arange(n) & 1
    sums = (1 - 2 * patterns) @ differences
    return float((sums >= differences.sum() - 1e-9).mean())


def seeds_to_decide(spread: float, width: float, level: float) -> int:
    """The fewest seeds at which 0 and an effect of `width` cannot both be left standing, at this spread.

    A mean that is not above 0 at the one-sided `level` then has a 95 % interval that ends below `width`.
    """
    from scipy.special import stdtrit

    for n in range(2, MOST_SEEDS):
        reach = stdtrit(n - 1, 1 - level) + stdtrit(n - 1, 1 - LEVEL / 2)
        if reach * spread / math.sqrt(n) <= width:
            return n
    return MOST_SEEDS


# --- several tests, several claims ------------------------------------------------------------------------------------


def partial_conjunction(p_values: Sequence[float], needs: int) -> float:
    """The p that at least `needs` of the tests hold (Benjamini and Heller 2008, by Bonferroni)."""
    ordered = sorted(p_values)
    left = len(ordered) - needs + 1
    return min(1.0, left * ordered[needs - 1])


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's adjusted p of every member of a family; a member that has not run counts with p = 1."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, (len(p_values) - rank) * p_values[name])
        adjusted[name] = min(1.0, largest)
    return adjusted


# --- what may be compared ---------------------------------------------------------------------------------------------


def _check_finished(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.status != "finished":
            raise ValueError(f"run {run.id} did not finish; train it again before comparing")


def _check_alike(runs_a: Sequence[Run], runs_b: Sequence[Run], varies: Collection[str], origin: Collection[str]):
    """Within a side everything is alike; between the sides everything but what `varies`."""
    facts_a = [_facts(run, origin) for run in runs_a]
    facts_b = [_facts(run, origin) for run in runs_b]
    fields = set(chain.from_iterable([*facts_a, *facts_b])) - {"seed"}
    for field in sorted(fields):
        groups = [facts_a, facts_b] if field in varies else [[*facts_a, *facts_b]]
        for group in groups:
            values = {json.dumps(facts.get(field)) for facts in group}
            if len(values) > 1:
                shown = ", ".join(sorted(values))
                raise ValueError(f"the runs differ in {field} ({shown}); compare runs alike in it")


def _facts(run: Run, origin: Collection[str]) -> dict:
    """What has to be alike: the whole setting, fields that came later at their default, and where it is from."""
    return setting(run.config) | {name: run.provenance.get(name) for name in origin}


def _check_starts(runs_a: Sequence[Run], runs_b: Sequence[Run]) -> None:
    """Pairs start from one network, unless each side starts from its own arm's."""
    starts = {run.config["seed"]: run.config.get("start") for run in runs_b}
    for run in runs_a:
        one, other = run.config.get("start"), starts[run.config["seed"]]
        own = setting(run.config)["start"] == "itself" and run.config["arm"] != runs_b[0].config["arm"]
        if one != other and not own:
            raise ValueError(
                f"the runs of seed {run.config['seed']} start from {one} and {other}; give one start a pair"
            )


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    found = {}
    for run in runs:
        found[run.config["seed"]] = _number(run, metric)
    if not runs or len(found) < len(runs):
        raise ValueError(f"{len(runs)} runs have {len(found)} seeds; give one run for each seed, and at least one")
    return found


def _number(run: Run, metric: str) -> float:
    if metric not in run.metrics:
        raise ValueError(f"run {run.id} has no {metric!r}; it has {', '.join(sorted(run.metrics))}")
    value = run.metrics[metric]
    number = isinstance(value, int | float) and math.isfinite(value)
    if not number:
        raise ValueError(f"run {run.id} has {metric} = {value}; expected a finite number, train it again")
    return value
