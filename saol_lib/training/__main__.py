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

from saol_lib.data import load
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
        where = {"processes": options.processes, "workers": options.workers}
        configs = [replace(config, **where) for config in configs]
        missing = [config for config in configs if finished_run(config, resolve(results)) is None]
        if missing:  # a missing folder is told once, before any worker starts
            load(missing[0].dataset, missing[0].data_dir, **missing[0].data_options)
        finished = run_study(configs, results, in_order=True, per_gpu=options.per_gpu)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoints")

    failed = [run.id for run in finished if run.status == "failed"]
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}; their files in {results}/runs say why")


def _study_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m saol_lib.training study")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default=None, help="folder of the data set")
    parser.add_argument("--only", default=None, help="one file of the profile, such as cifar10-wrn")
    parser.add_argument("--results", default=None, help="another results folder than the profile's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as epochs=1, seeds=[0]")
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes, one a GPU, for each run")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each run")
    parser.add_argument("--per-gpu", type=int, default=1, help="runs that share a GPU: small networks leave it idle")
    return parser


if __name__ == "__main__":  # workers import this file
    if sys.argv[1:2] == ["study"]:
        train_study(sys.argv[2:])
    else:
        train_file(sys.argv[1:])
