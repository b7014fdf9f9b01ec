"""Comparisons by hand, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import gap, make
from scipy import stats

from saol_lib.evidence.statistics import (
    compare,
    describe,
    holm,
    p_above,
    partial_conjunction,
    seeds_to_decide,
    turned,
)


def against_zero(deltas, **fields):
    return compare(make(deltas), gap([0.0] * len(deltas)), "top1_saol_last", "top1_gap_last", **fields)


def test_three_pairs_by_hand():
    found = compare(make([71.0, 72.5, 74.0]), gap([70.0, 70.5, 71.0]), "top1_saol_last", "top1_gap_last")
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom; the differences are 1, 2, 3, their spread 1
    assert found.mean == pytest.approx(2.0) and found.n == 3 and found.spread == pytest.approx(1.0)
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5))
    assert found.sign_flip == 1 / 8 and found.differences == (1.0, 2.0, 3.0) and found.seeds == (0, 1, 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=3, max_size=9, unique=True))
def test_p_and_interval_are_scipys(deltas):
    found = against_zero(deltas)
    expected = stats.ttest_1samp(found.differences, 0.0, alternative="greater")
    interval = stats.ttest_1samp(found.differences, 0.0).confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_sign_flip_is_exact():
    assert describe([1.0, 1.5, 2.0, 1.0, 1.2, 0.3]).sign_flip == 1 / 64
    assert describe([3.0, -1.0, 2.0]).sign_flip == 2 / 8  # sums of at least 4: +++ and the observed +-+
    assert math.isnan(describe([1.0] * 17).sign_flip)


def test_one_pair_has_no_interval_and_decides_nothing():
    found = against_zero([3.0])
    assert math.isnan(found.low) and math.isnan(found.high) and found.p_value == 1.0


def test_equal_differences_are_not_certain():
    found = against_zero([1.5] * 4)
    assert (found.mean, found.low, found.high) == (1.5, 1.5, 1.5) and found.p_value == 1 / 16
    assert against_zero([0.0] * 4).p_value == 1.0 and against_zero([-1.0] * 4).p_value == 1.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=2, max_size=8))
def test_swapping_the_sides_turns_it(deltas):
    a, b = make(deltas), make([0.0] * len(deltas), arm="saol_sd")
    there, back = compare(a, b, "top1_saol_last"), compare(b, a, "top1_saol_last")
    assert turned(there)[:5] == pytest.approx(back[:5], abs=1e-9)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-9)


def test_a_threshold_shifts_the_question():
    values = np.array([-0.5, -0.2, -0.9, -0.4])
    shifted = describe(values + 1.0)
    assert p_above(values.mean(), values.std(ddof=1), 4, -1.0) == pytest.approx(shifted.p_value)


def test_pairs_by_seed_not_by_order():
    a = make([1.0, 2.0, 3.0])
    found = compare(a[::-1], gap([0.0, 1.0, 2.0]), "top1_saol_last", "top1_gap_last")
    assert found.differences == (1.0, 1.0, 1.0)


def test_partial_conjunction_by_hand():
    assert partial_conjunction([0.01, 0.04], 2) == 0.04
    assert partial_conjunction([0.01, 0.04], 1) == 0.02
    assert partial_conjunction([0.2, 0.01, 0.03], 2) == 0.06
    assert partial_conjunction([0.9, 0.8], 1) == 1.0


def test_holm_by_hand_and_an_unrun_member_costs():
    assert holm({"x": 0.02, "y": 0.01, "z": 0.9}) == pytest.approx({"y": 0.03, "x": 0.04, "z": 0.9})
    assert holm({"y": 0.01})["y"] == 0.01 and holm({"y": 0.01, "unrun": 1.0})["y"] == 0.02


def test_seeds_to_decide_grows_with_the_spread_and_suffices():
    few, many = seeds_to_decide(0.3, 0.5, 0.05), seeds_to_decide(0.9, 0.5, 0.05)
    assert 2 < few < many
    half = stats.t.ppf(0.975, many - 1) * 0.9 / math.sqrt(many)
    reach = stats.t.ppf(0.95, many - 1) * 0.9 / math.sqrt(many)
    assert half + reach <= 0.5


# --- what may be compared ---------------------------------------------------------------------------------------------

A = make([1.0, 2.0])


@pytest.mark.parametrize(("b", "sentence"), [
    (gap([1.0, 2.0], origin={"sources": "other"}), "differ in sources"),
    (gap([1.0, 2.0], origin={"data": "other"}), "differ in data"),
    (gap([1.0, 2.0, 3.0]), r"seeds \[2\] are on one side only"),
    (gap([1.0, 2.0], status="failed"), "gap_fc-s0.* did not finish"),
    (gap([1.0, 2.0], epochs=7), r"differ in epochs \(4, 7\)"),
    (gap([1.0]) + make([1.0, 2.0], arm="saol_sd")[1:], "differ in arm"),
    (gap([1.0, 2.0]) * 2, "4 runs have 2 seeds"),
    ([], "0 runs have 0 seeds"),
    (make([1.0, 2.0]), "has no 'top1_gap_last'; it has top1_saol_best, top1_saol_last"),
    (gap([1.0, math.nan]), "gap_fc-s1.* has top1_gap_last = nan; expected a finite number"),
    ([*gap([1.0]), gap([1.0, 2.0])[1]._replace(metrics={"top1_gap_last": None})], "top1_gap_last = None"),
])  # fmt: skip
def test_refuses_what_cannot_be_compared(b, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        compare(A, b, "top1_saol_last", "top1_gap_last")
    assert "\n" not in str(caught.value)


def test_the_caller_can_allow_it():
    other = gap([1.0, 2.0], origin={"sources": "other", "data": "other"})
    assert compare(A, other, "top1_saol_last", "top1_gap_last", mixed_sources=True).n == 2
    wide = make([2.0, 4.0], logit_width=40)
    assert compare(wide, A, "top1_saol_last", varies=["logit_width"]).mean == 1.5
    with pytest.raises(ValueError, match="differ in logit_width"):
        compare(wide[:1] + A[1:], A, "top1_saol_last", varies=["logit_width"])


def without(runs, *names):
    return [run._replace(config={k: v for k, v in run.config.items() if k not in names}) for run in runs]


def test_an_older_run_with_the_same_id_is_compared():
    """Fields that came later are at their default, and so no part of the id."""
    old = without(gap([0.0, 0.0]), "start", "enlarge", "classes")
    assert [run.id for run in old] == [run.id for run in gap([0.0, 0.0])]
    assert compare(A, old, "top1_saol_last", "top1_gap_last").mean == 1.5


def test_runs_that_start_elsewhere_are_not_pairs():
    from_gap = make([1.0, 2.0], start="gap_fc-s0-0123456789")
    with pytest.raises(ValueError, match="differ in start"):
        compare(from_gap, gap([1.0, 2.0]), "top1_saol_last", "top1_gap_last")
    other = gap([1.0, 2.0], start="gap_fc-s0-abcdefabcd")
    with pytest.raises(ValueError, match="differ in start"):  # one fine-tunes another arm's network, the other its own
        compare(from_gap, other, "top1_saol_last", "top1_gap_last")
    sd = make([0.0, 0.0], arm="saol_sd", start="gap_fc-s0-abcdefabcd")
    with pytest.raises(ValueError, match="seed 0 start from gap_fc-s0-0123456789 and gap_fc-s0-abcdefabcd"):
        compare(from_gap, sd, "top1_saol_last")


def test_each_arm_may_go_on_from_its_own_network():
    mine = [run._replace(config=run.config | {"start": f"saol-s{i}-0123456789"}) for i, run in enumerate(A)]
    theirs = [
        run._replace(config=run.config | {"start": f"gap_fc-s{i}-abcdefabcd"}) for i, run in enumerate(gap([0.0, 0.0]))
    ]
    assert compare(mine, theirs, "top1_saol_last", "top1_gap_last").mean == 1.5
