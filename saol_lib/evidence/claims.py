"""From runs to verdicts: paired comparisons, the claims of results/claims.yaml, README's generated tables.

`python -m saol_lib.evidence` writes the tables anew from results/; `--check` only says whether they are up to date.
"""

import json
import math
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from scipy import stats

from saol_lib.training.runs import RESULTS, ROOT, Run, load_runs, setting, write_whole

_BLOCK = re.compile(r"(<!-- (claims|runs \w+):begin -->).*?(<!-- \2:end -->)", re.DOTALL)


class Comparison(NamedTuple):
    """Per-seed differences a - b in percentage points: mean, 95 % BCa interval, two-sided sign-flip p, pairs.

    The interval is NaN for fewer than three pairs, and the mean alone where all differences are equal.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def compare(runs_a, runs_b, metric, metric_b=None, *, varies: Collection[str] = (), mixed_sources=False) -> Comparison:
    """Compare `metric` of runs a with `metric_b` (None: the same) of runs b, paired by seed; p is exact to 16 pairs.

    varies: config fields, besides arm and seed, in which a and b may differ. mixed_sources: allow runs from different
    sources of saol_lib or different data. ValueError: failed, unpaired or otherwise different runs, unknown metric.
    """
    _check_alike((runs_a, runs_b), {"arm", *varies}, () if mixed_sources else ("sources", "data"))
    a, b = _by_seed(runs_a, metric), _by_seed(runs_b, metric_b or metric)
    if a.keys() != b.keys():
        raise ValueError(f"seeds {sorted(a.keys() ^ b.keys())} are on one side only; train the missing runs first")
    deltas = np.array([a[seed] - b[seed] for seed in sorted(a)])
    mean, low, high, p_value = float(deltas.mean()), math.nan, math.nan, 1.0
    if len(deltas) > 1:
        flips = {"permutation_type": "samples", "n_resamples": 2**16, "rng": 0}
        p_value = float(stats.permutation_test((deltas,), np.mean, **flips).pvalue)
    if len(deltas) > 2:
        equal = np.ptp(deltas) < 1e-9
        low, high = (mean, mean) if equal else stats.bootstrap((deltas,), np.mean, rng=0).confidence_interval  # BCa
    return Comparison(mean, float(low), float(high), p_value, len(deltas))


def _check_alike(sides: Sequence[Sequence[Run]], varies: Collection[str], origin: Collection[str]) -> None:
    if failed := [run.id for side in sides for run in side if run.status != "finished"]:
        raise ValueError(f"run {failed[0]} did not finish; train it again before comparing")
    facts = [[run.config | {name: run.provenance.get(name) for name in origin} for run in side] for side in sides]
    for field in sorted({name for side in facts for run in side for name in run} - {"seed", "start"}):
        for group in facts if field in varies else [[*facts[0], *facts[1]]]:
            if len(values := {json.dumps(run.get(field)) for run in group}) > 1:
                raise ValueError(f"the runs differ in {field} ({', '.join(sorted(values))}); compare runs alike in it")


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    if lacking := [run for run in runs if metric not in run.metrics]:
        raise ValueError(f"run {lacking[0].id} has no {metric!r}; it has {', '.join(sorted(lacking[0].metrics))}")
    found = {run.config["seed"]: run.metrics[metric] for run in runs}
    if not runs or len(found) < len(runs):
        raise ValueError(f"{len(runs)} runs have {len(found)} seeds; give one run for each seed, and at least one")
    return found


def verdicts(measured: dict[str, tuple[dict, list[Comparison | None]]]) -> dict[str, str]:
    """The rule at the top of results/claims.yaml: {id: (claim, its tests, None where nothing ran)} to {id: verdict}."""
    done = {k: [t for t in tests if t and t.n >= claim["min_seeds"]] for k, (claim, tests) in measured.items()}
    p_values = {}  # that `needs` of the tests hold: the partial conjunction of Benjamini and Heller (2008)
    for name, (claim, tests) in measured.items():
        if tests and len(done[name]) == len(tests):
            ordered = sorted(t.p_value if t.mean > 0 else 1.0 for t in tests)
            p_values[name] = (len(tests) - claim["needs"] + 1) * ordered[claim["needs"] - 1]
    found, adjusted = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):  # Holm
        adjusted = min(1.0, max(adjusted, (len(p_values) - rank) * p_values[name]))
        found[name] = f"{_decide(measured[name][0], done[name], adjusted)}, Holm p = {adjusted:.3f}"
    for name in measured.keys() - found.keys():
        some = "incomplete" if done[name] else "demonstration only"
        found[name] = some if any(measured[name][1]) else "not run yet"
    return found


def _decide(claim: dict, tests: Sequence[Comparison], p_value: float) -> str:
    smallest, needs = claim["smallest_effect"], claim["needs"]
    if p_value <= 0.05 and sum(t.low > 0 and t.mean >= smallest for t in tests) >= needs:
        return "supported"
    return "not supported" if sum(t.high < smallest for t in tests) > len(tests) - needs else "inconclusive"


def _measure(test: dict, settings: dict, runs: Sequence[Run]) -> Comparison | None:
    """One test of a claim over the seeds that finished on both sides; None if there is none."""
    sides, varies = [], {name for side in (test["a"], test["b"]) for name in side.get("where", {})}
    for side in (test["a"], test["b"]):
        where = settings | {"method": None} | (test.get("where") or {}) | side.get("where", {}) | {"arm": side["arm"]}
        sides.append([r for r in runs if all(fnmatchcase(str(r.config.get(k)), str(v)) for k, v in where.items())])
    seeds = set.intersection(*({run.config["seed"] for run in side} for side in sides))
    sides = [[run for run in side if run.config["seed"] in seeds] for side in sides]
    return compare(*sides, test["a"]["metric"], test["b"]["metric"], varies=varies) if seeds else None


def claims_table(results: Path = RESULTS) -> str:
    """Every claim, what was measured and its verdict, as Markdown. Demonstrations show no interval and no p."""
    ledger, measured = yaml.safe_load((results / "claims.yaml").read_text()), {}
    for claim in ledger["claims"]:
        folders = ("runs", "measures") if claim["evidence"] else ()
        runs = [run for folder in folders for run in load_runs(results / claim["evidence"], folder)]
        measured[claim["id"]] = claim, [_measure(test, ledger["settings"], runs) for test in claim["tests"]]
    decided = verdicts(measured)
    lines = ["| | the claim, in our words (section) | measured, percentage points | verdict |", "|---|---|---|---|"]
    for name, (claim, tests) in measured.items():
        cells = []
        for test, t in ((test, t) for test, t in zip(claim["tests"], tests, strict=True) if t):
            detail = f" [{t.low:+.2f}, {t.high:+.2f}], p = {t.p_value:.3f}" if t.n >= claim["min_seeds"] else ""
            cells.append(f"{test['label']}: {t.mean:+.2f}{detail}, n = {t.n} ({claim['evidence']})")
        cell = "<br>".join(cells) or "–"
        lines.append(f"| {name} | {claim['statement']} ({claim['section']}) | {cell} | {decided[name]} |")
    return "\n".join(lines)


def runs_table(profile: str, results: Path = RESULTS) -> str:
    """Top-1 of a profile's runs as Markdown, one table for each setting, sources and data; never across them."""
    groups: dict[str, dict] = {}
    for run in load_runs(results / profile):
        whole = setting(run.config) | {name: run.provenance.get(name) for name in ("sources", "data")}
        key = json.dumps({k: v for k, v in whole.items() if k not in ("arm", "seed")}, sort_keys=True)
        group = groups.setdefault(key, {})
        for layer in ("gap", "saol"):
            if f"top1_{layer}_last" in run.metrics:
                group.setdefault((run.config["arm"], layer), {})[run.config["seed"]] = run
    settings, lines = [json.loads(key) for key in groups], []
    shown = dict.fromkeys(("dataset", "train_images", "eval_split", "backbone", "epochs"))
    shown |= dict.fromkeys(k for s in settings for k in s if len({str(s.get(k)) for s in settings}) > 1)
    for group, fields in zip(groups.values(), settings, strict=True):
        seconds = {run.id: run.provenance["seconds"] for cell in group.values() for run in cell.values()}
        caption = ", ".join(f"{name}: {fields.get(name)}" for name in shown)
        lines += ["", f"{caption}; {sum(seconds.values()) / 3600:.1f} h of training", ""]
        lines += ["| arm, layer read | last epoch: mean (seeds) | best epoch: mean | last minus GAP-FC's (seeds) |"]
        lines += ["|---|---|---|---|", *(_row(group, *key) for key in group)]
    return "\n".join(lines).strip() or "not run yet"


