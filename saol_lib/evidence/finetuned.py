"""What notebook 02 shows of fine-tuned networks: accuracies by stage, paired differences, and what enlarging does."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from saol_lib.evidence.tables import FAMILIES, paired
from saol_lib.networks import enlarge, multiply_adds
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.recipe import new_model
from saol_lib.training.runs import Run

BASELINES = ("gap_fc", "gap_fc_cutmix")


def network_name(config: dict) -> str:
    """A run's network in words: its family, CutMix, and what else tells two networks of notebooks 02 and 03 apart."""
    arm = config["arm"]
    name = FAMILIES[arm.replace("_cutmix", "")]
    if "cutmix" in arm:
        name += " + CutMix"
    if arm == "saol_cutmix_ss_sd":
        name = "SAOL, all losses"
    told = []
    if "ss1" in ARMS[arm].terms:
        told.append(f"mask: {config.get('mask_source', 'branch')}")
    if "saol" in ARMS[arm].heads and config.get("class_softmax", "position") == "image":
        told.append("class softmax per image")
    return f"{name} ({', '.join(told)})" if told else name


def stage_plan(stages: Mapping[str, Sequence[RunConfig]]) -> pd.DataFrame:
    """What is to be trained, {stage: configs}: a row a stage and network, with its seeds."""
    rows = []
    for stage, configs in stages.items():
        for config in configs:
            rows.append({"stage": stage, "network": network_name(config.identity()), "seed": config.seed})
    table = pd.DataFrame(rows, columns=["stage", "network", "seed"])
    seeds = table.groupby(["stage", "network"], sort=False).seed
    return seeds.agg(lambda values: ", ".join(map(str, values))).to_frame("seed numbers")


def stage_table(finished: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """`paired` of each stage's runs, one below the other: its columns, and stage and network in words.

    finished: {stage: runs}, as `run_stages` gives them. Raises what `paired` raises.
    """
    parts = []
    for stage, runs in finished.items():
        if runs:
            names = {run.id: network_name(run.config) for run in runs}
            table = paired(runs)
            parts.append(table.assign(stage=stage, network=table.id.map(names)))
    return pd.concat(parts, ignore_index=True)


def stage_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`stage_table` as shown: a row a stage, network and layer read; mean top-1 (percent) and the distance to GAP-FC.

    The distance is that to GAP-FC of the same seed, stage and CutMix, in percentage points: its mean and each seed's.
    """
    rows = []
    for key, part in table.groupby(["stage", "network", "layer"], sort=False):
        part = part.sort_values("seed")
        deltas = part.delta.dropna()
        if part.arm.iloc[0] in BASELINES or deltas.empty:
            mean, each = "–", "–"
        else:
            mean, each = f"{deltas.mean():+.1f}", ", ".join(f"{delta:+.1f}" for delta in deltas)
        rows.append((*key, f"{part.top1.mean():.1f}", mean, each, f"{part.best.mean():.1f}"))
    names = ["stage", "network", "layer read"]
    columns = [*names, "top-1", "against GAP-FC", "each seed", "best epoch"]
    return pd.DataFrame(rows, columns=columns).set_index(names)


def stage_effects(table: pd.DataFrame) -> pd.DataFrame:
    """The distances to GAP-FC for `figures.effects`: a row a stage, network and layer, a column a seed."""
    others = table[~table.arm.isin(BASELINES)].dropna(subset="delta")
    named = others.assign(effect=others.stage + ": " + others.network + ",\n" + others.layer + " read")
    return named.pivot_table(index="effect", columns="seed", values="delta", sort=False)


def enlargement(configs: Sequence[RunConfig]) -> pd.DataFrame:
    """What taking out the last stage's stride changes: the size of X_L, and the millions of multiply-adds an image.

    Of the last network with a SAOL among the configs, else of the last.
    """
    with_saol = [config for config in configs if "saol" in ARMS[config.arm].heads]
    config = (with_saol or configs)[-1]
    model = new_model(config)
    size = (config.side, config.side)
    networks = {
        "as it is": model,
        "enlarged": enlarge(model),
        "enlarged, dilated": enlarge(model, dilation=True),
    }
    rows = []
    for name, network in networks.items():
        with torch.inference_mode():
            _, feature = network.eval().look(torch.zeros(1, model.channels, *size))
        height, width = feature.shape[2:]
        millions = multiply_adds(network, size) / 1e6
        rows.append((name, f"{height} x {width}", round(millions, 1)))
    return pd.DataFrame(rows, columns=["network", "X_L", "M multiply-adds"]).set_index("network")


def stage_result(table: pd.DataFrame) -> tuple[str, str]:
    """Two sentences: what SAOL gains over GAP-FC when both are fine-tuned, and what doubling the output costs."""
    tuned = table[(table.stage == "fine-tuned") & ~table.arm.isin(BASELINES)].dropna(subset="delta")
    gains = []
    for network, part in tuned.groupby("network", sort=False):
        layers = []
        for layer, values in part.groupby("layer", sort=False).delta:
            layers.append(
                f"{values.mean():+.1f} ({layer} read, {int((values > 0).sum())} of {len(values)} seeds above)"
            )
        gains.append(f"{network} {', '.join(layers)}")
    first = "No network was held against GAP-FC."
    if gains:
        first = f"Points of top-1 above GAP-FC, fine-tuned equally long: {'; '.join(gains)}."

    costs = _doubling(table)
    second = "No output was doubled."
    if costs:
        second = f"Points of top-1 by doubling the output, against going on as it was: {'; '.join(costs)}."
    return first, second


def _doubling(table: pd.DataFrame) -> list[str]:
    """The mean difference in top-1 of each network between the stages "enlarged" and "continued", in words."""
    key = ["network", "layer", "seed"]
    before = table[table.stage == "continued"].set_index(key).top1
    after = table[table.stage == "enlarged"].set_index(key).top1
    change = (after - before).dropna()
    told = []
    for (network, layer), values in change.groupby(["network", "layer"], sort=False):
        told.append(f"{network} {values.mean():+.1f} ({layer} read)")
    return told
