"""results/paper/README.md: which experiments of the paper profile are done, which are ready, what they would cost."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from saol_lib.evidence.forecast import SUSTAINED, Cost, Network, forecast, structure
from saol_lib.evidence.plans import as_recorded
from saol_lib.layers import SaolOptions
from saol_lib.training import ARMS, RunConfig, files, read_runs, read_yaml, write_json, write_whole
from saol_lib.training.profiles import experiments
from saol_lib.training.runs import RESULTS, run_id

PROFILE = "paper"
COUNTED = re.compile(r"^# Counted by make dryrun: .*$", re.MULTILINE)
LOSSES = ("mask_resize", "ss2_direction", "teacher", "beta", "cutmix_schedule")
DONE, READY = "**done**", "ready"
FULLEST = "saol_cutmix_ss_sd"  # the arm with every loss
WORDS = """# The paper profile: what is done, what is ready, what it would cost

Written by `make dryrun` and, after a run, by `make claims`; not edited by hand. {summary}

```sh
make study PROFILE=paper ONLY=cifar10-wrn DATA=DIR       # trains it, one run per GPU; goes on where it stopped
make replicate PROFILE=paper ONLY=cifar10-wrn DATA=DIR   # its notebooks and figures, from what is finished
make claims                                              # its rows in results/README.md, the verdicts, this page
```

A name below leads to its file, whose head says where every value comes from, and how it is run on eight GPUs or Slurm.
[notebooks/profiles](../../notebooks/profiles/README.md) has a first try in one epoch, and how the data have to lie.

{table}

- **Status.** *done*: every run is finished and lies here. *3 of 35*: so many are. *ready*: nothing of it was run, and
  all of this was tried without a GPU and without the data: its networks were counted at full size; each of them took
  two steps with its losses, was saved, resumed, evaluated and loaded again, and one of each backbone by two processes
  (last table); both commands above were run on every arm in miniature, one epoch of a small network on made data in
  the true layouts, up to the executed notebooks that are named (once for experiments that are then the same).
- **For**: the [claims](../../README.md) that read its runs.
- **GPU-hours** are multiply-adds of all training (a backward pass for two forward ones, L_SS2's second pass where
  CutMix is not paired) and evaluation, at **{sustained:.0f} TFLOP/s sustained: an assumption**, which large networks
  exceed on recent GPUs in bfloat16 and small ones do not reach; two operations a multiply-add. *Longest run*: its
  hours on one GPU.
- **Memory**: weights, gradients, momentum and what a forward pass keeps for the backward pass, of a whole batch on one
  GPU; `processes` divides it, and so does `accumulate`, which is part of a run's id. **Disk**: two checkpoints a run.
- *Shared* runs are those that another experiment names, too: they are trained once, so that the whole is less than the
  sum of the lines. {total}
"""


class Experiment(NamedTuple):
    """A file of the profile: what its head says that it is, what it is for, and its runs."""

    path: Path
    title: str
    purpose: str
    configs: list[RunConfig]

    @property
    def name(self) -> str:
        return self.path.stem


def read_experiment(path: Path) -> Experiment:
    """Raises ValueError where the head has no "For: ..."."""
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    head = " ".join(lines)
    purpose = re.search(r"For: (.+?)\.(?: |$)", head)
    if not purpose:
        raise ValueError(f"{path.name}: its head has no `For: ...`, which says what its runs are for")
    title = re.split(r"[:.] ", head)[0]
    title = re.sub(r" \(.*?\)", "", title)
    return Experiment(path, title, purpose[1], read_runs(path)[0])


def notebooks_of(experiment: str) -> dict[str, str | None]:
    """The numbers of the notebooks that show an experiment, and the other one that each of them shows it beside."""
    found = {}
    for path in sorted((files.ROOT / "notebooks" / "profiles" / PROFILE).glob("[0-9][0-9].yaml")):
        values = read_yaml(path)
        if experiment in values.get("experiment", ()):
            found[path.stem] = values.get("beside")
    return found


def profile_runs() -> list[RunConfig]:
    """Every run of the profile's experiments, each once."""
    return _distinct([read_experiment(path) for path in experiments(PROFILE)])


def _distinct(found: Sequence[Experiment]) -> list[RunConfig]:
    runs = {}
    for one in found:
        for config in one.configs:
            runs.setdefault(run_id(config.identity()), config)
    return list(runs.values())


def case_name(config: RunConfig) -> str:
    """A network and its arm in words: data set, backbone, arm and the options that differ from their defaults."""
    parts = [config.dataset, config.backbone, config.arm]
    names = ("blocks", "enlarge", *SaolOptions.__dataclass_fields__, *LOSSES)
    for name in names:
        value, default = getattr(config, name), getattr(RunConfig, name)
        if value != default and not _says_nothing(config, name):
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _says_nothing(config: RunConfig, name: str) -> bool:
    """Whether an option changes nothing of this arm."""
    arm = ARMS[config.arm]
    if name == "cutmix_schedule":
        return not arm.cutmix
    if name == "enlarge":
        return False
    if name == "mask_source":
        return "ss1" not in arm.terms
    return "saol" not in arm.heads and name != "beta"


