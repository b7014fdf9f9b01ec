"""The claims of results/claims.yaml: what decides them, the runs they read, and their verdicts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from saol_lib.evidence.statistics import (
    LEVEL,
    Comparison,
    compare,
    holm,
    p_above,
    partial_conjunction,
    seeds_to_decide,
    turned,
)
from saol_lib.training.profiles import OPEN  # of claims.yaml too: what needs such a value has not run
from saol_lib.training.runs import RESULTS, Run, load_runs

SCALES = ("cpu", "paper")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, several times faster
MEASURED = ("method", "measure")  # what the config of a measured network has besides those of a run


class Side(NamedTuple):
    """One side of a test: an arm, the metric that is read, and the config of its runs as patterns."""

    arm: str
    metric: str
    where: dict


class Test(NamedTuple):
    """One paired comparison a - b over the seeds 0 to seeds - 1 of the folder `results`."""

    label: str
    a: Side
    b: Side
    results: str
    seeds: int
    direction: str = "higher"  # what is claimed: a is "higher" or "lower" than b
    reading: str | None = None  # of L_SS1; None: the same in every reading
    in_short: str | None = None  # what is compared, in words, where README's short answer has it


class Count(NamedTuple):
    """A number that is counted or timed, not trained: `quantity` of a JSON file, over another one, and its band.

    One without a band is shown beside the others and decides nothing.
    """

    label: str
    file: str
    quantity: str
    band: tuple[float, float] | None = None
    over: str | None = None

    def holds(self, number: float) -> bool:
        low, high = self.band
        return low <= number <= high


@dataclass(frozen=True)
class Plan:
    """The tests of a claim at one scale: `needs` of them have to hold, in `readings` of its readings.

    beside: comparisons that are shown with them, to read them by, and decide nothing.
    """

    tests: tuple[Test, ...] = ()
    needs: int = 0
    readings: int = 1
    beside: tuple[Test, ...] = ()

    @cached_property
    def groups(self) -> list[list[int]]:
        """The positions of each reading's tests: its own, and those that are the same in every reading."""
        names = dict.fromkeys(test.reading for test in self.tests if test.reading)
        if not names:
            return [list(range(len(self.tests)))]
        return [[i for i, test in enumerate(self.tests) if test.reading in (None, name)] for name in names]


class Claim(NamedTuple):
    """A claim of the paper in our words, and what decides it; `paper` and `cpu` are its scales."""

    id: str
    statement: str
    section: str
    notebook: str
    cpu: Plan = Plan()
    paper: Plan = Plan()
    smallest_effect: float = 0.0  # percentage points
    margin: float | None = None  # not None: non-inferiority, a may be this much behind b
    control: str | None = None
    counted: tuple[Count, ...] = ()
    known: str = ""  # what we know of the paper's own result


class Found(NamedTuple):
    """A test and what its finished pairs say; None where there is none."""

    test: Test
    comparison: Comparison | None

    @property
    def pairs(self) -> int:
        return self.comparison.n if self.comparison else 0

    @property
    def complete(self) -> bool:
        return self.pairs == self.test.seeds

    @property
    def claimed(self) -> Comparison:
        """The comparison turned so that what is claimed is above 0."""
        return self.comparison if self.test.direction == "higher" else turned(self.comparison)


class Verdict(NamedTuple):
    word: str
    detail: str = ""
    direction: str = "none"  # what was seen so far "agrees" or "disagrees"; "none": nothing seen, or mixed
    p_value: float = 1.0  # Holm's, of what was decided

    def __str__(self) -> str:
        return f"{self.word}{self.detail}"


# --- reading the file -------------------------------------------------------------------------------------------------


class Ledger(NamedTuple):
    claims: tuple[Claim, ...]
    controls: dict[str, Claim]


def load_claims(path: Path = RESULTS / "claims.yaml") -> Ledger:
    """The claims and their controls; ValueError with one sentence for an entry that is not understood."""
    entries = yaml.load(path.read_text(), Loader=LOADER)
    settings = entries["settings"] | dict.fromkeys(MEASURED)
    claims = tuple(_claim(entry, settings) for entry in entries["claims"])
    controls = {entry["id"]: _claim(entry, settings) for entry in entries["controls"]}

    for claim in claims:
        if claim.control and claim.control not in controls:
            raise ValueError(f"claim {claim.id} names the control {claim.control!r}; known are {', '.join(controls)}")
    names = [claim.id for claim in claims]
    if len(set(names)) < len(names):
        raise ValueError("claims.yaml has two claims of one id; give each its own")
    return Ledger(claims, controls)


