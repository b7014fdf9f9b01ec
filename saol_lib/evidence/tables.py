"""Tables of runs: `paired` is the one that README, results/README.md, the figures and the notebooks share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd

from saol_lib.evidence.claims import Claim, Found
from saol_lib.layers import SaolOptions
from saol_lib.losses import LossOptions
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import RESULTS, Run, load_runs, setting

FAMILIES = {  # an arm without its CutMix, and its name in figures
    "gap_fc": "GAP-FC",
    "saol": "SAOL",
    "saol_sd": "SAOL + L_SD",
    "saol_ce": "SAOL + CE",
    "saol_ss1": "SAOL + L_SS1",
    "saol_ss2": "SAOL + L_SS2",
    "saol_ss": "SAOL + L_SS",
    "saol_ss_sd": "SAOL + L_SS + L_SD",
    "abn": "ABN",
}
LAYERS = {"saol": "SAOL", "gap": "GAP-FC"}  # the output layer that is read
REGIMES = ("without CutMix", "with CutMix")
FEW = 6  # seeds: fewer are a demonstration
ARMS_IN_WORDS = {
    "gap_fc": "the baseline: global average pooling and one linear layer, cross-entropy",
    "saol": "SAOL alone, trained by the cross-entropy of its own output (L_SL)",
    "saol_sd": "both output layers; SAOL teaches GAP-FC (L_SL + L_SD)",
    "saol_ce": "both output layers, each with plain cross-entropy: what L_SD is held against",
    "gap_fc_cutmix": "the baseline on CutMix-ed images",
    "saol_cutmix": "SAOL alone on CutMix-ed images",
    "saol_cutmix_ss1": "that, and a prediction of the CutMix mask (L_SS1)",
    "saol_cutmix_ss2": "SAOL on CutMix-ed images whose pasted part has to agree with its source (L_SS2)",
    "saol_cutmix_ss": "SAOL on CutMix-ed images with L_SS1 and L_SS2",
    "saol_cutmix_sd": "both output layers on CutMix-ed images; SAOL teaches GAP-FC (L_SD)",
    "saol_cutmix_ss_sd": "everything that the paper has: both layers, CutMix, L_SS1, L_SS2 and L_SD",
    "abn": "the Attention Branch Network, cross-entropy on both of its branches",
    "abn_cutmix": "the Attention Branch Network on CutMix-ed images",
}
# What GAP-FC does not see, and the rate that each family of arms chose for itself: no part of a setting.
_OPTIONS = [field.name for options in (SaolOptions, LossOptions) for field in fields(options)]
VARIANTS = ("lr", "blocks", *_OPTIONS)
COLUMNS = [
    "setting",
    "variant",
    "arm",
    "family",
    "regime",
    "layer",
    "seed",
    "lr",
    "top1",
    "best",
    "seconds",
    "id",
]


def readings(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, output layer and evaluated epoch: arm, family, regime, layer, seed, epoch, top1 (percent)."""
    rows = []
    for run in runs:
        arm = run.config["arm"]
        seed = run.config["seed"]
        family, regime = in_words(arm)
        for entry in run.epochs:
            for layer, label in LAYERS.items():
                top1 = entry.get(f"top1_{layer}")
                if top1 is not None:
                    rows.append((arm, family, regime, label, seed, entry["epoch"], top1))
    columns = ["arm", "family", "regime", "layer", "seed", "epoch", "top1"]
    return pd.DataFrame(rows, columns=columns)


def paired(runs: Sequence[Run], baseline: str = "gap_fc") -> pd.DataFrame:
    """One row a run and output layer: COLUMNS, and `delta`, points above the baseline run of the same seed.

    top1: of the last epoch, best: of all epochs, both in percent. Pairs are made within one `setting` (JSON: config,
    sources and data, without what GAP-FC does not see); `variant` says in words what of that differs from the default.
    Arms with CutMix are held against the baseline with CutMix; delta is NaN without one. Where a setting has the
    baseline at several learning rates, pairs share the rate. Raises ValueError where two runs are one arm, variant and
    seed, or where the baseline has two output layers.
    """
    rows = []
    for run in runs:
        rows += _rows(run)
    table = pd.DataFrame(rows, columns=COLUMNS)
    configs = {run.id: run.config for run in runs}
    table["variant"] = _variants(table, configs)

    twice = table.duplicated(["setting", "variant", "arm", "layer", "seed"])
    if twice.any():
        raise ValueError(f"two runs of arm {table.arm[twice].iloc[0]} share a seed; give runs of one setting only")
    return table.assign(delta=table.top1 - _baseline(table, baseline))


