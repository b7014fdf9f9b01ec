"""The paper profile without a GPU and without its data: what is counted, what is rehearsed, and the page that tells it.

`python -m saol_lib.evidence.dryrun` counts every network of the profile at full size, rehearses each of them with every
loss on made data (two steps, saved, resumed, evaluated, loaded again; then by two processes), trains and shows every
experiment by its two commands in miniature, up to its executed notebooks, and writes results/paper/costs.json,
results/paper/README.md and the counted lines of the profile's files.
What is done is written at once, and `--missing` goes on with what is not there. `--small` rehearses the small networks
and one experiment alone and writes nothing, `--count` rehearses none, `--page` only writes the page from costs.json.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from saol_lib.data import load
from saol_lib.evidence import made_data
from saol_lib.evidence.forecast import count, structure
from saol_lib.evidence.paper import (
    FULLEST,
    PROFILE,
    case_name,
    notebooks_of,
    profile_runs,
    read_costs,
    representatives,
    write_costs,
    write_page,
)
from saol_lib.training import ROOT, RunConfig, evaluate, load_model, train
from saol_lib.training.checkpoints import load_checkpoint
from saol_lib.training.distributed import launch
from saol_lib.training.loop import Trainer
from saol_lib.training.profiles import experiments, read_changes, study_configs
from saol_lib.training.recipe import batches
from saol_lib.training.runs import run_id

SMALL = ("wrn-40-2",)
SMALL_ARMS = ("gap_fc", "saol_cutmix_ss_sd")
SMALL_EXPERIMENT = "cifar10-wrn40"
MINIATURE = ("epochs=1", "eval_every=1", "batch_size=4", "seeds=[0]", "schedule=cosine", "milestones=[]", "lr=0.01")
MINIATURE += ("weight_decay=1.0e-4", "clip_norm=null", "autocast=none", "pretrained=false")
NETWORKS = {"cifar10": "resnet-8-8", "cifar100": "resnet-8-8", "imagenet": "resnet18", "cub": "resnet18"}
ALONE, BOTH = "one process", "one process, two processes"  # by whom a case was rehearsed


# --- which runs stand for all -----------------------------------------------------------------------------------------


def for_two(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Of the representatives those that two processes rehearse: a network's fullest arm, or its last one."""
    found = {}
    for config in configs:
        known = found.get(config.backbone)
        if known is None or known.arm != FULLEST:
            found[config.backbone] = config
    return list(found.values())


