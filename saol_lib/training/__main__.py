"""From a shell: one run, on one or many machines, or a profile's whole study.

`torchrun ... -m saol_lib.training CONFIG.json [RESULTS]`
`python -m saol_lib.training study --profile pilot --data DIR`
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from saol_lib.data import load
from saol_lib.training import Busy, RunConfig, finished_run, resolve, run_study, study_configs, train


def train_file(arguments: list[str]) -> None:
    """Train the run of one JSON file of a config's fields."""
    parser = argparse.ArgumentParser(prog="python -m saol_lib.training")
    parser.add_argument("config", type=Path, help="a JSON file with the fields of a RunConfig; or the word study")
    parser.add_argument("results", nargs="*", help="the results folder")
    options = parser.parse_args(arguments)
    try:
        values = json.loads(options.config.read_text())
        train(RunConfig.of(**values), *options.results)
    except (ValueError, OSError, ArithmeticError, Busy) as error:
        sys.exit(str(error))


def train_study(arguments: list[str]) -> None:
    """Train every run of a profile's study."""
    parser = argparse.ArgumentParser(prog="python -m saol_lib.training study")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default=None, help="folder of the data set")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        configs, results = study_configs(options.profile, options.data)
        missing = [config for config in configs if finished_run(config, resolve(results)) is None]
        if missing:  # a missing folder is told once, before any worker starts
            load(missing[0].dataset, missing[0].data_dir, **missing[0].data_options)
        finished = run_study(configs, results)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoints")

    failed = [run.id for run in finished if run.status == "failed"]
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}; their files in {results}/runs say why")


if __name__ == "__main__":  # workers import this file
    if sys.argv[1:2] == ["study"]:
        train_study(sys.argv[2:])
    else:
        train_file(sys.argv[1:])
