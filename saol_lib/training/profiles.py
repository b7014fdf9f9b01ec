"""Profiles: what the files of notebooks/profiles/<profile> ask for, as configurations of runs.

`NN.yaml` holds the parameters of notebook NN; where it names arms, they are runs of the study. Every other file, as
`study.yaml` or `cifar10-wrn.yaml`, is an experiment, runs that belong to no notebook:
`{results, common: {...}, grids: [{...overrides, arms, seeds}]}`. In a grid, `continued: {...}` asks for every run once
more with these changes, started from it, as it was and with twice the resolution. A grid with a value `to be chosen`
names no runs until that value is filled in.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from saol_lib.training import files
from saol_lib.training.config import RunConfig, continuing, finetuning, grid
from saol_lib.training.runs import run_id

OPEN = "to be chosen"  # a value that is not known yet


def study_configs(
    profile: str,
    data_dir: str | None = None,
    only: str | None = None,
    changes: Mapping | None = None,
) -> tuple[list[RunConfig], str]:
    """The runs of a profile's study, each once in the order of the files, and their results folder.

    data_dir: the folder of the data set; None: what the files say. only: the name of one file, without .yaml.
    changes: settings that take the place of what the files say, {"epochs": 1} say.
    Raises ValueError with one sentence, also where every run waits for a value that is still to be chosen.
    """
    found, places, waiting = {}, {}, set()
    for path in _study_files(_files(profile, only)):
        configs, place = read_runs(path, data_dir, changes)
        waiting |= open_values(path, changes)
        if configs:
            places[place] = path.name
        for config in configs:
            found.setdefault(run_id(config.identity()), config)

    if len(places) > 1:
        named = ", ".join(f"{name}: {place}" for place, name in places.items())
        raise ValueError(f"profile {profile!r} names {len(places)} results folders ({named}); a study has one")
    if not found and waiting:
        raise ValueError(f"profile {profile!r}: {', '.join(sorted(waiting))} still to be chosen; fill them in first")
    if not found:
        raise ValueError(f"profile {profile!r} trains nothing by itself: no file of it names arms and seeds of a study")
    return list(found.values()), next(iter(places))


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Settings from a shell, NAME=VALUE with the value as YAML reads it; ValueError where a word is none."""
    changes = {}
    for text in words:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"--set {text} is no setting; write NAME=VALUE, as in epochs=1")
        changes[name] = yaml.safe_load(value)
    return changes


def _files(profile: str, only: str | None) -> list[Path]:
    folder = files.ROOT / "notebooks" / "profiles" / profile
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ValueError(f"profile {profile!r} has no files in notebooks/profiles; see the folders there")
    if only is None:
        return paths

    names = [path.stem for path in paths]
    if only not in names:
        raise ValueError(f"profile {profile!r} has no file {only}.yaml; choose one of {', '.join(names)}")
    return [paths[names.index(only)]]


def _study_files(paths: list[Path]) -> list[Path]:
    """Without the notebooks whose runs lie in another folder than those of the experiments: they train their own."""
    places = {_results(path, read_yaml(path)) for path in paths if is_experiment(path)}
    if not places:
        return paths
    return [path for path in paths if is_experiment(path) or _results(path, read_yaml(path)) in places]


def experiments(profile: str) -> list[Path]:
    """The files of a profile that are experiments, in the order of their names."""
    return [path for path in _files(profile, None) if is_experiment(path)]


def is_experiment(path: Path) -> bool:
    """Whether a profile's file names runs that belong to no notebook: its name is not two digits."""
    return re.fullmatch(r"\d\d", path.stem) is None


def read_runs(path: Path, data_dir: str | None = None, changes: Mapping | None = None) -> tuple[list[RunConfig], str]:
    """The runs of a study that one profile file names, and their results folder; none where it names no study.

    Fine-tuning (`trained`) has an order of its own, which its notebook keeps: it is no study, see `notebook_runs`.
    """
    values = read_yaml(path)
    if not is_experiment(path) and "trained" in values:
        return [], _results(path, values)
    return notebook_runs(path, data_dir, changes)


