"""From a notebook's parameters to the configurations of its runs."""

from collections.abc import Mapping
from dataclasses import fields

from saol_lib.training.config import RunConfig, grid


def configs_of(namespace: Mapping[str, object], baseline: str = "") -> list[RunConfig]:
    """One config for every arm and seed of a notebook: `configs_of(globals())`, right after the parameters' cell.

    Of the namespace the names are taken that a `RunConfig` has, and `arms` and `seeds`. baseline: an arm that has to be
    among the arms, with or without CutMix, unless there are none at all. ValueError with one sentence for what is
    wrong.
    """
    known = {field.name for field in fields(RunConfig)}
    values = {name: value for name, value in namespace.items() if name in known}
    configs = grid(namespace["arms"], namespace["seeds"], **values)

    arms = {config.arm for config in configs}
    if baseline and arms and not arms & {baseline, f"{baseline}_cutmix"}:
        raise ValueError(f"arms={sorted(arms)} lack the baseline; add {baseline}, {baseline}_cutmix or both")
    return configs