# --- which runs stand for all -----------------------------------------------------------------------------------------


def representatives(configs: Sequence[RunConfig]) -> dict[str, RunConfig]:
    """One run for each `kind` of network, losses and options, with CutMix where the profile has it so.

    Of a network on a further data set only the first run with every loss: nothing but the number of classes is new.
    """
    found: dict[str, RunConfig] = {}
    for config in configs:
        name = kind(config)
        known = found.get(name)
        if known is None or (known.dataset == config.dataset and _is_cutmix(config) > _is_cutmix(known)):
            found[name] = config

    further: dict[str, RunConfig] = {}
    there = {(config.dataset, config.backbone) for config in found.values()}
    for config in configs:
        if config.arm == FULLEST and (config.dataset, config.backbone) not in there:
            further.setdefault(config.dataset, config)
    return found | further


def kind(config: RunConfig) -> str:
    """What a rehearsal tries: the network, its losses and options, whatever the data set and with CutMix or without."""
    return case_name(replace(config, dataset="cifar10", arm=_without_cutmix(config.arm)))


def _without_cutmix(arm: str) -> str:
    """The arm with the same losses that has no CutMix, where there is one; with L_SS there is none."""
    plain = arm.replace("_cutmix", "")
    return plain if plain in ARMS else arm


def _is_cutmix(config: RunConfig) -> bool:
    return ARMS[config.arm].cutmix


# --- what was counted -------------------------------------------------------------------------------------------------


def read_costs(results: Path = RESULTS) -> dict:
    """{"networks": {name: its counts}, "rehearsed": {case: by whom}, "shown": {experiment: notebooks}}, or nothing."""
    path = results / PROFILE / "costs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_costs(
    networks: dict[str, dict], rehearsed: dict[str, str], shown: dict[str, list[str]], results: Path = RESULTS
) -> None:
    told = {"networks": networks, "rehearsed": rehearsed, "shown": shown}
    write_json(results / PROFILE / "costs.json", told)


def costs_of(configs: Sequence[RunConfig], networks: dict[str, dict]) -> list[tuple[Network, Cost]]:
    """Each run's network and cost; empty where one of the networks was not counted yet."""
    found = []
    for config in configs:
        name = case_name(structure(config))
        if name not in networks:
            return []
        network = Network(**networks[name])
        found.append((network, forecast(config, network)))
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(results: Path = RESULTS) -> str:
    """Write results/paper/README.md and the counted lines of the profile's files; the page."""
    costs = read_costs(results)
    if not costs:
        raise ValueError("nothing was counted yet; run make dryrun")
    page = render(costs, results)
    write_whole(results / PROFILE / "README.md", page.encode())
    for path in experiments(PROFILE):
        _write_line(path, read_runs(path)[0], costs["networks"])
    return page