def notebook_runs(
    path: Path, data_dir: str | None = None, changes: Mapping | None = None
) -> tuple[list[RunConfig], str]:
    """Every run that one profile file names, fine-tuning in the order of its stages, and their results folder."""
    values = read_yaml(path)
    given = {"data_dir": data_dir} if data_dir else {}

    configs = []
    for table in _tables(path, values, given | (changes or {})):
        if _open_names(table):
            continue
        try:
            configs += _configs(table)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{_where(path)}: {error}") from None
    return configs, _results(path, values)


def open_values(path: Path, changes: Mapping | None = None) -> set[str]:
    """The names of a profile file's values that are still to be chosen."""
    found = set()
    for table in _tables(path, read_yaml(path), changes or {}):
        found |= _open_names(table)
    return found


def _open_names(table: Mapping) -> set[str]:
    """Those of one grid, and of the arms that change values."""
    arms = table["arms"] if isinstance(table["arms"], list) else []
    places = [table, *(arm for arm in arms if isinstance(arm, dict))]
    return {name for place in places for name, value in place.items() if value == OPEN}


def _tables(path: Path, values: dict, changes: Mapping) -> list[dict]:
    """What each grid of a file, or the notebook, says, with the changes."""
    tables = _study_tables(values, _where(path)) if is_experiment(path) else _notebook_tables(values)
    return [table | changes for table in tables]


def _configs(table: dict) -> list[RunConfig]:
    for name in ("arms", "seeds"):
        if not isinstance(table[name], list):
            raise ValueError(f"{name}={table[name]!r} must be a list, as in [{table[name]}]")
    if "trained" in table:
        stages = finetuning(**table)
        return [config for stage in stages.values() for config in stage]
    return _with_continued(**table) if "continued" in table else grid(**table)


def _with_continued(continued: dict, **values) -> list[RunConfig]:
    """A grid's runs, and each of them continued."""
    if not isinstance(continued, dict):
        raise ValueError(f"continued={continued!r} must be a table, as in {{epochs: 10, lr: 0.001}}")
    configs = grid(**values)
    stages = continuing(configs, continued)
    return [*configs, *stages["continued"], *stages["enlarged"]]


def _where(path: Path) -> str:
    return f"profile file {path.parent.name}/{path.name}"


def _results(path: Path, values: dict) -> str:
    return values.get("results") or f"results/{path.parent.name}"


def read_yaml(path: Path) -> dict:
    """A profile file's lines of `name: value`; ValueError where it is something else."""
    where = _where(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where} is not readable YAML ({reason})") from None

    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds one {type(values).__name__}: expected lines of `name: value`")
    return values


def _notebook_tables(values: dict) -> list[dict]:
    """A notebook's parameters that are fields of a config, where it names arms; it has others of its own."""
    if not {"arms", "seeds"} <= values.keys():
        return []
    return [settings(values)]


def settings(values: dict) -> dict:
    """Those of a notebook's parameters that its runs are made of: fields of a config, arms, seeds, stages.

    values: a profile file's, or a notebook's own `globals()`; what else there is, is left out.
    """
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    wanted = fields | {"arms", "seeds", "trained", "continued"}
    return {name: value for name, value in values.items() if name in wanted}


def _study_tables(values: dict, where: str) -> list[dict]:
    if set(values) != {"results", "common", "grids"}:
        named = ", ".join(sorted(map(str, values))) or "nothing"
        raise ValueError(f"{where} has {named}: expected exactly results, common and grids")
    results, common, grids = values["results"], values["common"], values["grids"]
    if not isinstance(results, str):
        raise ValueError(f"{where}: results={results!r} must be a folder, such as results/pilot")
    if not isinstance(common, dict):
        raise ValueError(f"{where}: common={common!r} must be lines of `name: value`")
    if not isinstance(grids, list) or not grids:
        raise ValueError(f"{where}: grids={grids!r} must be a list of at least one grid")

    tables = []
    for number, own in enumerate(grids, 1):
        if not isinstance(own, dict):
            raise ValueError(f"{where}: grid {number} is {own!r}; expected a table with arms and seeds")
        table = common | own
        if not {"arms", "seeds"} <= table.keys():
            raise ValueError(f"{where}: grid {number} needs arms and seeds; it has {', '.join(table)}")
        tables.append(table)
    return tables