def _claim(entry: dict, settings: dict) -> Claim:
    name = entry.get("id", "without id")
    unknown = set(entry) - set(Claim._fields)
    if unknown:
        raise ValueError(f"claim {name} has unknown {', '.join(sorted(unknown))}; known are {', '.join(Claim._fields)}")
    plans = {scale: _plan(name, entry[scale], settings) for scale in SCALES if scale in entry}
    counted = tuple(Count(**count) for count in entry.get("counted", ()))
    return Claim(**(entry | plans | {"counted": counted}))


def _plan(name: str, entry: dict, settings: dict) -> Plan:
    tests = tuple(_test(name, test, settings) for test in entry["tests"])
    groups = Plan(tests).groups
    fewest = min(len(group) for group in groups)
    beside = tuple(_test(name, test, settings) for test in entry.get("beside", ()))
    plan = Plan(tests, entry.get("needs", fewest), entry.get("readings", 1), beside)
    if not 1 <= plan.needs <= fewest or not 1 <= plan.readings <= len(groups):
        raise ValueError(
            f"claim {name} needs {plan.needs} tests in {plan.readings} readings; it has {fewest} tests in {len(groups)}"
        )
    return plan


def _test(name: str, entry: dict, settings: dict) -> Test:
    place, direction = entry["at"], entry.get("direction", "higher")
    if direction not in ("higher", "lower"):
        raise ValueError(f"claim {name} has direction {direction!r}; expected higher or lower")
    for side in (entry["a"], entry["b"]):
        if side["arm"] not in place.get("rates", {side["arm"]: None}):
            raise ValueError(f"claim {name} has no rate for the arm {side['arm']}; add it to the rates of its place")
    sides = [_side(entry[key], settings, place) for key in ("a", "b")]
    return Test(
        entry["label"],
        *sides,
        place["results"],
        entry["seeds"],
        direction,
        entry.get("reading"),
        entry.get("in_short"),
    )


def _side(entry: dict, settings: dict, place: dict) -> Side:
    """A side's config: the defaults, then those of where the test is made, its arm's rate, and its own."""
    arm = entry["arm"]
    rate = {"lr": place["rates"][arm]} if "rates" in place else {}
    where = settings | place["where"] | rate | entry.get("where", {}) | {"arm": arm}
    return Side(arm, entry["metric"], where)


# --- the runs of a test -----------------------------------------------------------------------------------------------


def find(
    claims: Sequence[Claim],
    scale: str,
    results: Path = RESULTS,
    which: str = "tests",
) -> dict[str, list[Found]]:
    """What the finished runs of `results` say about every test of the claims at one scale.

    which: "tests", or "beside", what is shown with them.
    ValueError: two runs fit one side and seed, or runs cannot be compared; the sentence names claim and test.
    """
    runs: dict[str, list[Run]] = {}
    found = {}
    for claim in claims:
        found[claim.id] = []
        for test in getattr(getattr(claim, scale), which):
            if test.results not in runs:
                folder = results / test.results
                runs[test.results] = [*load_runs(folder), *load_runs(folder, "measures")]
            try:
                found[claim.id].append(Found(test, measure(test, runs[test.results])))
            except ValueError as error:
                raise ValueError(f"claim {claim.id}, {test.label}: {error}") from None
    return found


def measure(test: Test, runs: Sequence[Run]) -> Comparison | None:
    """The test's comparison over those of its seeds that finished on both sides; None if there is none."""
    a, b = _select(test.a, test.seeds, runs), _select(test.b, test.seeds, runs)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    where_a, where_b = test.a.where, test.b.where
    varies = {name for name in where_a | where_b if where_a.get(name) != where_b.get(name)}
    pairs = [a[seed] for seed in seeds], [b[seed] for seed in seeds]
    return compare(*pairs, test.a.metric, test.b.metric, varies=varies - {"start"})


def _select(side: Side, seeds: int, runs: Sequence[Run]) -> dict[int, Run]:
    """The one run of each planned seed that fits a side; runs of further seeds are not read."""
    if OPEN in side.where.values():
        return {}
    chosen = {}
    for run in runs:
        seed = run.config["seed"]
        if seed >= seeds or not _fits(run.config, side.where):
            continue
        if seed in chosen:
            raise ValueError(f"runs {chosen[seed].id} and {run.id} both fit; claims.yaml has to name one")
        chosen[seed] = run
    return chosen


def _fits(config: Mapping, where: Mapping) -> bool:
    return all(fnmatchcase(str(config.get(name)), str(pattern)) for name, pattern in where.items())


