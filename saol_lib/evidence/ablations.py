"""Which part of SAOL does what: steps that turn one part, compared seed by seed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from saol_lib.evidence import figures
from saol_lib.evidence.statistics import LEVEL, Comparison, compare, seeds_to_decide
from saol_lib.evidence.tables import NOT_RUN, VARIANTS
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import Run

OPTIONS = (*(name for name in VARIANTS if name != "lr"), "cutmix_schedule")  # what a step may turn


class Side(NamedTuple):
    """Runs of one arm, read at one output layer; `changes`: options that are not as most runs have them.

    A tuple of values stands for any one of them.
    """

    arm: str
    layer: str = "saol"
    changes: Mapping = MappingProxyType({})


class Step(NamedTuple):
    """What is compared: a - b. `claim` is the id of the claim that it belongs to, or empty."""

    name: str
    claim: str
    a: Side
    b: Side


FULL = "saol_cutmix_ss_sd"
MIXED = Side("saol_cutmix")
NARROW = {"logit_width": 10}  # as wide as CIFAR-10 has classes
WIDE = {"logit_width": (None, 40)}  # None is max(K, 40)
BRANCH, ATTENTION = {"mask_source": "branch"}, {"mask_source": "attention"}
STEPS = (
    Step("SAOL − GAP-FC", "C1", Side("saol"), Side("gap_fc", "gap")),
    Step("SAOL − GAP-FC, both with CutMix", "C4", Side("saol_cutmix"), Side("gap_fc_cutmix", "gap")),
    Step("SAOL beside a taught GAP-FC − GAP-FC", "", Side("saol_sd"), Side("gap_fc", "gap")),
    Step("GAP-FC taught by SAOL − GAP-FC", "C3", Side("saol_sd", "gap"), Side("gap_fc", "gap")),
    Step("SAOL − ABN", "C7b", Side("saol"), Side("abn", "gap")),
    Step("SAOL − ABN, both with CutMix", "C7b", Side("saol_cutmix"), Side("abn_cutmix", "gap")),
    Step("three blocks − one", "C8", Side("saol"), Side("saol", "saol", {"blocks": 1})),
    Step("three blocks − two", "C8", Side("saol"), Side("saol", "saol", {"blocks": 2})),
    Step("CutMix on GAP-FC: the control", "", Side("gap_fc_cutmix", "gap"), Side("gap_fc", "gap")),
    Step("CutMix on SAOL", "C9", MIXED, Side("saol")),
    Step("SAOL with CutMix: + L_SS1 (branch)", "C10", Side("saol_cutmix_ss1", "saol", BRANCH), MIXED),
    Step("SAOL with CutMix: + L_SS1 (attention)", "C10", Side("saol_cutmix_ss1", "saol", ATTENTION), MIXED),
    Step("SAOL with CutMix: + L_SS2", "C10", Side("saol_cutmix_ss2"), MIXED),
    Step("SAOL with CutMix: + L_SS1 (branch) + L_SS2", "C10", Side("saol_cutmix_ss", "saol", BRANCH), MIXED),
    Step("SAOL with CutMix: + L_SS1 (attention) + L_SS2", "C10", Side("saol_cutmix_ss", "saol", ATTENTION), MIXED),
    Step("SAOL with CutMix, L_SS1, L_SS2: + L_SD", "", Side(FULL), Side("saol_cutmix_ss")),
    Step("L_SD − plain CE, SAOL read", "C11", Side("saol_sd"), Side("saol_ce")),
    Step("L_SD − plain CE, GAP-FC read", "C11", Side("saol_sd", "gap"), Side("saol_ce", "gap")),
    Step("plain CE − GAP-FC, SAOL read", "C11", Side("saol_ce"), Side("gap_fc", "gap")),
    Step("plain CE − GAP-FC, GAP-FC read", "C11", Side("saol_ce", "gap"), Side("gap_fc", "gap")),
    Step("branches 40 − K = 10 wide", "", Side("saol", "saol", WIDE), Side("saol", "saol", NARROW)),
    Step("class softmax per image − per position", "", Side("saol", "saol", {"class_softmax": "image"}), Side("saol")),
    Step("kernels 1x1 − 3x3", "", Side("saol", "saol", {"kernel_size": 1}), Side("saol")),
    Step("L_SS2 turned round", "", Side(FULL, "saol", {"ss2_direction": "mixed_to_source"}), Side(FULL)),
    Step("teacher trained − constant", "", Side(FULL, "saol", {"teacher": "trained"}), Side(FULL)),
    Step("CutMix per batch − paired", "", Side(FULL, "saol", {"cutmix_schedule": "batch"}), Side(FULL)),
)


class Ablations:
    """Every one of `steps` whose runs are there, seed by seed; the runs share everything but arm and OPTIONS."""

    def __init__(self, runs: Sequence[Run], steps: Sequence[Step] = STEPS) -> None:
        self.found: dict[str, Comparison] = {}
        self.missing: list[str] = []
        self.claims = {step.name: step.claim for step in steps}
        usual = _usual(runs)
        for step in steps:
            comparison = _compared(step, runs, usual)
            if comparison is None:
                self.missing.append(step.name)
            else:
                self.found[step.name] = comparison

    def table(self) -> pd.DataFrame | str:
        """A row a step, in percentage points: mean difference, its 95 % interval, pairs, and each seed's difference."""
        if not self.found:
            return NOT_RUN
        rows = {}
        for name, found in self.found.items():
            interval = "–"
            if found.n > 1:
                interval = f"{found.low:+.1f} to {found.high:+.1f}"
            each = [f"{value:+.1f}" for value in found.differences]
            rows[name] = {
                "claim": self.claims[name] or "–",
                "mean": f"{found.mean:+.2f}",
                "95 % interval": interval,
                "pairs": found.n,
                "each seed": ", ".join(each),
            }
        table = pd.DataFrame(list(rows.values()), index=list(rows))
        return table.rename_axis("step")

    def figure(self) -> Figure | str:
        """A row a step, a dot a seed, a bar for the mean."""
        if not self.found:
            return NOT_RUN
        differences = {}
        for name, found in self.found.items():
            pairs = zip(found.seeds, found.differences, strict=True)
            differences[name] = dict(pairs)
        return figures.effects(pd.DataFrame(differences).T)

    def not_run(self) -> str:
        """The steps that have no runs here."""
        if not self.missing:
            return "Every step has run."
        return f"Not run here: {'; '.join(self.missing)}."

    @property
    def spread(self) -> float | None:
        """The pooled standard deviation of a paired difference, points; None where no step has two pairs."""
        squares = 0.0
        degrees = 0
        for found in self.found.values():
            if found.n > 1:
                squares += found.spread**2 * (found.n - 1)
                degrees += found.n - 1
        if not degrees:
            return None
        return (squares / degrees) ** 0.5

    def noise(self) -> str:
        """The spread in words."""
        if self.spread is None:
            return "not known, no step has two seeds"
        return f"between seeds, a paired difference of two runs has a standard deviation of {self.spread:.1f} points"

    def seeds_needed(self, effects: Sequence[float] = (0.5, 1.0, 2.0)) -> pd.DataFrame | str:
        """How many paired seeds tell 0 from an effect (points), at the pooled spread of a difference."""
        if self.spread is None:
            return NOT_RUN
        rows = []
        for effect in effects:
            seeds = seeds_to_decide(self.spread, effect, LEVEL)
            rows.append({"effect (points)": effect, "paired seeds": seeds})
        return pd.DataFrame(rows).set_index("effect (points)")

    def in_words(self, *names: str) -> str:
        """Some steps as one line, in percentage points; those that have not run are left out."""
        there = [name for name in names if name in self.found]
        if not there:
            return "not run yet"
        told = [f"{name}: {self.found[name].mean:+.1f}" for name in there]
        return f"{'; '.join(told)} (percentage points)"


