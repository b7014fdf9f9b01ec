"""From a shell: one run, on one or many machines, or a profile's whole study.

`torchrun ... -m saol_lib.training CONFIG.json [RESULTS]`
`python -m saol_lib.training study --profile pilot --data DIR`
`python -m saol_lib.training study --profile paper --only cifar10-wrn --data DIR --set epochs=1 --set seeds=[0]`
"""

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

from saol_lib.data import FILES, load
from saol_lib.training import (
    Busy,
    Interrupted,
    RunConfig,
    finished_run,
    read_changes,
    resolve,
    run_study,
    study_configs,
    train,
)
from saol_lib.training.distributed import leave
from saol_lib.training.workers import decoders_each, gpu_parts, usable_cores


def train_file(arguments: list[str]) -> None:
    """Train the run of one JSON file of a config's fields."""
    parser = argparse.ArgumentParser(prog="python -m saol_lib.training")
    parser.add_argument("config", type=Path, help="a JSON file with the fields of a RunConfig; or the word study")
    parser.add_argument("results", nargs="*", help="the results folder")
    options = parser.parse_args(arguments)
    try:
        values = json.loads(options.config.read_text())
        train(RunConfig.of(**values), *options.results)
    except Interrupted as stop:
        leave(stop.code)
    except (ValueError, OSError, ArithmeticError, Busy) as error:
        print(error, file=sys.stderr)
        leave(1)
    leave(0)


def train_study(arguments: list[str]) -> None:
    """Train every run of a profile's study, or of one of its experiments."""
    options = _study_options().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        changes = read_changes(options.set)
        configs, results = study_configs(options.profile, options.data, options.only, changes)
        results = options.results or results
        configs = [_placed(config, options) for config in configs]
        missing = [config for config in configs if finished_run(config, resolve(results)) is None]
        if missing:  # a missing folder is told once, before any worker starts
            load(missing[0].dataset, missing[0].data_dir, **missing[0].data_options)
            print(f"{len(missing)} of {len(configs)} runs are missing; {_where(missing[0], options)}", flush=True)
        finished = run_study(
            configs, results, in_order=True, per_gpu=options.per_gpu, wait_for_others=not options.leave
        )
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoints")

    failed = [run.id for run in finished if run.status == "failed"]
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}; their files in {results}/runs say why")


def _placed(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The run with the processes that train and decode for it; ValueError where they would make another run of it."""
    processes = options.processes or config.processes
    workers = options.workers
    if workers is None:
        workers = decoders_each(processes, options.per_gpu) if config.dataset in FILES else 0
    placed = replace(config, processes=processes, workers=workers)
    if placed.identity() != config.identity():
        raise ValueError(
            f"processes={processes}: {config.backbone} draws in every process by itself, which would make another run "
            "of it than the profile's; train one run on each GPU instead, without PROCESSES"
        )
    return placed


def _where(config: RunConfig, options: argparse.Namespace) -> str:
    """On what the runs will be trained, in words."""
    parts = gpu_parts(config.processes)
    if not parts:
        return f"no GPU is seen, {usable_cores()} cores train"
    decoding = f", {config.workers} more for each decode images" if config.workers else ""
    at_once = len(parts) * options.per_gpu
    return f"up to {at_once} at once on {len(gpu_parts(1))} GPUs, {config.processes} processes a run{decoding}"


def _study_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m saol_lib.training study")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default=None, help="folder of the data set")
    parser.add_argument("--only", default=None, help="one file of the profile, such as cifar10-wrn")
    parser.add_argument("--results", default=None, help="another results folder than the profile's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as epochs=1, seeds=[0]")
    parser.add_argument("--processes", type=int, default=None, help="data-parallel processes, one a GPU, for each run")
    parser.add_argument("--workers", type=int, default=None, help="processes that decode images; else the cores' share")
    parser.add_argument("--per-gpu", type=int, default=1, help="runs that share a GPU: small networks leave it idle")
    parser.add_argument("--leave", action="store_true", help="end when nothing is left but what other studies train")
    return parser


if __name__ == "__main__":  # workers import this file
    if sys.argv[1:2] == ["study"]:
        train_study(sys.argv[2:])
    else:
        train_file(sys.argv[1:])