# --- the verdicts -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A claim at one scale, and what was found about it and about its control."""

    claim: Claim
    plan: Plan
    found: Sequence[Found]
    control: Sequence[Found] = ()

    @property
    def complete(self) -> bool:
        return all(one.complete for one in [*self.found, *self.control])


def judge(ledger: Ledger, scale: str, results: Path = RESULTS) -> dict[str, tuple[list[Found], Verdict]]:
    """Every claim at one scale: what was found about its tests, and its verdict."""
    found = find(ledger.claims, scale, results)
    controls = find(tuple(ledger.controls.values()), scale, results)
    cases = {}
    for claim in ledger.claims:
        plan = getattr(claim, scale)
        if plan.tests:
            cases[claim.id] = Case(claim, plan, found[claim.id], controls.get(claim.control, ()))

    decided = verdicts(cases)
    for claim in ledger.claims:
        if claim.counted:
            decided[claim.id] = judge_counts(claim, results)
    return {claim.id: (found[claim.id], decided.get(claim.id, Verdict("no test"))) for claim in ledger.claims}


def verdicts(cases: Mapping[str, Case]) -> dict[str, Verdict]:
    """The rule at the top of results/claims.yaml for a whole family of claims, run or not.

    A claim gets a verdict as soon as nothing that the others may still bring can change it.
    """
    least = _decide_all(cases, unknown=1.0)
    all_there = all(case.complete for case in cases.values())
    most = least if all_there else _decide_all(cases, unknown=0.0)
    decided = {}
    for name, case in cases.items():
        verdict = least[name]
        if verdict.word != most[name].word:
            verdict = Verdict("open", ": its p is judged when the other claims have run")
        decided[name] = verdict._replace(direction=_direction(case))
    return decided


def _decide_all(cases: Mapping[str, Case], unknown: float) -> dict[str, Verdict]:
    """unknown: the p of claims that have not all their runs."""
    early = {name: _undecidable(case) for name, case in cases.items()}
    in_favour, against = {}, {}
    for name, case in cases.items():
        if early[name] is None:
            in_favour[name], against[name] = _p_values(case)
        else:
            failed = early[name].word.startswith("not testable")
            in_favour[name] = against[name] = 1.0 if failed else unknown
    in_favour, against = holm(in_favour), holm(against)
    return {
        name: early[name] or _decide(case, in_favour[name], against[name], len(cases)) for name, case in cases.items()
    }


def _undecidable(case: Case) -> Verdict | None:
    """Why this claim cannot be decided yet, or at all."""
    if case.control and all(one.complete for one in case.control) and not passes(case.control):
        return Verdict("not testable at this scale", f" (control failed: {_effect(case.control[0])})")
    if not any(one.pairs for one in case.found):
        return Verdict("not run")
    if not case.complete:
        lost = "" if _may_hold(case) else "; it can no longer be supported"
        return Verdict("incomplete", f" ({_how_far(case)}{lost})")
    return None


def _how_far(case: Case) -> str:
    """How many tests are complete, where some are; and the seeds of the test that has the fewest."""
    tests = [*case.found, *case.control]
    worst = min(tests, key=lambda one: one.pairs / one.test.seeds)
    told = f"{worst.pairs} of {worst.test.seeds} seeds"
    whole = sum(one.complete for one in case.found)
    if whole and len(case.found) > 1:
        return f"{whole} of {len(case.found)} tests complete; of another {told}"
    return told


def _may_hold(case: Case) -> bool:
    """Whether the tests that are not complete, if all of them held, would be enough beside those that do."""
    held = [not one.complete or _holds(case.claim, one.claimed) for one in case.found]
    return _are_enough(case.plan, held)


def passes(control: Sequence[Found]) -> bool:
    """A positive control passes if its effect is above 0 by the one-sided t test; it is no member of the family."""
    return all(one.claimed.p_value <= LEVEL for one in control)


def _effect(found: Found) -> str:
    effect = found.comparison
    return f"{found.test.label} {effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"


def _p_values(case: Case) -> tuple[float, float]:
    """The p that the claim holds, and the p that so much is the other way round that it cannot hold.

    A test whose effect is not of the size that the rule asks for counts with p = 1: the p and the size of a verdict are
    those of the same tests.
    """
    plan, claim = case.plan, case.claim
    bar = threshold(claim)
    tests = [one.claimed for one in case.found]
    mean, spread, n = (np.array([getattr(test, name) for test in tests]) for name in ("mean", "spread", "n"))
    holds = [_holds(claim, test) for test in tests]
    opposite = [_opposite(claim, test) for test in tests]
    above = np.where(holds, p_above(mean, spread, n, bar), 1.0).tolist()
    below = np.where(opposite, p_above(-mean, spread, n, -bar), 1.0).tolist()

    in_favour = [partial_conjunction([above[i] for i in group], plan.needs) for group in plan.groups]
    against = [partial_conjunction([below[i] for i in group], len(group) - plan.needs + 1) for group in plan.groups]
    excluded = len(plan.groups) - plan.readings + 1
    return partial_conjunction(in_favour, plan.readings), partial_conjunction(against, excluded)