def _usual(runs: Sequence[Run]) -> dict:
    """The value of each option that most of the runs with a SAOL have."""
    with_saol = [run for run in runs if "saol" in ARMS[run.config["arm"]].heads]
    if not with_saol:
        return {name: getattr(RunConfig, name) for name in OPTIONS}

    values = {}
    for name in OPTIONS:
        counts = Counter(_option(run, name) for run in with_saol)
        values[name] = max(counts, key=counts.get)
    return values


def _option(run: Run, name: str) -> object:
    default = getattr(RunConfig, name)
    return run.config.get(name, default)


def _compared(step: Step, runs: Sequence[Run], usual: Mapping) -> Comparison | None:
    """a - b over the seeds that both have; None where they share none, or where a and b are the same runs."""
    a = _of_side(step.a, runs, usual)
    b = _of_side(step.b, runs, usual)
    shared = _seeds(a) & _seeds(b)
    a = [run for run in a if run.config["seed"] in shared]
    b = [run for run in b if run.config["seed"] in shared]
    same = a == b and step.a.layer == step.b.layer
    if not shared or same:
        return None
    return compare(
        a,
        b,
        _metric(step.a),
        _metric(step.b),
        varies=("lr", *OPTIONS),
    )


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {run.config["seed"] for run in runs}


def _metric(side: Side) -> str:
    return f"top1_{side.layer}_last"


def _of_side(side: Side, runs: Sequence[Run], usual: Mapping) -> list[Run]:
    """The runs of a side; a layer without SAOL does not see the layer's options."""
    found = []
    for run in runs:
        if run.config["arm"] == side.arm and _fits(run, side, usual):
            found.append(run)
    return found


def _fits(run: Run, side: Side, usual: Mapping) -> bool:
    seen = OPTIONS if "saol" in ARMS[side.arm].heads else ("cutmix_schedule",)
    for name in seen:
        wanted = side.changes.get(name, usual[name])
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        if _option(run, name) not in choices:
            return False
    return True