def small(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The representatives that CI rehearses."""
    is_small = [config for config in configs if config.backbone in SMALL and config.dataset == "cifar10"]
    return [config for config in is_small if config.arm in SMALL_ARMS]


# --- the rehearsal ----------------------------------------------------------------------------------------------------


def rehearsal(config: RunConfig, data_dir: Path, processes: int = 1) -> RunConfig:
    """The same network, losses and optimiser for one epoch on a CPU, two images a process and step, from no weights."""
    return replace(
        config,
        data_dir=str(data_dir),
        epochs=1,
        eval_every=1,
        warmup_epochs=0,
        batch_size=2 * processes,
        accumulate=1,
        processes=processes,
        autocast="none",
        device="cpu",
        pretrained=False,
        start=None,
    )


def rehearse(config: RunConfig, data_dir: Path, results: Path) -> None:
    """A step, a checkpoint, a second step by another trainer from it, evaluation, and the network loaded again.

    Raises RuntimeError naming what did not come out as it should; whatever else goes wrong is raised as it is.
    """
    config = rehearsal(config, data_dir)
    trainer = Trainer(config, results)
    trainer.model.train()
    images, labels = next(trainer.train_batches.epoch(config.batch_size, config.seed, 0))
    trainer.step(0, 0, images, labels)
    trainer._save((0, 1))
    saved, _ = load_checkpoint(trainer.folder)
    del trainer

    run = train(config, results, progress=False)
    after, _ = load_checkpoint(results / "checkpoints" / run.id)
    _check(set(run.epochs[0]) >= {f"loss_{term}" for term in config.terms}, f"{run.id} lacks a loss: {run.epochs}")
    _check(saved.keys() <= after.keys() | _sums(saved), f"{run.id} went on from another network")
    _check(_moved(saved, after), f"{run.id} did not move a weight in its second step")

    model = load_model(run, results, device="cpu")
    dataset = load(config.dataset, config.data_dir, **config.data_options)
    _, evaluation = batches(config, dataset, torch.device("cpu"))
    scores = {f"{name}_last": value for name, value in evaluate(model, evaluation).items()}
    _check(scores.items() <= run.metrics.items(), f"{run.id} evaluates to {scores}, its file says {run.metrics}")


def _sums(tensors: dict) -> set[str]:
    return {name for name in tensors if name.startswith("sum.")}


def _moved(before: dict, after: dict) -> bool:
    names = [name for name in before if name.startswith("model.") and before[name].is_floating_point()]
    return any(not torch.equal(before[name], after[name]) for name in names)


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise RuntimeError(sentence)


def rehearse_by_two(configs: Sequence[RunConfig], data_dir: Path, results: Path) -> None:
    """One step of each config by two processes, which train, evaluate and record together."""
    asked = [rehearsal(config, data_dir, processes=2) for config in configs]
    launch(_train_all, (asked, data_dir, results), 2)
    for config in asked:
        path = results / "runs" / f"{run_id(config.identity())}.json"
        _check(path.exists(), f"two processes left no {path.name}")


def _train_all(configs: Sequence[RunConfig], data_dir: Path, results: Path) -> None:
    made_data.trust(data_dir)
    for config in configs:
        train(config, results, progress=False)


# --- the two commands of an experiment --------------------------------------------------------------------------------


def show(experiment: str, data_dir: Path, results: Path) -> list[str]:
    """Train an experiment in miniature and show it, by the two commands that its file names; the notebooks' names.

    Every arm of the experiment, one seed and epoch, a small network in place of its own; the experiment that it is
    shown beside is trained too. Raises RuntimeError with the last lines of a command that fails, and where a notebook
    or every figure is missing in the end.
    """
    environment = os.environ | made_data.trusting(data_dir) | {"CUDA_VISIBLE_DEVICES": ""}
    where = ["--data", str(data_dir), "--results", str(results)]
    notebooks = notebooks_of(experiment)
    commands = []
    for name in [*filter(None, notebooks.values()), experiment]:
        commands.append(["-m", "saol_lib.training", "study", "--profile", PROFILE, "--only", name, *where])
    commands.append([str(ROOT / "notebooks/run.py"), "replicate", "--profile", PROFILE, "--only", experiment, *where])
    for command in commands:
        words = [word for setting in miniature(experiment) for word in ("--set", setting)]
        done = subprocess.run([sys.executable, *command, *words], env=environment, capture_output=True, text=True)
        told = f"{experiment}: {' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-2000:]}"
        _check(done.returncode == 0, told)

    expected = copies_of(experiment)
    missing = [name for name in expected if not (results / name).exists()]
    drawn = list((results / "figures").glob(f"*_{experiment}.png"))
    _check(drawn and not missing, f"{experiment}: {len(drawn)} figures, without {missing}:\n{done.stdout}")
    return expected


def copies_of(experiment: str) -> list[str]:
    """The names of its executed notebooks."""
    return [f"{number}_{experiment}.ipynb" for number in sorted(notebooks_of(experiment))]


def miniature(experiment: str) -> list[str]:
    """The settings of an experiment's miniature, as SET takes them."""
    configs, _ = study_configs(PROFILE, only=experiment)
    settings = [*MINIATURE, f"backbone={NETWORKS[configs[0].dataset]}"]
    if any(config.start for config in configs):
        settings.append("continued={epochs: 1, lr: 0.001}")
    return settings


def alike(names: Sequence[str]) -> list[list[str]]:
    """The experiments in groups whose miniatures are the same runs, shown by the same notebooks."""
    groups: dict[str, list[str]] = {}
    for name in names:
        configs, _ = study_configs(PROFILE, only=name, changes=read_changes(miniature(name)))
        ids = [run_id(config.identity()) for config in configs]
        groups.setdefault(str((sorted(ids), notebooks_of(name))), []).append(name)
    return list(groups.values())


# --- the command ------------------------------------------------------------------------------------------------------


class Ledger:
    """What was counted, rehearsed and shown, written after each: costs.json of the page. write: whether to write."""

    def __init__(self, known: dict, write: bool) -> None:
        self.networks = dict(known.get("networks", {}))
        self.rehearsed = dict(known.get("rehearsed", {}))
        self.shown = dict(known.get("shown", {}))
        self.write = write

    def save(self) -> None:
        if self.write:
            write_costs(self.networks, self.rehearsed, self.shown)


def count_all(configs: Sequence[RunConfig], ledger: Ledger) -> None:
    """Count each distinct network of these runs that the ledger lacks."""
    for config in configs:
        name = case_name(structure(config))
        if name not in ledger.networks:
            ledger.networks[name] = count(config)._asdict()
            ledger.save()
            print(f"counted {name}: {ledger.networks[name]['multiply_adds'] / 1e9:.2f} G multiply-adds", flush=True)


def rehearse_all(configs: Sequence[RunConfig], folder: Path, ledger: Ledger) -> None:
    """Rehearse what the ledger lacks: every config by one process, one a network by two."""
    data_dir = _made_data(folder)
    together = [config for config in for_two(configs) if ledger.rehearsed.get(case_name(config)) != BOTH]
    alone = [config for config in configs if case_name(config) not in ledger.rehearsed]
    with made_data.trusted(data_dir):
        for number, config in enumerate(alone, 1):
            began = time.perf_counter()
            rehearse(config, data_dir, folder / "one" / str(number))
            ledger.rehearsed[case_name(config)] = ALONE
            ledger.save()
            seconds = time.perf_counter() - began
            print(f"{number}/{len(alone)} {case_name(config)}: passed in {seconds:.0f} s", flush=True)

        if together:
            rehearse_by_two(together, data_dir, folder / "two")
    ledger.rehearsed |= {case_name(config): BOTH for config in together}
    ledger.save()
    print(f"by two processes: {', '.join(sorted(config.backbone for config in together)) or 'none'}", flush=True)


def show_all(names: Sequence[str], folder: Path, ledger: Ledger) -> None:
    """Show the experiments that the ledger lacks, of those that are alike the first one alone."""
    data_dir = _made_data(folder)
    missing = alike([name for name in names if name not in ledger.shown])
    for number, group in enumerate(missing, 1):
        began = time.perf_counter()
        show(group[0], data_dir, folder / "shown" / group[0])
        ledger.shown |= {name: copies_of(name) for name in group}
        ledger.save()
        seconds = time.perf_counter() - began
        told = ", ".join(copies_of(group[0]))
        print(f"{number}/{len(missing)} {', '.join(group)}: shown as {told} in {seconds:.0f} s", flush=True)


def _made_data(folder: Path) -> Path:
    data_dir = folder / "data"
    return data_dir if data_dir.exists() else made_data.make_data(data_dir)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m saol_lib.evidence.dryrun", description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="go on with what is not in costs.json")
    parser.add_argument("--small", action="store_true", help="the small networks alone; writes nothing")
    parser.add_argument("--count", action="store_true", help="count and write, rehearse nothing")
    parser.add_argument("--page", action="store_true", help="write the page from what was counted and rehearsed before")
    options = parser.parse_args(words)
    logging.getLogger("saol_lib").setLevel(logging.ERROR)
    if options.page:
        write_page()
        return

    began = time.perf_counter()
    configs = profile_runs()
    chosen = list(representatives(configs).values())
    names = [path.stem for path in experiments(PROFILE)]
    if options.small:
        configs = chosen = small(chosen)
        names = [SMALL_EXPERIMENT]
    ledger = Ledger(read_costs() if options.missing else {}, write=not options.small)
    count_all(configs, ledger)
    if not options.count:
        with tempfile.TemporaryDirectory() as folder:
            rehearse_all(chosen, Path(folder), ledger)
            show_all(names, Path(folder), ledger)
    if not options.small:
        print(write_page())
    seconds = time.perf_counter() - began
    print(
        f"{len(ledger.networks)} networks counted, {len(ledger.rehearsed)} cases rehearsed, "
        f"{len(ledger.shown)} experiments shown: {seconds:.0f} s"
    )


if __name__ == "__main__":  # processes import this file
    sys.exit(main())
