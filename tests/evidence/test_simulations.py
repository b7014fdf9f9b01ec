"""The rule of the verdicts, tried on studies whose truth is known: claims.yaml's own claims, tests, needs and seeds.

Each test of a claim has its own seeds; differences are normal with a spread of 0.7 (1.4 times the smallest effect).
"""

import numpy as np
import pytest

from saol_lib.evidence.claims import SCALES, Case, Found, load_claims, verdicts
from saol_lib.evidence.statistics import LEVEL, Comparison, interval, p_above

LEDGER = load_claims()
TRAINED = [claim for claim in LEDGER.claims if claim.cpu.tests]
SPREAD = 1.4  # of the differences, in smallest effects: 0.7 points for claims about accuracies


def simulate(effect, studies, seed=0, only=None):
    """`studies` whole studies {id: Case} at CPU scale; effect: in smallest effects, of all claims or of `only`."""
    generator = np.random.default_rng(seed)
    columns = {}
    for claim in TRAINED:
        true = effect if only in (None, claim.id) else 0.0
        mean = 0.0 if claim.margin is None else -claim.margin
        mean += true * claim.smallest_effect
        spread = SPREAD * claim.smallest_effect
        columns[claim.id] = [
            column(test, generator.normal(mean, spread, (studies, test.seeds))) for test in claim.cpu.tests
        ]
    for i in range(studies):
        yield {claim.id: Case(claim, claim.cpu, [found[i] for found in columns[claim.id]]) for claim in TRAINED}


def column(test, claimed):
    """One `Found` a study from differences (studies, n) in the direction that is claimed."""
    test = test._replace(direction="higher")
    n = claimed.shape[1]
    means, spreads = claimed.mean(axis=1), claimed.std(axis=1, ddof=1)
    low, high = interval(means, spreads, n)
    p = p_above(means, spreads, n)
    rows = zip(means.tolist(), low.tolist(), high.tolist(), p.tolist(), spreads.tolist(), strict=True)
    return [Found(test, Comparison(mean, a, b, q, n, spread)) for mean, a, b, q, spread in rows]


def shares(effect, studies, **options):
    """{id: the share of studies in which the claim is supported}."""
    count = dict.fromkeys([claim.id for claim in TRAINED], 0)
    for cases in simulate(effect, studies, **options):
        for name, verdict in verdicts(cases).items():
            count[name] += verdict.word == "supported"
    return {name: value / studies for name, value in count.items()}


def test_no_effect_is_called_one_in_at_most_5_of_100_studies():
    studies, false_support, false_contradiction = 2000, 0, 0
    for cases in simulate(0.0, studies):
        words = {verdict.word for verdict in verdicts(cases).values()}
        false_support += "supported" in words
        false_contradiction += "contradicted" in words
    print(
        f"family-wise: false support {false_support / studies:.3f}, contradiction {false_contradiction / studies:.3f}"
    )
    assert false_support <= LEVEL * studies and false_contradiction <= LEVEL * studies


@pytest.mark.parametrize("n", sorted({test.seeds for claim in TRAINED for test in claim.cpu.tests} | {3, 5}))
def test_intervals_cover_what_they_say(n):
    draws = np.random.default_rng(1).normal(1.0, 0.7, (20_000, n))
    low, high = interval(draws.mean(axis=1), draws.std(axis=1, ddof=1), n)
    coverage = ((low <= 1.0) & (high >= 1.0)).mean()
    print(f"n = {n}: {coverage:.4f}")
    assert 0.94 <= coverage <= 0.96


def planned(claim):
    return min(test.seeds for test in claim.cpu.tests)


@pytest.mark.parametrize("n", [8, 12])
def test_one_test_has_the_power(n):
    """An effect of 1.0 at a spread of 0.7, at p = 0.05."""
    draws = np.random.default_rng(4).normal(1.0, 0.7, (5000, n))
    mean = draws.mean(axis=1)
    power = ((p_above(mean, draws.std(axis=1, ddof=1), n) <= LEVEL) & (mean >= 0.5)).mean()
    print(f"n = {n}: {power:.3f}")
    assert power >= 0.8


def test_a_study_of_true_claims_supports_each_of_them():
    """After Holm. Claims with 12 seeds have the power; with 8 those whose tests all have to hold fall short of 0.8."""
    found = shares(2.0, 400)
    print({name: round(share, 2) for name, share in found.items()})
    for claim in TRAINED:
        assert found[claim.id] >= (0.9 if planned(claim) == 12 else 0.65), claim.id
    assert sum(found.values()) / len(found) >= 0.8


@pytest.mark.parametrize(("claim", "least"), [("C4", 0.8), ("C5", 0.55)])
def test_the_only_true_claim_of_a_study(claim, least):
    """The hardest case for Holm: 12 seeds still have the power, 8 have not; the head of claims.yaml says so."""
    found = shares(2.0, 400, only=claim)
    print(claim, found[claim])
    assert found[claim] >= least
    assert sum(share for name, share in found.items() if name != claim) <= LEVEL


def test_no_verdict_changes_when_the_runs_of_other_claims_come():
    """Claims finish in any order; a verdict given is the verdict at the end. `open` is none."""
    generator = np.random.default_rng(2)
    given = 0
    for cases in simulate(1.0, 40, seed=3):
        final = {name: verdict.word for name, verdict in verdicts(cases).items()}
        assert "open" not in final.values()
        waiting = {
            name: case._replace(found=[Found(one.test, None) for one in case.found]) for name, case in cases.items()
        }
        for name in generator.permutation(list(cases)):
            waiting[name] = cases[name]
            for claim, verdict in verdicts(waiting).items():
                if verdict.word in ("not run", "open"):
                    continue
                assert verdict.word == final[claim]
                given += 1
    assert given > 1000


def test_more_seeds_than_planned_would_not_be_looked_at():
    """Looking after each seed from 6 to 14 was the old rule's fault: the number is fixed before."""
    for claim in LEDGER.claims:
        for scale in SCALES:
            assert all(test.seeds in (3, 5, 8, 12) for test in getattr(claim, scale).tests)
