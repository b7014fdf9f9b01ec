"""From a notebook's parameters to the configurations of its runs; those of an experiment are only read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from saol_lib.training.config import RunConfig, finetuning, grid
from saol_lib.training.files import resolve
from saol_lib.training.profiles import settings, study_configs
from saol_lib.training.runs import Run, finished_run, run_id

EXPERIMENT_STAGES = ("trained", "fine-tuned", "continued", "enlarged")


def configs_of(namespace: Mapping[str, object], baseline: str = "") -> list[RunConfig]:
    """One config for every arm and seed of a notebook: `configs_of(globals())`, right after the parameters' cell.

    Of the namespace the names are taken that a `RunConfig` has, and `arms` and `seeds`; where it names an `experiment`,
    a file of its profile, the runs of that one instead, with the `changes` that the namespace has. baseline: an arm
    that has to be among the arms, with or without CutMix, unless there are none at all. ValueError with one sentence
    for what is wrong.
    """
    if namespace.get("experiment"):
        return _experiment(namespace)
    known = {field.name for field in fields(RunConfig)}
    values = {name: value for name, value in namespace.items() if name in known}
    configs = grid(namespace["arms"], namespace["seeds"], **values)

    arms = {config.arm for config in configs}
    if baseline and arms and not arms & {baseline, f"{baseline}_cutmix"}:
        raise ValueError(f"arms={sorted(arms)} lack the baseline; add {baseline}, {baseline}_cutmix or both")
    return configs


def stages_of(namespace: Mapping[str, object]) -> dict[str, list[RunConfig]]:
    """The stages of notebooks 02 and 03 (see `finetuning`) from their parameters.

    Of an experiment, the runs that start from no other one of it stand under "fine-tuned".
    """
    if not namespace.get("experiment"):
        return finetuning(**settings(namespace))
    stages = {stage: [] for stage in EXPERIMENT_STAGES}
    for config in _experiment(namespace):
        stages[_stage(config)].append(config)
    return stages


def _stage(config: RunConfig) -> str:
    if config.enlarge:
        return "enlarged"
    return "continued" if config.start else "fine-tuned"


def _experiment(namespace: Mapping[str, object]) -> list[RunConfig]:
    """The runs of an experiment, and after them those of the one that it stands `beside`."""
    where = namespace["profile"], namespace["data_dir"]
    found = {}
    for name in (namespace["experiment"], namespace.get("beside")):
        if not name:
            continue
        configs, _ = study_configs(*where, only=name, changes=namespace.get("changes"))
        found |= {run_id(config.identity()): config for config in configs}
    return list(found.values())


def finished_of(experiment: str | None, configs: Sequence[RunConfig], results: str | Path) -> list[Run]:
    """Those of an experiment's runs that are finished: they are read, and nothing is trained. None: no runs.

    Raises ValueError where none of them is finished, OtherData where they were computed from other data.
    """
    if not experiment:
        return []
    found = [finished_run(config, resolve(results)) for config in configs]
    runs = [run for run in found if run is not None]
    if not runs:
        raise ValueError(
            f"none of the {len(configs)} runs of {experiment} is finished in {Path(results).name}; train them first: "
            f"make study ONLY={experiment}, with the same PROFILE, DATA, SET and RESULTS"
        )
    print(f"{experiment}: {len(runs)} of {len(configs)} runs are finished", flush=True)
    return runs


def finished_stages(
    experiment: str | None, stages: Mapping[str, Sequence[RunConfig]], results: str | Path
) -> dict[str, list[Run]]:
    """`finished_of` by stage, as `run_stages` gives runs; empty where there is no experiment."""
    if not experiment:
        return {}
    configs = [config for stage in stages.values() for config in stage]
    runs = {run.id: run for run in finished_of(experiment, configs, results)}
    found = {}
    for stage, some in stages.items():
        names = [run_id(config.identity()) for config in some]
        found[stage] = [runs[name] for name in names if name in runs]
    return found
