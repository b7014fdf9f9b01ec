"""Studies: many runs on any `concurrent.futures.Executor`; interrupted at any point, the next call goes on.

From a shell: `python -m saol_lib.training.study --profile pilot --data DIR` trains what notebooks/profiles/pilot names.
"""

import argparse
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from pathlib import Path

import torch
import yaml

from saol_lib.data import load
from saol_lib.networks.enlarge import multiply_adds
from saol_lib.training import runs
from saol_lib.training.config import RunConfig, grid
from saol_lib.training.loop import Busy, Interrupted, NotANumber, new_model, train
from saol_lib.training.runs import Run


def run_study(
    configs: Sequence[RunConfig],
    results: str | Path = "results/quick",
    executor: Executor | None = None,
    progress: bool = True,
) -> list[Run]:
    """Train every config, longest first, and return their runs in the order given; finished ones are only read.

    A config whose `start` is among the configs waits for that one, and for no other.

    executor: any `concurrent.futures.Executor`, Dask's `Client.get_executor()` say; None: one process a core, or a GPU,
    each with one thread. A run that fails is recorded with status "failed" and the others go on. Raises RuntimeError
    where a worker process died; what was finished is kept, and calling again goes on.
    """
    results, configs = runs.resolve(results), list(configs)
    done = {config: run for config in configs if (run := _finished(config, results))}
    missing = [config for config in dict.fromkeys(configs) if config not in done]
    if not missing:
        return [done[config] for config in configs]
    others, futures = multiprocessing.active_children(), {}
    pool = executor or _local_pool(len(missing), max(config.processes for config in missing))
    work = {config: _work(config) for config in missing}
    began, behind, waiting = time.perf_counter(), 0.0, sorted(work, key=work.get, reverse=True)
    try:
        while waiting or futures:
            to_come = {runs.run_id(config.identity()) for config in [*waiting, *futures.values()]}
            for config in [config for config in waiting if config.start not in to_come]:
                waiting.remove(config)
                futures[pool.submit(train_one, config, results)] = config
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                config = futures.pop(future)
                done[config], behind = future.result(), behind + work[config]
                left = (time.perf_counter() - began) * (sum(work.values()) / behind - 1)
                if progress:
                    number = len(work) - len(waiting) - len(futures)
                    print(f"{number}/{len(work)} {_line(done[config])}, about {left / 60:.0f} min left", flush=True)
    except BrokenProcessPool:
        raise RuntimeError("a worker process died; finished runs and epochs are kept, start again to go on") from None
    except BaseException:
        for future in futures:
            future.cancel()
        for worker in set(multiprocessing.active_children()).difference(others) if executor is None else ():
            worker.terminate()  # it writes a checkpoint first
        raise
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    return [done[config] for config in configs]


def train_one(config: RunConfig, results: Path) -> Run:
    """One run of a study, in a worker: what goes wrong with it is recorded and not raised."""
    try:
        return train(config, results, progress=False)
    except Interrupted:
        os._exit(143)  # the worker was told to stop: it must not take the next run
    except Exception as error:
        text = re.sub(r"(?<![\w.>])/[^\s'\"]*/", "", f"{type(error).__name__}: {error}")  # no absolute path in a record
        run = Run(config.identity(), {}, [], runs.provenance(), "failed", text)
        try:
            if not isinstance(error, Busy | NotANumber):  # of those the other process, or `train`, writes the record
                runs.save_run(results, run)
        except OSError as full:
            runs.log.error("%s", full)
        return run


def _finished(config: RunConfig, results: Path) -> Run | None:
    path = results / "runs" / f"{runs.run_id(config.identity())}.json"
    run = runs.load_run(path) if path.exists() else None
    return run if run and run.status == "finished" else None


def _work(config: RunConfig) -> float:
    """How long a run will take beside others: multiply-adds of its training."""
    with torch.device("meta"):
        macs = multiply_adds(new_model(config), (config.side, config.side))
    return macs * config.epochs * (config.train_images or 50_000)


def _line(run: Run) -> str:
    if run.status == "failed":
        return f"{run.id} failed: {run.error}"
    scores = ", ".join(f"{name} {value:.1f}" for name, value in run.metrics.items() if name.endswith("_last"))
    return f"{run.id} {scores} in {run.provenance['seconds']:.0f} s"


def _local_pool(tasks: int, processes: int) -> ProcessPoolExecutor:
    """One worker a GPU, or a core, or as many as a run's `processes`."""
    count = max(1, (torch.cuda.device_count() or len(os.sched_getaffinity(0))) // processes)
    context = worker_context()
    turn = context.Value("i", 0) if processes == 1 else None  # a run of several processes takes its GPUs by itself
    return ProcessPoolExecutor(min(count, tasks), context, initializer=_start_worker, initargs=(turn,))


def worker_context() -> multiprocessing.context.BaseContext:
    """How workers start: forked from a server that has the imports and nothing else, neither threads nor CUDA."""
    multiprocessing.set_forkserver_preload(["saol_lib.training.study", "sklearn.datasets"])
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def _start_worker(turn) -> None:
    torch.set_num_threads(1)
    if turn and torch.cuda.is_available():
        with turn.get_lock():
            index, turn.value = turn.value, turn.value + 1
        torch.cuda.set_device(index % torch.cuda.device_count())
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """Stop this worker, with a checkpoint, when the process that started it is gone."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(143)


def study_configs(profile: str, data_dir: str | None = None) -> tuple[list[RunConfig], str]:
    """The runs that the files of notebooks/profiles/<profile> name, and their results folder."""
    folder = runs.ROOT / "notebooks" / "profiles" / profile
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ValueError(f"profile {profile!r} has no files in notebooks/profiles; see the folders there")
    configs = []
    for path in files:
        values = yaml.safe_load(path.read_text())
        if "arms" in values and "trained" not in values:  # fine-tuning has an order: its notebook keeps it
            known = {name: value for name, value in values.items() if name not in ("profile", "results")}
            configs += grid(**(known | ({"data_dir": data_dir} if data_dir else {})))
    return configs, f"results/{profile}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default=None, help="folder of the data set")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        configs, results = study_configs(arguments.profile, arguments.data)
        load(configs[0].dataset, configs[0].data_dir)  # a missing folder is told once, before any worker starts
        failed = [run.id for run in run_study(configs, results) if run.status == "failed"]
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}; their files in {results}/runs say why")


if __name__ == "__main__":
    main()