def in_words(arm: str) -> tuple[str, str]:
    """An arm's family of FAMILIES and its regime of REGIMES."""
    return FAMILIES[arm.replace("_cutmix", "")], REGIMES["cutmix" in arm]


def _rows(run: Run) -> list[dict]:
    """One row an output layer; the variant is told by `_variants`, which sees all runs."""
    arm = run.config["arm"]
    family, regime = in_words(arm)
    shared = {
        "setting": _setting(run),
        "variant": "",
        "arm": arm,
        "family": family,
        "regime": regime,
        "seed": run.config["seed"],
        "lr": run.config.get("lr"),
        "seconds": run.provenance.get("seconds"),
        "id": run.id,
    }
    rows = []
    for layer, label in LAYERS.items():
        last = run.metrics.get(f"top1_{layer}_last")
        best = run.metrics.get(f"top1_{layer}_best")
        if last is not None:
            rows.append(shared | {"layer": label, "top1": last, "best": best})
    return rows


def _setting(run: Run) -> str:
    """What the runs of one setting share, as JSON."""
    whole = setting(run.config)
    for name in ("sources", "data"):
        whole[name] = run.provenance.get(name)
    for name in ("arm", "seed", *VARIANTS):
        whole.pop(name, None)
    return json.dumps(whole, sort_keys=True)


def _variants(table: pd.DataFrame, configs: Mapping[str, dict]) -> list[str]:
    """What each row's run changes of the options that other runs of its setting have otherwise, in words."""
    varying = {}
    for key, ids in table.groupby("setting").id:
        there = [configs[name] for name in ids]
        varying[key] = [name for name in VARIANTS if _differs(name, there)]
    rates = table.groupby(["setting", "arm"]).lr.nunique()

    told = []
    for row in table.itertuples():
        config = configs[row.id]
        names = [name for name in varying[row.setting] if _is_told(row.arm, name, config)]
        has_one_rate = rates[row.setting, row.arm] < 2  # the arm's own rate is no variant of it
        if has_one_rate and "lr" in names:
            names.remove("lr")
        changes = [f"{name} {config.get(name)}" for name in names]
        told.append(", ".join(changes))
    return told


def _differs(name: str, configs: Iterable[Mapping]) -> bool:
    """Whether a field has more than one value."""
    values = {str(config.get(name)) for config in configs}
    return len(values) > 1


def _is_told(arm: str, name: str, config: dict) -> bool:
    if name == "lr":
        return True
    default = getattr(RunConfig, name)
    return "saol" in ARMS[arm].heads and config.get(name, default) != default


def _baseline(table: pd.DataFrame, baseline: str) -> pd.Series:
    """The baseline's top1 beside each row; NaN where there is none."""
    parts = [_baseline_of_one(part, baseline) for _, part in table.groupby("setting")]
    return pd.concat(parts) if parts else pd.Series(dtype=float)


def _baseline_of_one(table: pd.DataFrame, baseline: str) -> pd.Series:
    """The same within one setting: by regime and seed, and by rate where the baseline was trained at several."""
    base = table[table.arm.isin([baseline, f"{baseline}_cutmix"])]
    if base.layer.nunique() > 1:
        raise ValueError(f"baseline {baseline!r} is read at two output layers; choose an arm that has one")
    key = ["regime", "seed"]
    if base.duplicated(key).any():
        key.append("lr")
    values = base.drop_duplicates(key).set_index(key).top1
    wanted = pd.MultiIndex.from_frame(table[key])
    found = values.reindex(wanted)
    return pd.Series(found.to_numpy(), index=table.index)


def effects_table(claims: Sequence[Claim], found: Mapping[str, Sequence[Found]]) -> pd.DataFrame:
    """One row a test with pairs: claim, test, measure, mean, low, high, smallest, n, planned; in the direction claimed.

    measure: accuracy, or what maps are worth. smallest: what the mean has to reach; for non-inferiority, what the
    interval has to stay above.
    """
    rows = []
    for claim in claims:
        smallest = claim.smallest_effect if claim.margin is None else -claim.margin
        ran = [one for one in found[claim.id] if one.comparison]
        for one in ran:
            effect = one.claimed
            row = {
                "claim": claim.id,
                "test": one.test.label,
                "measure": _measure(one.test.a.metric),
                "mean": effect.mean,
                "low": effect.low,
                "high": effect.high,
                "smallest": smallest,
                "n": effect.n,
                "planned": one.test.seeds,
            }
            rows.append(row)
    columns = ["claim", "test", "measure", "mean", "low", "high", "smallest", "n", "planned"]
    return pd.DataFrame(rows, columns=columns)


