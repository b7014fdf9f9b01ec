"""What a study planned, and how much of it is finished."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saol_lib.evidence.tables import LAYERS, REGIMES, in_words
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.files import ROOT
from saol_lib.training.profiles import read_runs
from saol_lib.training.runs import Run, load_finished, resolve, run_id, setting

MOST_FIELDS = 3  # with a column of their own
AS_MOST = "nothing changed"


def planned(profile: str | None, name: str = "study") -> tuple[list[RunConfig], str]:
    """The runs that notebooks/profiles/<profile>/<name>.yaml names, and their folder; none where there is no file."""
    profiles = ROOT / "notebooks" / "profiles"
    path = profiles / str(profile) / f"{name}.yaml"
    if not path.exists():
        return [], ""
    return read_runs(path)


def finished(profile: str, name: str = "study") -> list[Run]:
    """Those of the `planned` runs that are finished; their data are not looked at."""
    configs, results = planned(profile, name)
    runs = [as_recorded(config, resolve(results)) for config in configs]
    return [run for run in runs if run is not None]


def as_recorded(config: RunConfig, results: Path) -> Run | None:
    """The finished run of a config as its file in `results` has it, or None; its data are not looked at."""
    name = run_id(config.identity())
    return load_finished(results, name)


def progress(configs: Sequence[RunConfig], results: str | Path) -> pd.DataFrame | str:
    """Mean top-1 (percent) of what is finished of planned runs: a row a setting, a column an arm and output layer.

    A setting is named by the fields in which it differs from another; where these are many, by its network and what it
    has otherwise than most, and each arm has a row. `CutMix gains`: GAP-FC with CutMix minus GAP-FC, points, over the
    seeds that both have. Cells of runs that are not finished say so.
    """
    if not configs and results:
        return "*What is planned waits for values that are still to be chosen; nothing of it has run.*"
    if not configs:
        return "*No further runs belong to this profile.*"
    rows = [_progress_row(config, resolve(results)) for config in configs]
    settings = [setting(config.identity()) for config in configs]
    told = pd.DataFrame(settings, dtype=object).drop(columns=["arm", "seed"])
    told = told.map(str)  # None is a value, too

    varying = [name for name in told if told[name].nunique() > 1]
    varying = varying or ["dataset"]
    rows = pd.DataFrame(rows)
    if len(varying) > MOST_FIELDS:
        return _long_progress(rows.assign(network=told.backbone, changed=_changes(told[varying])))

    table = pd.concat([told[varying], rows], axis=1)
    lines = {}
    for key, part in table.groupby(varying, sort=False):
        lines[key] = _progress_line(part)
    index = pd.MultiIndex.from_tuples(lines, names=varying)
    return pd.DataFrame(list(lines.values()), index=index).fillna("–")


def _long_progress(table: pd.DataFrame) -> pd.DataFrame:
    """A row a network, what it has otherwise than most, and arm; a column an output layer."""
    lines = {}
    for (network, changed, arm), part in table.groupby(["network", "changed", "arm"], sort=False):
        line = {"runs": _how_many(part)}
        for layer, label in LAYERS.items():
            line[f"{label} read"] = _mean(part[layer], ".1f") if layer in layers_of(arm) else "–"
        lines[network, changed, _arm_name(arm)] = line
    index = pd.MultiIndex.from_tuples(lines, names=["network", "changed", "trained as"])
    return pd.DataFrame(list(lines.values()), index=index)


def _changes(told: pd.DataFrame) -> list[str]:
    """What each row has otherwise than most, in words; its network has a column of its own.

    Never an empty word: in a table it would look like the row above, said once for both.
    """
    told = told.drop(columns="backbone", errors="ignore")
    usual = told.mode().iloc[0]
    rows = []
    for _, row in told.iterrows():
        changed = row[row != usual]
        words = [f"{name} {value}" for name, value in changed.items()]
        rows.append(", ".join(words) or AS_MOST)
    return rows


def _progress_row(config: RunConfig, results: Path) -> dict:
    run = as_recorded(config, results)
    metrics = run.metrics if run else {}
    row = {"arm": config.arm, "seed": config.seed, "finished": run is not None}
    for layer in LAYERS:
        row[layer] = metrics.get(f"top1_{layer}_last")
    return row


def _progress_line(part: pd.DataFrame) -> dict:
    line = {"runs": _how_many(part)}
    for arm, own in part.groupby("arm", sort=False):
        for layer in layers_of(arm):
            line[f"{_arm_name(arm)}, {LAYERS[layer]}"] = _mean(own[layer], ".1f")

    by_arm = part.set_index(["arm", "seed"]).gap
    if {"gap_fc", "gap_fc_cutmix"} <= set(part.arm):
        gains = by_arm["gap_fc_cutmix"] - by_arm["gap_fc"]
        line["CutMix gains"] = _mean(gains, "+.1f")
    return line


def _how_many(part: pd.DataFrame) -> str:
    return f"{int(part.finished.sum())} of {len(part)}"


def _arm_name(arm: str) -> str:
    family, regime = in_words(arm)
    return f"{family} {regime}" if regime == REGIMES[1] else family


def layers_of(arm: str) -> list[str]:
    """The output layers of LAYERS at which an arm is read; an ABN's is counted as a GAP-FC: it pools, then decides."""
    heads = ARMS[arm].heads
    return [layer for layer in LAYERS if layer in heads or (layer == "gap" and "abn" in heads)]


def _mean(values: pd.Series, spec: str) -> str:
    there = values.dropna().astype(float)
    if there.empty:
        return "not run yet"
    return f"{there.mean():{spec}}"