def render(costs: Mapping, results: Path = RESULTS) -> str:
    """The page. costs: what `read_costs` gives."""
    found = [read_experiment(path) for path in experiments(PROFILE)]
    every = _distinct(found)
    missing = untried(every, costs["rehearsed"])
    states = {one.name: status(one, costs, missing, results / PROFILE) for one in found}
    lines = [
        "| experiment | what | for | status | runs | GPU-hours | longest run | GB of a GPU | GB of disk | notebooks |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    counts = Counter(run_id(config.identity()) for one in found for config in one.configs)
    for one in found:
        shared = sum(counts[run_id(config.identity())] > 1 for config in one.configs)
        lines.append(experiment_row(one, states[one.name], shared, costs, results))

    said = {"summary": _summary(states), "total": _total(every, costs["networks"])}
    text = WORDS.format(table="\n".join(lines), sustained=SUSTAINED, **said)
    return "\n\n".join([text.rstrip(), _networks(costs["networks"]), _rehearsed(costs["rehearsed"])]) + "\n"


def _summary(states: Mapping[str, str]) -> str:
    """How many experiments are done, begun, ready and not ready, in words."""
    done = sum(state == DONE for state in states.values())
    ready = sum(state == READY for state in states.values())
    begun = sum(" of " in state for state in states.values())
    rest = len(states) - done - ready - begun
    told = f"Of {len(states)} experiments **{done} are done**, {begun} begun, **{ready} ready** to be run"
    if rest:
        told = f"{told}, {rest} not tried to the end yet (`make dryrun MISSING=1` goes on)"
    return f"{told}."


def _total(configs: Sequence[RunConfig], networks: dict) -> str:
    counted = costs_of(configs, networks)
    if not counted:
        return f"All {len(configs)} distinct runs together: not counted yet."
    hours = sum(cost.hours for _, cost in counted)
    disk = sum(cost.disk for _, cost in counted)
    return f"All {len(configs)} distinct runs together: **{hours:,.0f} GPU-hours** and {disk:,.0f} GB of disk."


def experiment_row(one: Experiment, state: str, shared: int, costs: Mapping, results: Path) -> str:
    """The experiment's line of the table. state: what `status` says of it; shared: runs that others name, too."""
    link = f"[{one.name}](../../notebooks/profiles/paper/{one.path.name})"
    counted = costs_of(one.configs, costs["networks"])
    runs = f"{len(one.configs)} ({shared} shared)" if shared else str(len(one.configs))
    cells = [link, one.title, one.purpose, state, runs]
    cells += _cost_cells(counted) if counted else ["not counted yet", *["–"] * 3]
    names = costs.get("shown", {}).get(one.name, [])
    copies = [_copy(name, results / PROFILE) for name in names]
    return f"| {' | '.join([*cells, ', '.join(copies) or '–'])} |"


def _copy(name: str, folder: Path) -> str:
    """An executed notebook, with a link where it is here."""
    return f"[{name}]({name})" if (folder / name).exists() else name.removesuffix(".ipynb")


def _cost_cells(counted: Sequence[tuple[Network, Cost]]) -> list[str]:
    hours = [cost.hours for _, cost in counted]
    return [
        f"{sum(hours):,.0f}",
        f"{max(hours):,.1f}",
        _span([cost.memory for _, cost in counted], ".1f"),
        f"{sum(cost.disk for _, cost in counted):,.0f}",
    ]


def untried(configs: Sequence[RunConfig], rehearsed: Mapping[str, str]) -> set[str]:
    """The kinds of networks, losses and options of the profile whose representative was not rehearsed."""
    chosen = representatives(configs)
    return {name for name, config in chosen.items() if case_name(config) not in rehearsed}


def status(one: Experiment, costs: Mapping, missing: set[str], folder: Path) -> str:
    """DONE, how many of the runs are finished, READY, or what is still to be tried.

    missing: what `untried` gives. folder: that of the runs.
    """
    finished = [config for config in one.configs if as_recorded(config, folder)]
    if len(finished) == len(one.configs):
        return DONE
    if finished:
        return f"{len(finished)} of {len(one.configs)}"
    if not costs_of(one.configs, costs["networks"]):
        return "not counted yet"
    if {kind(config) for config in one.configs} & missing:
        return "not rehearsed yet"
    return READY if costs.get("shown", {}).get(one.name) else "not shown yet"


def _span(values: Sequence[float], spec: str) -> str:
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low} to {high}"


def _networks(networks: dict[str, dict]) -> str:
    lines = [
        "## Networks",
        "",
        "| network, arm that stands for its layers | M parameters | G multiply-adds |",
        "|---|---|---|",
    ]
    for name, counts in networks.items():
        found = Network(**counts)
        lines.append(f"| {name} | {found.parameters / 1e6:.2f} | {found.multiply_adds / 1e9:.3f} |")
    return "\n".join(lines)


def _rehearsed(rehearsed: dict[str, str]) -> str:
    lines = ["## Rehearsed", ""]
    lines.append(
        "Two steps of two images at full resolution on a CPU, on made data in the true layouts, a checkpoint between "
        "them from which another trainer went on; then evaluated, recorded, loaded again and evaluated alike. By two "
        "processes: one step of four images, evaluated and recorded."
    )
    lines += ["", "| case | by |", "|---|---|"]
    lines += [f"| {name} | {by} |" for name, by in rehearsed.items()]
    return "\n".join(lines)


def _write_line(path: Path, configs: Sequence[RunConfig], networks: dict) -> None:
    """The line of an experiment's head that says what was counted."""
    text = path.read_text()
    new = COUNTED.sub(counted_line(configs, networks), text)
    if new != text:
        write_whole(path, new.encode())


def counted_line(configs: Sequence[RunConfig], networks: dict) -> str:
    costs = [cost for _, cost in costs_of(configs, networks)]
    if not costs:
        return "# Counted by make dryrun: not yet."
    hours = sum(cost.hours for cost in costs)
    longest = max(cost.hours for cost in costs)
    memory = max(cost.memory for cost in costs)
    disk = sum(cost.disk for cost in costs)
    return (
        f"# Counted by make dryrun: {len(configs)} runs, {hours:,.0f} GPU-hours at {SUSTAINED:.0f} TFLOP/s (at most "
        f"{longest:,.1f} a run), {memory:.1f} GB of a GPU, {disk:,.0f} GB of disk."
    )