def _measure(metric: str) -> str:
    return "top-1 accuracy" if metric.startswith("top1_") else "boxes, attention and shares"


def summary(runs: Sequence[Run]) -> str:
    """Mean last-epoch accuracy of both output layers as text; a line for runs of which only the seed differs."""
    if not runs:
        return "Arms: no finished run"
    settings = [setting(run.config) for run in runs]
    configs = pd.DataFrame(settings, dtype=object).drop(columns="seed", errors="ignore")
    configs = configs.map(str)  # None is a value, too
    varying = [name for name in configs if configs[name].nunique() > 1]
    by = ["arm", *(name for name in varying if name != "arm")]

    metrics = pd.DataFrame([run.metrics for run in runs])
    metrics = metrics.reindex(columns=["top1_gap_last", "top1_saol_last"])
    groups = configs[by].join(metrics).groupby(by, sort=False, dropna=False)
    means = groups.mean().round(2)
    table = means.assign(runs=groups.size()).reset_index()
    told = table.to_string(index=False, na_rep="-")
    return f"Arms: mean top-1 of the last epoch, percent\n{told}"


# --- what notebooks show ----------------------------------------------------------------------------------------------

NOT_RUN = "*Not run yet.*"


def accuracies(table: pd.DataFrame) -> pd.DataFrame | str:
    """What `paired` gave, a row an arm and output layer: means over the seeds, and each seed's distance to GAP-FC.

    Runs of another setting have rows of their own, which say what it is. Percent and percentage points. `spread` is the
    standard deviation between seeds; `best` the best evaluated epoch, chosen on the images that it is measured on.
    NOT_RUN where there is no run.
    """
    if table.empty:
        return NOT_RUN
    told = pd.Series(_told_apart(table), index=table.index)
    named = table.assign(family=table.family + told.map(_in_brackets))
    named = named.loc[_in_order(table, told)]
    rows = {}
    for key, part in named.groupby(["regime", "family", "layer"], sort=False):
        part = part.sort_values("seed")
        gains = _compared(part).delta
        each = [f"{gain:+.1f}" for gain in gains]
        rows[key] = {
            "top-1": part.top1.mean(),
            "spread": part.top1.std(),
            "above GAP-FC": gains.mean(),
            "each seed": ", ".join(each) or "–",
            "best epoch": part.best.mean(),
        }
    index = pd.MultiIndex.from_tuples(list(rows), names=["", "trained as", "layer read"])
    told = pd.DataFrame(list(rows.values()), index=index).round(1)
    return told.astype(object).fillna("–")


def _in_order(table: pd.DataFrame, told: pd.Series) -> pd.Index:
    """By regime, family and layer, as they are listed above; of a family first what is not told apart by a word."""
    keys = {
        "regime": table.regime.map(REGIMES.index),
        "family": table.family.map(list(FAMILIES.values()).index),
        "told": told,
        "layer": table.layer.map(list(LAYERS.values()).index),
    }
    return pd.DataFrame(keys).sort_values(list(keys), kind="stable").index


def _told_apart(table: pd.DataFrame) -> list[str]:
    """Each row's variant, and what its setting has otherwise than that of most rows, in words."""
    settings = {key: json.loads(key) for key in table.setting.unique()}
    usual = settings[table.setting.mode()[0]]
    told = []
    for row in table.itertuples():
        own = settings[row.setting]
        names = [name for name in own if name not in ("sources", "data") and own[name] != usual.get(name)]
        changes = [f"{name} {own[name]}" for name in names]
        told.append(", ".join(filter(None, [row.variant, *changes])))
    return told


def _in_brackets(words: str) -> str:
    return f" ({words})" if words else ""


def _compared(part: pd.DataFrame) -> pd.DataFrame:
    """Those rows of one arm that have a baseline which is another run: none of GAP-FC's own."""
    is_baseline = part.arm.iloc[0] in ("gap_fc", "gap_fc_cutmix")
    if is_baseline:
        return part[:0]
    return part.dropna(subset="delta")