def _row(group: dict, arm: str, layer: str) -> str:
    base = group.get(("gap_fc_cutmix" if "cutmix" in arm and arm != "gap_fc_cutmix" else "gap_fc", "gap"), {})
    last = {seed: run.metrics[f"top1_{layer}_last"] for seed, run in sorted(group[arm, layer].items())}
    best = np.mean([run.metrics[f"top1_{layer}_best"] for run in group[arm, layer].values()])
    deltas = {k: v - base[k].metrics["top1_gap_last"] for k, v in last.items() if k in base and arm != "gap_fc"}
    return f"| {arm}, {layer} | {_mean(last, '.2f')} | {best:.2f} | {_mean(deltas, '+.2f')} |"


def _mean(by_seed: dict[int, float], spec: str) -> str:
    each = ", ".join(f"{seed}: {value:{spec}}" for seed, value in by_seed.items())
    return f"{np.mean(list(by_seed.values())):{spec}} ({each})" if by_seed else "–"


def render(text: str, results: Path = RESULTS) -> str:
    """README's text with its generated blocks written anew from `results`; ValueError if it has none."""

    def block(found: re.Match) -> str:
        table = claims_table(results) if found[2] == "claims" else runs_table(found[2].split()[1], results)
        return f"{found[1]}\n\n{table}\n\n{found[3]}"

    if not _BLOCK.search(text):
        raise ValueError("README.md has no <!-- claims:begin --> ... <!-- claims:end -->; put the two lines back")
    return _BLOCK.sub(block, text)


def main(check: bool, readme: Path = ROOT / "README.md", results: Path = RESULTS) -> str | None:
    """None, or one sentence: README.md is not up to date, or the runs cannot be compared."""
    try:
        new = render(readme.read_text(), results)
    except ValueError as error:
        return str(error)
    if check and new != readme.read_text():
        return f"{readme.name} is not up to date with {results.name}/; run make claims and commit it"
    return None if check else write_whole(readme, new.encode())