def threshold(claim: Claim) -> float:
    """What the mean has to be above: 0, or for non-inferiority the margin below it."""
    return 0.0 if claim.margin is None else -claim.margin


def _decide(case: Case, in_favour: float, against: float, family: int) -> Verdict:
    if in_favour <= LEVEL:
        return Verdict("supported", f", Holm {_p_in_words(in_favour)}", p_value=in_favour)
    if against <= LEVEL:
        return Verdict("contradicted", f", Holm {_p_in_words(against)}", p_value=against)
    large_enough = [not _too_small(case.claim, one.claimed) for one in case.found]
    if not _are_enough(case.plan, large_enough):
        return Verdict("smaller than that")
    return Verdict("inconclusive", f": {_what_would_tell(case, family)}")


def _p_in_words(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _holds(claim: Claim, test: Comparison) -> bool:
    if claim.margin is not None:
        return test.low > -claim.margin
    return test.mean >= claim.smallest_effect


def _opposite(claim: Claim, test: Comparison) -> bool:
    if claim.margin is not None:
        return test.high < -claim.margin
    return test.mean <= -claim.smallest_effect


def _too_small(claim: Claim, test: Comparison) -> bool:
    bar = claim.smallest_effect if claim.margin is None else -claim.margin
    return test.high < bar


def _are_enough(plan: Plan, held: Sequence[bool]) -> bool:
    """`needs` tests hold in `readings` readings; held: of each test."""
    count = sum(sum(held[i] for i in group) >= plan.needs for group in plan.groups)
    return count >= plan.readings


def _what_would_tell(case: Case, family: int) -> str:
    """How many seeds tell two truths apart, at the largest spread seen among the tests.

    Which verdict they would bring depends on the truth: one close to the smallest effect stays undecided with them.
    """
    claim = case.claim
    apart = f"no effect from one of {claim.smallest_effect}"
    width = claim.smallest_effect
    if claim.margin is not None:
        apart = f"equal from {claim.margin} behind"
        width = claim.margin
    spread = max(one.comparison.spread for one in case.found)
    seeds = seeds_to_decide(spread, width, LEVEL / family)
    return f"about {seeds} seeds would tell {apart}"


def _direction(case: Case) -> str:
    """Whether the means seen so far lie where the claim says, in as many tests and readings as it needs."""
    bar = threshold(case.claim)
    signs = []
    for group in case.plan.groups:
        tests = [case.found[i] for i in group]
        seen = [one.claimed.mean - bar for one in tests if one.comparison]
        needed = min(case.plan.needs, len(seen))
        if not seen:
            continue
        agree = sum(value > 0 for value in seen)
        disagree = sum(value < 0 for value in seen)
        if agree >= needed:
            signs.append("agrees")
        elif disagree >= needed:
            signs.append("disagrees")
        else:
            signs.append("none")
    if not signs:
        return "none"
    if signs.count("agrees") >= min(case.plan.readings, len(signs)):
        return "agrees"
    return "disagrees" if set(signs) == {"disagrees"} else "none"


# --- claims that are counted ------------------------------------------------------------------------------------------


def numbers(claim: Claim, results: Path = RESULTS) -> list[tuple[Count, float | None]]:
    """Each count of a claim and its number; None where its file or quantity is not there yet."""
    return [(count, _number(count, results)) for count in claim.counted]


def _number(count: Count, results: Path) -> float | None:
    path = results / count.file
    values = json.loads(path.read_text()) if path.exists() else {}
    names = [name for name in (count.quantity, count.over) if name]
    if any(name not in values for name in names):
        return None
    return values[count.quantity] / (values[count.over] if count.over else 1)


def judge_counts(claim: Claim, results: Path = RESULTS) -> Verdict:
    """A counted claim is supported if every number that has a band lies in it, both ends included."""
    inside = []
    for count, number in numbers(claim, results):
        if count.band is None:
            continue
        if number is None:
            return Verdict("not run")
        inside.append(count.holds(number))
    word = "supported" if all(inside) else "contradicted"
    direction = "none"
    if len(set(inside)) == 1:
        direction = "agrees" if inside[0] else "disagrees"
    return Verdict(word, f" (counted: {sum(inside)} of {len(inside)} in their bands)", direction)
