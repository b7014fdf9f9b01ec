"""results/paper/README.md: which experiments of the paper profile are done, which are ready, what they would cost."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from saol_lib.evidence.forecast import SUSTAINED, Cost, Network, forecast, structure
from saol_lib.layers import SaolOptions
from saol_lib.training import ARMS, RunConfig, read_runs, write_json, write_whole
from saol_lib.training.profiles import experiments
from saol_lib.training.runs import RESULTS, load_finished, run_id

PROFILE = "paper"
COUNTED = re.compile(r"^# Counted by make dryrun: .*$", re.MULTILINE)
LOSSES = ("mask_resize", "ss2_direction", "teacher", "beta", "cutmix_schedule")
WORDS = """# The paper profile: what is done, what is ready, what it would cost

Written by `make dryrun`; not edited by hand. Every experiment is a file of
[notebooks/profiles/paper](../../notebooks/profiles/paper), whose head says what it tests, where its values come
from and how it is run. **Done** is an experiment whose runs all lie in results/paper; one that is **ready** has been
counted and rehearsed, and nothing of it was run.

Parameters and multiply-adds (of one image, in use) are counted by torch on its meta device, at full size. GPU-hours
are multiply-adds of all training (a backward pass for two forward ones, L_SS2's second pass where CutMix is not
paired) and evaluation, at **{sustained:.0f} TFLOP/s sustained: an assumption**, which large networks exceed on recent
GPUs in bfloat16 and small ones do not reach; two operations a multiply-add. Memory: weights, gradients, momentum and
what a forward pass keeps for the backward pass, of a whole batch on one GPU; `processes` divides it, and so does
`accumulate`, which is part of a run's id. Disk: two checkpoints a run. A run that several experiments name is trained
once.
"""


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


# --- what was counted -------------------------------------------------------------------------------------------------


def read_costs(results: Path = RESULTS) -> dict:
    """{"networks": {name: its counts}, "rehearsed": {case: by whom}}; empty where nothing was counted."""
    path = results / PROFILE / "costs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_costs(networks: dict[str, dict], rehearsed: dict[str, str], results: Path = RESULTS) -> None:
    write_json(results / PROFILE / "costs.json", {"networks": networks, "rehearsed": rehearsed})


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
    networks = costs["networks"]
    every, rows = {}, []
    for path in experiments(PROFILE):
        configs = read_runs(path)[0]
        every |= {run_id(config.identity()): config for config in configs}
        rows.append(experiment_row(path, configs, costs, results))
        _write_line(path, configs, networks)

    text = WORDS.format(sustained=SUSTAINED) + _total(list(every.values()), networks)
    head = "| experiment | status | runs | M parameters | G multiply-adds | GPU-hours | GB of memory | GB of disk |"
    parts = [text.rstrip(), "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows]), _networks(networks)]
    parts.append(_rehearsed(costs["rehearsed"]))
    page = "\n\n".join(parts) + "\n"
    write_whole(results / PROFILE / "README.md", page.encode())
    return page


def _total(configs: Sequence[RunConfig], networks: dict) -> str:
    counted = costs_of(configs, networks)
    if not counted:
        return f"\nAll {len(configs)} distinct runs together: not counted yet; `make dryrun MISSING=1` goes on.\n"
    hours = sum(cost.hours for _, cost in counted)
    disk = sum(cost.disk for _, cost in counted)
    return f"\nAll {len(configs)} distinct runs together: {hours:,.0f} GPU-hours and {disk:,.0f} GB of disk.\n"


def experiment_row(path: Path, configs: Sequence[RunConfig], costs: dict, results: Path) -> str:
    """The experiment's line of the table. costs: what `read_costs` gives."""
    counted = costs_of(configs, costs["networks"])
    rehearsed = bool(counted) and is_rehearsed(configs, costs["rehearsed"])
    link = f"[{path.stem}](../../notebooks/profiles/paper/{path.name})"
    cells = [link, status(configs, results / PROFILE, rehearsed), str(len(configs))]
    cells += _cost_cells(counted) if counted else ["not counted yet", *["–"] * 4]
    return f"| {' | '.join(cells)} |"


def _cost_cells(counted: Sequence[tuple[Network, Cost]]) -> list[str]:
    return [
        _span([network.parameters / 1e6 for network, _ in counted], ".2f"),
        _span([network.multiply_adds / 1e9 for network, _ in counted], ".2f"),
        f"{sum(cost.hours for _, cost in counted):,.0f}",
        _span([cost.memory for _, cost in counted], ".1f"),
        f"{sum(cost.disk for _, cost in counted):,.0f}",
    ]


def is_rehearsed(configs: Sequence[RunConfig], rehearsed: dict[str, str]) -> bool:
    """Whether every network of these runs was rehearsed."""
    networks = {name.split()[1] for name in rehearsed}
    return {config.backbone for config in configs} <= networks


def status(configs: Sequence[RunConfig], folder: Path, rehearsed: bool) -> str:
    """ "done", how many of the runs are finished, "ready", or that the rehearsal is still to come."""
    finished = [config for config in configs if load_finished(folder, run_id(config.identity()))]
    if not finished:
        return "ready" if rehearsed else "not rehearsed yet"
    return "**done**" if len(finished) == len(configs) else f"{len(finished)} of {len(configs)}"


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