def lead(table: pd.DataFrame, family: str, layer: str) -> str:
    """How far a family's output layer is above GAP-FC, in words: "+14.9 points without CutMix (2 of 2 seeds above)".

    table: what `paired` gave; family and layer as FAMILIES and LAYERS name them.
    """
    is_meant = (table.family == family) & (table.layer == layer) & (table.variant == "")
    part = table[is_meant].dropna(subset="delta")
    told = []
    for regime, gains in part.groupby("regime", sort=False).delta:
        above = int((gains > 0).sum())
        told.append(f"{gains.mean():+.1f} points {regime} ({above} of {len(gains)} seeds above)")
    return ", ".join(told) or "not run yet"


def caveat(table: pd.DataFrame) -> str:
    """What so many seeds an arm can decide, in a sentence: fewer than six are a demonstration.

    table: rows with a seed, and what tells arms apart: arm, variant and setting, or stage and network, or reading.
    """
    if table.empty:
        return "Nothing has run yet."
    names = [name for name in ("setting", "arm", "variant", "stage", "network", "reading") if name in table]
    seeds = table.groupby(names).seed.nunique()
    fewest, most = seeds.min(), seeds.max()
    told = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    if most < FEW:
        return f"Few seeds ({told}): a demonstration, which decides nothing."
    if fewest < FEW:
        return f"{told} seeds an arm: those with fewer than {FEW} decide nothing; notebook 07 has the verdicts."
    return f"{told} paired seeds an arm; notebook 07 has the verdicts."


def faults(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run that failed."""
    return [f"{run.id} failed: {run.error}" for run in runs if run.status != "finished"]


def above_chance(classes: int, images: int, times: float = 1.0) -> float:
    """The least top-1 (percent) of a network that learned: `times` chance, and five binomial errors above that."""
    chance = 1 / classes
    error = (chance * (1 - chance) / images) ** 0.5
    return 100 * (times * chance + 5 * error)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def glossary() -> str:
    """The arms in words, as Markdown."""
    lines = ["| arm | what it is |", "|---|---|"]
    lines += [f"| `{arm}` | {words} |" for arm, words in ARMS_IN_WORDS.items()]
    return "\n".join(lines)


def runs_tables(folder: str, results: Path = RESULTS) -> str:
    """Top-1 of the runs of a folder as Markdown, one table for each setting, sources and data; never across them."""
    runs = load_runs(results / folder)
    if not runs:
        return "not run yet"
    table = paired(runs)
    settings = {key: json.loads(key) for key in table.setting.unique()}
    shown = _told_of(list(settings.values()))

    parts = []
    for key, group in table.groupby("setting", sort=False):
        seconds = group.drop_duplicates("id").seconds.sum()
        named = [f"{name}: {settings[key].get(name)}" for name in shown]
        caption = f"{', '.join(named)}; {seconds / 3600:.1f} h of training"
        parts += [caption, _runs_table(group)]
    return "\n\n".join(parts)


def _told_of(settings: Sequence[dict]) -> list[str]:
    """The fields that a table's caption tells: what every reader asks for, and in what the settings differ."""
    always = ["dataset", "train_images", "eval_split", "backbone", "epochs", "autocast"]
    names = set().union(*settings) - set(always)
    return always + [name for name in sorted(names) if _differs(name, settings)]


def _runs_table(group: pd.DataFrame) -> str:
    lines = ["| arm, layer read | rate | last epoch: mean (seeds) | best epoch: mean | last minus GAP-FC's (seeds) |"]
    lines.append("|---|---|---|---|---|")
    for (arm, variant, layer), part in group.groupby(["arm", "variant", "layer"], sort=True):
        part = part.sort_values("seed")
        changes = [change for change in variant.split(", ") if not change.startswith("lr ")]  # it has its own column
        cells = [
            f"`{arm}`{_in_brackets(', '.join(changes))}, {layer}",
            f"{part.lr.iloc[0]:g}",
            _each(part, "top1", ".2f"),
            f"{part.best.mean():.2f}",
            _each(_compared(part), "delta", "+.2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(part: pd.DataFrame, column: str, spec: str) -> str:
    """The mean of a column, and each seed's value."""
    if part.empty:
        return "–"
    values = part.set_index("seed")[column]
    each = [f"{seed}: {value:{spec}}" for seed, value in values.items()]
    return f"{values.mean():{spec}} ({', '.join(each)})"
